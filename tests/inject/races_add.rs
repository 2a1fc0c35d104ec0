// SPDX-License-Identifier: GPL-2.0

//! What the threads of `races_threads.c` do: an access like those that safe Rust makes, where another
//! thread makes it as well. No safe Rust could be brought to that.

/// Adds one.
///
/// # Safety
///
/// `number` is valid. That nobody else uses it at the time is what does not hold here.
#[no_mangle]
#[inline(never)]
pub unsafe extern "C" fn races_add(number: *mut u64) {
    // SAFETY: This is the mistake.
    unsafe { *number = (*number).wrapping_add(1) };
}
