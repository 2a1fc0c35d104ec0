// SPDX-License-Identifier: GPL-2.0

//! What swtpm, swtpm_setup and the I/O process write to standard error: it goes to the log line by line, at a
//! limited rate and without control characters, for whoever is compromised may write anything.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};

/// The longest line that is passed on.
const MAX_LINE: usize = 500;

/// How much is read at once; more waits for the next turn.
const MAX_READ: usize = 4096;

/// The reader.
#[derive(Debug)]
pub struct Messages {
    file: File,
    line: Vec<u8>,
    last: Option<String>,
}

impl Messages {
    /// Of a FIFO that does not block.
    pub fn new(file: File) -> Self {
        Self {
            file,
            line: Vec::new(),
            last: None,
        }
    }

    /// For what is started to write to.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The whole lines that have arrived.
    pub fn take(&mut self) -> Vec<String> {
        let mut lines = Vec::new();
        let mut bytes = [0; MAX_READ];
        let Ok(n) = self.file.read(&mut bytes) else {
            return lines;
        };
        for byte in &bytes[..n] {
            match byte {
                b'\n' => lines.extend(self.end_of_line()),
                _ if self.line.len() < MAX_LINE => self.line.push(*byte),
                _ => (),
            }
        }
        lines
    }

    fn end_of_line(&mut self) -> Option<String> {
        let line = printable(&std::mem::take(&mut self.line));
        if line.is_empty() {
            return None;
        }
        self.last = Some(line.clone());
        Some(line)
    }

    /// The last line so far: of a process that has ended, most often the reason.
    pub fn last(&mut self) -> Option<String> {
        // A last one need not end.
        self.end_of_line();
        self.last.take()
    }
}

impl AsFd for Messages {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn printable(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line);
    let text = text.trim().chars().map(|c| match c.is_control() {
        true => '\u{fffd}',
        false => c,
    });
    text.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn lines_without_control_characters_and_without_end() {
        let folder = tempfile::tempdir().unwrap();
        let run = crate::record::RunDir::at(folder.path().to_owned());
        let mut messages = Messages::new(run.messages().unwrap());
        let mut swtpm = run.messages().unwrap();

        assert!(messages.take().is_empty());
        swtpm.write_all(b"one\n\x1b[2J<0>two\r\n\n  \nthr").unwrap();
        assert_eq!(messages.take(), ["one", "\u{fffd}[2J<0>two"]);
        swtpm.write_all(&[b'x'; 3000]).unwrap();
        swtpm.write_all(b"\nlast").unwrap();
        let lines = messages.take();
        assert_eq!((lines.len(), lines[0].len()), (1, MAX_LINE));
        assert_eq!(messages.last().as_deref(), Some("last"));
        assert_eq!(messages.last(), None);
    }

    #[test]
    fn a_flood_ends_with_the_pipe() {
        let folder = tempfile::tempdir().unwrap();
        let run = crate::record::RunDir::at(folder.path().to_owned());
        let mut swtpm = run.messages().unwrap();
        // Nobody reads: it is told so, and goes on.
        while swtpm.write_all(&[b'x'; 4096]).is_ok() {}
    }
}
