// SPDX-License-Identifier: GPL-2.0

//! xen-vtpmd, a vTPM backend for Xen guests: follows libxl in xenstore, serves each guest's shared
//! page, and has one swtpm for each vTPM. `Documentation/xen-vtpmd.rst` has the whole picture.

#![deny(unsafe_code)]

pub mod admin;
pub mod archive;
pub mod attest;
pub mod broker;
pub mod cgroup;
pub mod config;
pub mod control;
pub mod counters;
pub mod discovery;
pub mod event_loop;
pub mod events;
pub mod exchange;
pub mod files;
pub mod hex;
pub mod hooks;
pub mod io;
pub mod key;
pub mod launch;
pub mod lifecycle;
pub mod logger;
pub mod manager;
pub mod measure;
pub mod metrics;
pub mod migrate;
pub mod notes;
pub mod probe;
pub mod record;
pub mod report;
pub mod seal;
pub mod session;
pub mod state;
pub mod status;
pub mod storm;
pub mod swtpm;
#[allow(unsafe_code)]
pub mod sys;
pub mod worker;
#[allow(unsafe_code)]
pub mod xen;
pub mod xenbus;
