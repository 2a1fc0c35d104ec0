// SPDX-License-Identifier: GPL-2.0

//! The daemon without Xen: the release binary, the real xenstored and the real swtpm, with stand-ins
//! for libxenevtchn, libxengnttab and libxenctrl. README.md tells how it is run.

mod archive;
mod attest;
mod boots;
mod certificates;
mod costs;
mod durable;
mod each_call;
mod event_log;
mod faults;
mod guest;
mod host;
mod host_tpm;
mod hostile_swtpm;
mod hypervisor;
mod init_wait;
mod killed;
mod lifecycle;
mod log_lines;
mod manager;
mod measured_for_driver_domain;
mod measured_start;
mod migrate;
mod migrate_failures;
mod neighbours;
mod processes;
mod report;
mod sandbox;
mod save;
mod sealed_state;
mod standins;
mod takeover;
mod toolstack;
mod tpm;
mod tpm_policy;
mod two_hosts;
mod uids;
mod xenstore;
