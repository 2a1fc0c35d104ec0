// SPDX-License-Identifier: GPL-2.0

//! Raw bindings of the kernel's Xen and TPM headers, made by bindgen when the module is built,
//! and the kernel crate's own for everything that these refer to. No logic is here.

pub(crate) mod compat;

#[allow(
    clippy::all,
    clippy::ptr_as_ptr,
    clippy::ref_as_ptr,
    clippy::undocumented_unsafe_blocks,
    dead_code,
    improper_ctypes,
    missing_docs,
    non_camel_case_types,
    non_snake_case,
    non_upper_case_globals,
    unnameable_types,
    unreachable_pub,
    unsafe_op_in_unsafe_fn
)]
mod generated {
    use kernel::{
        bindings::*,
        ffi, //
    };
    use pin_init::MaybeZeroable;

    include!(env!("XEN_TPMFRONT_BINDINGS"));
}

pub(crate) use generated::*;
