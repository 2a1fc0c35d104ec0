// SPDX-License-Identifier: GPL-2.0

//! Whether dom0 is saving a guest. The guest can write the node that hints at it, so the hint only makes us
//! look for what it cannot make: a process of root's in dom0 that saves this very domain.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// libxl's process that writes a domain's memory, as `/proc/PID/comm` has it: 15 characters.
const HELPER: &str = "libxl-save-help";

/// How long to wait before looking again, however often the guest hints.
const INTERVAL: Duration = Duration::from_millis(200);

/// What is known about the saving of one guest.
#[derive(Debug)]
pub struct Saving {
    domid: u16,
    marked: bool,
    /// Before that, nobody looks again.
    next: Option<Instant>,
    /// Whether somebody should.
    due: bool,
}

impl Saving {
    /// Nothing is known about the guest yet.
    pub fn new(domid: u16) -> Self {
        Self {
            domid,
            marked: false,
            next: None,
            due: false,
        }
    }

    /// Whether the guest was saved, if it is taken away now.
    pub fn is_marked(&self) -> bool {
        self.marked
    }

    /// There was a hint.
    pub fn hint(&mut self) {
        self.due = true;
        self.look(Instant::now());
    }

    /// The guest has sent a command. After a save it does so only if it goes on.
    pub fn on_command(&mut self) {
        self.marked = self.marked && is_saved_by(Path::new("/proc"), self.domid);
    }

    /// When [`look`](Self::look) wants to be called.
    pub fn deadline(&self) -> Option<Instant> {
        self.next.filter(|_| self.due)
    }

    /// Looks, if it is time.
    pub fn look(&mut self, now: Instant) {
        if self.due && self.next.is_none_or(|next| next <= now) {
            self.due = false;
            self.next = Some(now + INTERVAL);
            // Not unmarked here: the hint comes once more when the guest's nodes are removed.
            if is_saved_by(Path::new("/proc"), self.domid) && !self.marked {
                log::info!("domain {}: is being saved", self.domid);
                self.marked = true;
            }
        }
    }
}

/// Whether a process of root's is saving the domain.
fn is_saved_by(proc: &Path, domid: u16) -> bool {
    let Ok(entries) = fs::read_dir(proc) else {
        return false;
    };
    let saves = |folder: &Path| {
        let comm = fs::read_to_string(folder.join("comm")).ok()?;
        if comm.trim_end() != HELPER || fs::metadata(folder).ok()?.uid() != 0 {
            return None;
        }
        let line = fs::read(folder.join("cmdline")).ok()?;
        Some(says_save(&line, domid))
    };

    entries
        .flatten()
        .any(|entry| saves(&entry.path()).unwrap_or(false))
}

/// Whether the arguments are `HELPER --save-domain FD FD DOMID ...`.
fn says_save(cmdline: &[u8], domid: u16) -> bool {
    let domid = domid.to_string();
    let arguments: Vec<_> = cmdline.split(|b| *b == 0).collect();

    arguments.get(1) == Some(&b"--save-domain".as_slice())
        && arguments.get(4) == Some(&domid.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(arguments: &str) -> Vec<u8> {
        arguments.replace(' ', "\0").into_bytes()
    }

    #[test]
    fn the_helpers_arguments() {
        let save = line("/usr/lib/libxl-save-helper --save-domain 8 -1 7 0 0 0 1 0 ");

        assert!(says_save(&save, 7));
        assert!(!says_save(&save, 1));
        assert!(!says_save(&save, 8));
        assert!(!says_save(&line("x --restore-domain 8 -1 7 0 "), 7));
        assert!(!says_save(b"", 7));
    }

    #[test]
    fn hints_are_many_and_looks_few() {
        let mut saving = Saving::new(0x7fef);

        saving.hint();
        assert_eq!(saving.deadline(), None);
        saving.hint();
        let deadline = saving.deadline().unwrap();
        saving.look(deadline - INTERVAL);
        assert_eq!(saving.deadline(), Some(deadline));
        saving.look(deadline);
        assert_eq!(saving.deadline(), None);
        assert!(!saving.is_marked());
    }
}
