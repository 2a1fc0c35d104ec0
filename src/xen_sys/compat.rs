// SPDX-License-Identifier: GPL-2.0

//! What differs between the kernels that this source builds for.

use kernel::{
    bindings,
    ThisModule, //
};

/// What an interrupt handler answers that took its interrupt.
#[cfg(not(kernel_7_3))]
pub(crate) const IRQ_HANDLED: bindings::irqreturn_t = bindings::irqreturn_IRQ_HANDLED;

/// What an interrupt handler answers that took its interrupt.
#[cfg(kernel_7_3)]
pub(crate) const IRQ_HANDLED: bindings::irqreturn_t = bindings::irqreturn::IRQ_HANDLED;

/// The driver's module.
#[cfg(not(kernel_7_3))]
pub(crate) const THIS_MODULE: &ThisModule = &crate::THIS_MODULE;

/// The driver's module.
#[cfg(kernel_7_3)]
pub(crate) const THIS_MODULE: &ThisModule = kernel::module::this_module::<crate::DriverModule>();
