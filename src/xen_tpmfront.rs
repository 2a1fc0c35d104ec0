// SPDX-License-Identifier: GPL-2.0

//! Xen vTPM frontend: gives a guest the TPM that a backend in another domain has for it.
//!
//! `Documentation/xen-tpmfront.rst` has the whole picture.

#[deny(unsafe_code)]
mod channel;
#[deny(unsafe_code)]
mod commands;
#[deny(unsafe_code)]
mod connection;
#[deny(unsafe_code)]
mod counters;
#[deny(unsafe_code)]
mod debugfs;
#[deny(unsafe_code)]
mod driver;
#[deny(unsafe_code)]
mod event_log;
#[deny(unsafe_code)]
mod identity;
#[deny(unsafe_code)]
mod locality;
// For the backend and the host tests the same files are a crate of their own (Cargo.toml), so not
// all that they offer is used here.
#[allow(dead_code, unreachable_pub, unused_imports)]
#[deny(unsafe_code)]
#[path = "protocol/mod.rs"]
mod protocol;
#[deny(unsafe_code)]
mod ratelimit;
#[deny(unsafe_code)]
mod registration;
mod tpm;
#[deny(unsafe_code)]
mod vtpm;
mod xen;
mod xen_sys;

xen::bus::module_xenbus_driver! {
    type: driver::Tpmfront,
    name: "xen_tpmfront",
    authors: ["The xen-tpmfront developers"],
    description: "Xen vTPM frontend",
    license: "GPL",
    alias: ["xen:vtpm"],
}
