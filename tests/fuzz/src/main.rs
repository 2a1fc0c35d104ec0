// SPDX-License-Identifier: GPL-2.0

//! The program that libFuzzer runs. `XT_FUZZ` names the target. It says every now and then how
//! many steps there were, for libFuzzer counts inputs.

#![cfg_attr(fuzzing, no_main)]

#[cfg(not(fuzzing))]
fn main() {
    eprintln!("error: this is built without libFuzzer; tests/suites/proof.py does it with");
    std::process::exit(2);
}

#[cfg(fuzzing)]
mod fuzzer {
    use std::ffi::c_int;
    use std::slice;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::sync::OnceLock;

    use xen_tpm_fuzz::{Target, STEPS, TARGETS};

    /// How often the steps are told.
    const EVERY: u64 = 1 << 20;

    static TARGET: OnceLock<Target> = OnceLock::new();
    static TOLD: AtomicU64 = AtomicU64::new(0);

    fn target() -> Target {
        let name = std::env::var("XT_FUZZ").unwrap_or_default();

        match TARGETS.iter().find(|(target, _)| *target == name) {
            Some((_, target)) => *target,
            None => panic!("XT_FUZZ has to name a target, and is {name:?}"),
        }
    }

    /// What libFuzzer calls with each input.
    ///
    /// # Safety
    ///
    /// `data` is valid for reading `size` bytes.
    #[no_mangle]
    unsafe extern "C" fn LLVMFuzzerTestOneInput(data: *const u8, size: usize) -> c_int {
        let data = match size {
            0 => &[],
            // SAFETY: By this function's requirements; libFuzzer does not change the input.
            _ => unsafe { slice::from_raw_parts(data, size) },
        };

        TARGET.get_or_init(target)(data);
        let steps = STEPS.load(Ordering::Relaxed);
        if steps / EVERY > TOLD.swap(steps / EVERY, Ordering::Relaxed) {
            eprintln!("steps: {steps}");
        }
        0
    }
}
