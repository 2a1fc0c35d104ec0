// SPDX-License-Identifier: GPL-2.0

//! A frontend that breaks every rule, run in a guest in place of the driver: the daemon has to live
//! on, and other guests must hardly notice.

#![deny(unsafe_code)]

mod behaviours;
mod frontend;
mod random;
#[allow(unsafe_code)]
mod sys;

use std::env;
use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let done = match args.as_slice() {
        [name, seconds, seed] => match (seconds.parse(), seed.parse()) {
            (Ok(seconds), Ok(seed)) => behaviours::behave(name, seconds, seed),
            _ => Err("SECONDS and SEED are numbers".into()),
        },
        _ => Err("usage: xen-hostile-frontend BEHAVIOUR SECONDS SEED".into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("xen-hostile-frontend: {e}");
            ExitCode::FAILURE
        }
    }
}
