// SPDX-License-Identifier: GPL-2.0

//! Raw bindings of the kernel's Xen and TPM headers, made by bindgen when the module is built, and
//! the kernel crate's own for everything that these refer to; and the tracepoints, which are C's.

pub(crate) mod compat;
pub(crate) mod trace;

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

// The wire's Rust side is its C side.
const _: () = {
    use crate::protocol::layout;
    use core::mem::{
        offset_of,
        size_of, //
    };

    assert!(offset_of!(tpmif_page, length) == layout::LENGTH);
    assert!(offset_of!(tpmif_page, state) == layout::STATE);
    assert!(offset_of!(tpmif_page, locality) == layout::LOCALITY);
    assert!(offset_of!(tpmif_page, pad) == layout::PAD);
    assert!(offset_of!(tpmif_page, nr_extra_pages) == layout::NR_EXTRA_PAGES);
    assert!(offset_of!(tpmif_page, extra_pages) == layout::HEADER_SIZE);
    assert!(size_of::<tpmif_page>() == layout::HEADER_SIZE);

    assert!(tpmif_state_TPMIF_IDLE == layout::State::Idle as u32);
    assert!(tpmif_state_TPMIF_SUBMIT == layout::State::Submit as u32);
    assert!(tpmif_state_TPMIF_FINISH == layout::State::Finish as u32);
    assert!(tpmif_state_TPMIF_CANCEL == layout::State::Cancel as u32);
};
