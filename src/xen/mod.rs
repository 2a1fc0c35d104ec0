// SPDX-License-Identifier: GPL-2.0

//! Safe abstractions for Xen frontend drivers: the xenbus bus, xenstore, a granted page and its
//! event channel. Nothing here knows of TPMs.

pub(crate) mod bus;
pub(crate) mod debugfs;
pub(crate) mod event;
pub(crate) mod grant;
pub(crate) mod reboot;
pub(crate) mod store;
pub(crate) mod work;
