// SPDX-License-Identifier: GPL-2.0

//! A vTPM backend that does one named thing wrong, and the rest right: run in dom0 in place of
//! xen-vtpmd, with a swtpm behind it. The behaviour is changed while it runs.

#![forbid(unsafe_code)]

mod behaviour;
mod bus;
mod control;
mod edits;
mod line;
mod server;
mod table;
mod tpm;

use std::env;
use std::process::ExitCode;

/// What went wrong with the program itself, in words.
pub(crate) type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const USAGE: &str = "usage: xen-hostile-backend serve TPM-SOCKET   serve one vTPM at a time, honestly at first
       xen-hostile-backend tell WORD...       give the one that runs an order, print its answer
       xen-hostile-backend list               the behaviours: name, kind, what to expect, what is wrong";

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match args.as_slice() {
        ["serve", socket] => server::serve(socket),
        ["tell", words @ ..] if !words.is_empty() => control::tell(&words.join(" ")),
        ["list"] => {
            for behaviour in table::all() {
                println!("{behaviour}");
            }
            Ok(())
        }
        _ => Err(USAGE.into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("xen-hostile-backend: {e}");
            ExitCode::FAILURE
        }
    }
}
