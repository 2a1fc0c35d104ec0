// SPDX-License-Identifier: GPL-2.0

//! What a vTPM's swtpm is doing, where the next daemon finds it if this one dies: eight bytes of memory that
//! swtpm keeps open.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    fcntl_add_seals, fcntl_get_seals, ftruncate, memfd_create, MemfdFlags, SealFlags,
};
use rustix::io::{pread, pwrite};

/// How much memory there is: the phase, three bytes of nothing, and the command's code.
const SIZE: usize = 8;

/// What keeps the memory from growing and shrinking under the daemon.
const SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW);

/// What is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// The start.
    Starting,
    /// Nothing.
    Free,
    /// A guest's command with this code, from before it is sent until its answer is in the page.
    Command(u32),
    /// The undoing of a guest's command. The guest has no part in it any more.
    Undoing,
}

/// The memory.
#[derive(Debug)]
pub struct Journal(OwnedFd);

impl Journal {
    /// Makes one, which says that the start is under way.
    pub fn new() -> io::Result<Self> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let fd = memfd_create("xen-vtpmd journal", flags)?;

        ftruncate(&fd, SIZE as u64)?;
        fcntl_add_seals(&fd, SEALS)?;
        Ok(Self(fd))
    }

    /// Takes back the one that a former daemon made. An error if it is not one.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        match fcntl_get_seals(&fd)?.contains(SEALS) {
            true => Ok(Self(fd)),
            false => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// Notes what is under way.
    pub fn note(&self, entry: Entry) -> io::Result<()> {
        let (phase, code) = match entry {
            Entry::Starting => (0, 0),
            Entry::Free => (1, 0),
            Entry::Command(code) => (2, code),
            Entry::Undoing => (3, 0),
        };
        let mut bytes = [phase, 0, 0, 0, 0, 0, 0, 0];
        bytes[4..].copy_from_slice(&code.to_be_bytes());

        match pwrite(&self.0, &bytes, 0)? {
            SIZE => Ok(()),
            _ => Err(io::ErrorKind::WriteZero.into()),
        }
    }

    /// What was noted last. swtpm could have written there as well, which would do harm to its own
    /// guest only.
    pub fn read(&self) -> io::Result<Entry> {
        let mut bytes = [0; SIZE];
        let [phase, _, _, _, code @ ..] = match pread(&self.0, &mut bytes, 0)? {
            SIZE => bytes,
            _ => return Err(io::ErrorKind::UnexpectedEof.into()),
        };

        match phase {
            0 => Ok(Entry::Starting),
            1 => Ok(Entry::Free),
            2 => Ok(Entry::Command(u32::from_be_bytes(code))),
            3 => Ok(Entry::Undoing),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

impl AsFd for Journal {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_noted_is_read() {
        let journal = Journal::new().unwrap();
        assert_eq!(journal.read().unwrap(), Entry::Starting);

        for entry in [
            Entry::Command(0x17b),
            Entry::Undoing,
            Entry::Free,
            Entry::Starting,
        ] {
            journal.note(entry).unwrap();
            assert_eq!(journal.read().unwrap(), entry);
        }
        let copy = Journal::from_fd(journal.0.try_clone().unwrap()).unwrap();
        journal.note(Entry::Command(1)).unwrap();
        assert_eq!(copy.read().unwrap(), Entry::Command(1));
    }

    #[test]
    fn what_is_no_journal_is_refused() {
        let journal = Journal::new().unwrap();
        ftruncate(&journal.0, 0).unwrap_err();
        pwrite(&journal.0, &[9], 0).unwrap();
        journal.read().unwrap_err();

        let file = tempfile::tempfile().unwrap();
        Journal::from_fd(file.into()).unwrap_err();
    }
}
