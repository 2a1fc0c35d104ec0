// SPDX-License-Identifier: GPL-2.0

//! A flag of one thread, for worlds that have no other.

use std::cell::Cell;

use xen_tpm_protocol::command::Flag;

/// A flag of one thread.
#[derive(Debug, Default)]
pub struct PlainFlag(Cell<bool>);

impl Flag for PlainFlag {
    fn get(&self) -> bool {
        self.0.get()
    }

    fn set(&self, value: bool) {
        self.0.set(value);
    }

    fn swap(&self, value: bool) -> bool {
        self.0.replace(value)
    }
}
