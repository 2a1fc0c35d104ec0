// SPDX-License-Identifier: GPL-2.0

//! The file `io` of a vTPM's run directory, mapped by the worker and its I/O process: the journal, which
//! says what is under way, and the counters. It outlives both.

use std::fs::{File, OpenOptions};
use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::mm::{mmap, munmap, MapFlags, ProtFlags};

use crate::counters::{Counters, Histogram};

/// What the file starts with: "xenvtpm" and the version of what follows.
const MAGIC: u64 = u64::from_be_bytes(*b"xenvtpm\x02");

/// What is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// The TPM is being started.
    Starting,
    /// Nothing.
    Free,
    /// A guest's command with this code, from before it is sent until its response is in the page.
    Command(u32),
    /// A guest's command, or its undoing, that the guest has no part in any more.
    Left,
}

/// A number that one process changes and others read.
#[derive(Debug)]
#[repr(transparent)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds. Only one process does, so it need not be one step.
    pub fn add(&self, n: u64) {
        self.0.store(self.get().wrapping_add(n), Ordering::Relaxed);
    }

    /// Sets it.
    pub fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }

    /// The number.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What is in the file. Each field is a number for itself, so that whatever a compromised I/O process
/// writes is some number.
#[derive(Debug)]
#[repr(C)]
pub struct Layout {
    magic: AtomicU64,
    journal: AtomicU64,
    /// Commands that were taken.
    pub commands: Counter,
    /// Commands that the guest cancelled.
    pub cancels: Counter,
    /// Requests that were turned down.
    pub refused: Counter,
    /// Events that brought nothing.
    pub spurious: Counter,
    /// Bytes of commands.
    pub bytes_in: Counter,
    /// Bytes of responses.
    pub bytes_out: Counter,
    /// Connections to the guest.
    pub connections: Counter,
    /// TPMs that ended although they should not.
    pub deaths: Counter,
    /// Starts of the TPM.
    pub starts: Counter,
    /// Times that state was made durable before a response.
    pub syncs: Counter,
    /// Volatile states that were stored.
    pub saves: Counter,
    /// Volatile states that were taken up.
    pub restores: Counter,
    /// Workers so far.
    pub workers: Counter,
    /// Starts of a TPM in the place of one that died, in a row.
    pub revivals: Counter,
    /// Whether the worker has ended for the next one to do that.
    pub revives: Counter,
    timed_us: Counter,
    latency: [Counter; Histogram::BUCKETS],
}

impl Layout {
    /// Notes what is under way.
    pub fn note(&self, entry: Entry) {
        let value = match entry {
            Entry::Starting => 0,
            Entry::Free => 1,
            Entry::Command(code) => 2 | (u64::from(code) << 32),
            Entry::Left => 3,
        };
        self.journal.store(value, Ordering::Release);
    }

    /// What was noted last.
    pub fn entry(&self) -> Entry {
        let value = self.journal.load(Ordering::Acquire);
        match value as u32 {
            0 => Entry::Starting,
            1 => Entry::Free,
            3 => Entry::Left,
            _ => Entry::Command((value >> 32) as u32),
        }
    }

    /// Counts how long a command took.
    pub fn timed(&self, time: std::time::Duration) {
        self.latency[Histogram::bucket(time)].add(1);
        self.timed_us
            .add(u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
    }

    /// All counters.
    pub fn counters(&self) -> Counters {
        let latency = Histogram::from_buckets(std::array::from_fn(|n| self.latency[n].get()));
        Counters {
            commands: self.commands.get(),
            cancels: self.cancels.get(),
            refused: self.refused.get(),
            spurious: self.spurious.get(),
            deaths: self.deaths.get(),
            connections: self.connections.get(),
            bytes_in: self.bytes_in.get(),
            bytes_out: self.bytes_out.get(),
            starts: self.starts.get(),
            syncs: self.syncs.get(),
            saves: self.saves.get(),
            restores: self.restores.get(),
            workers: self.workers.get(),
            timed_us: self.timed_us.get(),
            latency,
        }
    }
}

/// The file, mapped.
///
/// # Invariants
///
/// `map` is the address of a mapping of the whole file, which has room for a [`Layout`] and which root
/// alone can truncate.
#[derive(Debug)]
pub struct Shared {
    file: OwnedFd,
    map: NonNull<Layout>,
}

impl Shared {
    /// Opens the file; one that is not there, or is another version's, is made anew: then the journal says
    /// [`Entry::Starting`].
    pub fn open(path: &Path) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true).create(true).mode(0o600);
        let file = options.truncate(false).open(path)?;
        if file.metadata()?.len() != size_of::<Layout>() as u64 {
            file.set_len(0)?;
            file.set_len(size_of::<Layout>() as u64)?;
        }
        let shared = Self::map(file.into())?;
        if shared.magic.load(Ordering::Relaxed) != MAGIC {
            let file = File::from(shared.file.try_clone()?);
            file.set_len(0)?;
            file.set_len(size_of::<Layout>() as u64)?;
            shared.magic.store(MAGIC, Ordering::Relaxed);
        }
        Ok(shared)
    }

    /// Maps the file that the worker has opened.
    pub fn map(file: OwnedFd) -> io::Result<Self> {
        let length = File::from(file.try_clone()?).metadata()?.len();
        if length != size_of::<Layout>() as u64 {
            return Err(io::ErrorKind::InvalidData.into());
        }
        // SAFETY: A new mapping, at an address of the kernel's choice.
        let map = unsafe {
            mmap(
                ptr::null_mut(),
                size_of::<Layout>(),
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                &file,
                0,
            )?
        };
        let map = NonNull::new(map.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        // INVARIANT: It was mapped just now, and the file is as long.
        Ok(Self { file, map })
    }
}

impl std::ops::Deref for Shared {
    type Target = Layout;

    fn deref(&self) -> &Layout {
        // SAFETY: It is mapped by the type invariant, aligned as a page is, and consists of atomics, for
        // which any bytes are a value and any process may write at any time.
        unsafe { self.map.as_ref() }
    }
}

impl AsFd for Shared {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: It is mapped by the type invariant, and no reference outlives `self`.
        let _ = unsafe { munmap(self.map.as_ptr().cast(), size_of::<Layout>()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn what_was_noted_outlives_the_process() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("io");
        let shared = Shared::open(&path).unwrap();
        assert_eq!(shared.entry(), Entry::Starting);

        for entry in [
            Entry::Command(0x17b),
            Entry::Left,
            Entry::Free,
            Entry::Starting,
            Entry::Command(u32::MAX),
        ] {
            shared.note(entry);
            assert_eq!(shared.entry(), entry);
            assert_eq!(Shared::open(&path).unwrap().entry(), entry);
        }
        shared.commands.add(3);
        shared.timed(Duration::from_micros(100));
        let copy = Shared::map(shared.file.try_clone().unwrap()).unwrap();
        drop(shared);
        assert_eq!(copy.counters().commands, 3);
        assert_eq!(copy.counters().latency.buckets().len(), 8);
    }

    #[test]
    fn another_versions_file_is_made_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("io");

        Shared::open(&path).unwrap().note(Entry::Free);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[0] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(Shared::open(&path).unwrap().entry(), Entry::Starting);
        assert_eq!(Shared::open(&path).unwrap().counters().commands, 0);
        std::fs::write(&path, b"short").unwrap();
        assert_eq!(Shared::open(&path).unwrap().entry(), Entry::Starting);

        let file = tempfile::tempfile().unwrap();
        assert!(Shared::map(file.into()).is_err());
    }
}
