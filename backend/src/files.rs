// SPDX-License-Identifier: GPL-2.0

//! Reading files that others may have put there: no link is followed, nothing that is no plain file is opened
//! to any effect, and nothing endless is read. And writing such as a loss of power must not leave in half.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::OFlags;

use crate::state::sync_folder;

/// The contents of a plain file of at most `max` bytes.
pub fn read_plain(path: &Path, max: u64) -> io::Result<Vec<u8>> {
    // Not to wait for the writer of a FIFO that is in a file's place.
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits() as i32)
        .open(path)
        .map_err(|e| match rustix::io::Errno::from_io_error(&e) {
            Some(rustix::io::Errno::LOOP) => odd(),
            _ => e,
        })?;
    read_open(file, max)
}

/// The same of one that is open.
pub fn read_open(file: File, max: u64) -> io::Result<Vec<u8>> {
    // Looked at after it is open: it is this one that is read.
    if !file.metadata()?.is_file() {
        return Err(odd());
    }
    let mut bytes = Vec::new();
    let taken = file.take(max + 1).read_to_end(&mut bytes)?;
    match taken as u64 > max {
        true => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("larger than {max} bytes"),
        )),
        false => Ok(bytes),
    }
}

/// Removes a file, if there is one.
pub fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// Removes a file, if there is one: durably.
pub fn remove_durably(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e),
        Ok(()) => sync_folder(path.parent().unwrap_or(path)),
    }
}

/// A new file for its owner only, in the place of one that may be there: who has that open does not see what is
/// written, and a link is not followed.
pub fn create_private(path: &Path) -> io::Result<File> {
    remove(path)?;
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600).open(path)
}

/// Puts a file, for its owner only, in the place of another: whole or not at all, and durably.
pub fn write_durably(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    sync_folder(path.parent().unwrap_or(path))
}

fn odd() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "not a plain file")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn plain_files_only() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link, fifo) = (
            dir.path().join("file"),
            dir.path().join("link"),
            dir.path().join("fifo"),
        );
        fs::write(&file, b"1234").unwrap();
        symlink(&file, &link).unwrap();
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, mode, 0).unwrap();

        assert_eq!(read_plain(&file, 4).unwrap(), b"1234");
        for (path, max, wanted) in [
            (&file, 3, "larger than 3 bytes"),
            (&link, 4, "not a plain file"),
            (&fifo, 4, "not a plain file"),
            (&dir.path().to_owned(), 4, "not a plain file"),
        ] {
            let e = read_plain(path, max).unwrap_err().to_string();
            assert_eq!(e, wanted, "{}", path.display());
        }
        let missing = read_plain(&dir.path().join("none"), 4).unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
    }
}
