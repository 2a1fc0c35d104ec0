// SPDX-License-Identifier: GPL-2.0

//! Safe abstractions for Xen frontend drivers: the xenbus bus, xenstore, granted pages and event
//! channels; and what the kernel crate (as of 7.3) lacks of completions, work items, reboot
//! notifiers and allocation scopes. Nothing here knows of TPMs.

pub(crate) mod bus;
pub(crate) mod completion;
pub(crate) mod event;
pub(crate) mod grant;
pub(crate) mod noio;
pub(crate) mod reboot;
pub(crate) mod store;
pub(crate) mod work;
