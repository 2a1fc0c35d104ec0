// SPDX-License-Identifier: GPL-2.0

//! Safe abstractions for drivers of TPM chips. Nothing here knows of Xen.

pub(crate) mod attribute;
pub(crate) mod chip;
pub(crate) mod event_log;
pub(crate) mod registrar;
