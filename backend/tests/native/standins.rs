// SPDX-License-Identifier: GPL-2.0

//! Builds the stand-ins for Xen's libraries (standins/*.c), once for all tests of a run.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The C file, the library's name, and whether it has symbol versions.
const LIBRARIES: [(&str, &str, bool); 5] = [
    ("evtchn", "libxenevtchn.so.1", true),
    ("gnttab", "libxengnttab.so.1", true),
    ("ctrl", "libxenctrl.so.4.20", true),
    ("xenstored", "xenstored.so", false),
    ("faults", "faults.so", false),
];

/// Programs, by the names of their files.
const PROGRAMS: [&str; 2] = ["libxl-save-helper", "swtpm"];

/// The directory with the libraries.
pub(crate) fn directory() -> &'static Path {
    static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();

    DIRECTORY.get_or_init(|| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/native/standins");
        // Of this process alone: another run may build at the same time.
        let name = format!("standins-{}", std::process::id());
        let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);

        std::fs::create_dir_all(&out).unwrap();
        for (file, library, versions) in LIBRARIES {
            let mut gcc = Command::new("gcc");
            gcc.args(["-O1", "-Wall", "-Werror", "-shared", "-fPIC"]);
            gcc.arg(format!("-Wl,-soname,{library}"));
            if versions {
                let map = source.join(format!("{file}.map"));
                gcc.arg(format!("-Wl,--version-script={}", map.display()));
            }
            gcc.arg("-o").arg(out.join(library));
            gcc.arg(source.join(format!("{file}.c")));
            assert!(gcc.status().unwrap().success(), "{gcc:?}");
        }
        for program in PROGRAMS {
            let mut gcc = Command::new("gcc");
            gcc.args(["-O1", "-Wall", "-Werror", "-o"]);
            gcc.arg(out.join(program));
            gcc.arg(source.join(format!("{program}.c")));
            assert!(gcc.status().unwrap().success(), "{gcc:?}");
        }
        out
    })
}
