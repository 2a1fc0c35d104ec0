// SPDX-License-Identifier: GPL-2.0

//! A device's directory in debugfs. `Documentation/xen-tpmfront.rst` describes its files.

use crate::vtpm::Vtpm;
use kernel::{
    debugfs::ScopedDir,
    fmt,
    prelude::*,
    sync::Arc, //
};

/// A file in debugfs.
pub(crate) struct Shown {
    vtpm: Arc<Vtpm>,
    name: &'static CStr,
    show: fn(&Vtpm, &mut fmt::Formatter<'_>) -> fmt::Result,
}

impl Shown {
    /// The files of a device.
    pub(crate) fn all(vtpm: &Arc<Vtpm>) -> [Self; 2] {
        [
            Self {
                vtpm: vtpm.clone(),
                name: c"state",
                show: |vtpm, f| vtpm.connection.show(f),
            },
            Self {
                vtpm: vtpm.clone(),
                name: c"counters",
                show: |vtpm, f| vtpm.control.counters().show(f),
            },
        ]
    }
}

/// Fills the device's directory in debugfs.
pub(crate) fn files<'data>(files: &'data [Shown; 2], dir: &ScopedDir<'data, '_>) {
    for file in files {
        dir.read_callback_file(file.name, file, &|file, f| (file.show)(&file.vtpm, f));
    }
}
