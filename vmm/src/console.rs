//! What the guest's kernel and init say: the end of it is kept for error reports, all of it can go to a file or to standard error.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::{Arc, Mutex, PoisonError};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::config;
use crate::virtio::console::ConsoleSink;

/// How much is kept in memory.
const TAIL_BYTES: usize = 16 << 10;
/// How much of it goes into a report.
const REPORT_BYTES: usize = 4 << 10;
/// Longest log file: a guest must not fill the host's disk.
const FILE_MAX_BYTES: u64 = 64 << 20;
/// A pipe that poll calls writable takes this much without waiting.
const PIPE_CHUNK_BYTES: usize = 4096;

/// The guest's console output.
pub struct ConsoleLog {
    inner: Mutex<Inner>,
}

struct Inner {
    tail: VecDeque<u8>,
    file: Option<File>,
    file_bytes: u64,
    to_stderr: bool,
}

impl ConsoleLog {
    /// Keeps the end in memory only.
    pub fn in_memory() -> Self {
        let inner = Inner { tail: VecDeque::new(), file: None, file_bytes: 0, to_stderr: false };
        Self { inner: Mutex::new(inner) }
    }

    /// Opens the log file, if one is configured. It is appended to.
    pub fn open(config: &config::Console) -> io::Result<Self> {
        let log = Self::in_memory();
        {
            let mut inner = log.lock();
            inner.to_stderr = config.to_stderr;
            if let Some(path) = &config.log_path {
                // Non-blocking, so that a FIFO without a reader is an error and not a wait.
                let file = OpenOptions::new()
                    .append(true)
                    .create(true)
                    .mode(0o600)
                    .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
                    .open(path)?;
                inner.file_bytes = file.metadata()?.len();
                inner.file = Some(file);
            }
        }
        Ok(log)
    }

    /// Takes output. Never waits for a reader: what can't be written at once is dropped, except from the tail in memory.
    pub fn write(&self, bytes: &[u8]) {
        self.lock().write(bytes);
    }

    /// The last lines, at most 4 KiB, without what is not text.
    pub fn tail(&self) -> String {
        let inner = self.lock();
        let skip = inner.tail.len().saturating_sub(REPORT_BYTES);
        let bytes: Vec<u8> = inner.tail.iter().skip(skip).copied().filter(|b| *b != b'\r').collect();
        let mut text: String =
            String::from_utf8_lossy(&bytes).chars().filter(|c| !c.is_control() || matches!(c, '\n' | '\t')).collect();
        while text.len() > REPORT_BYTES {
            text.remove(0);
        }
        text
    }

    /// The last line that contains `words`, if it is still in memory, without what is not text.
    pub fn last_line_with(&self, words: &str) -> Option<String> {
        let bytes: Vec<u8> = self.lock().tail.iter().copied().collect();
        let text = String::from_utf8_lossy(&bytes);
        text.lines().rev().find(|line| line.contains(words)).map(plain)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A line for a message: a guest must not reach the terminal of whoever reads it.
fn plain(line: &str) -> String {
    line.trim().chars().filter(|c| !c.is_control()).take(200).collect()
}

impl ConsoleSink for Arc<ConsoleLog> {
    fn write(&mut self, bytes: &[u8]) {
        ConsoleLog::write(self, bytes);
    }
}

impl Inner {
    fn write(&mut self, bytes: &[u8]) {
        let kept = bytes.get(bytes.len().saturating_sub(TAIL_BYTES)..).unwrap_or_default();
        let excess = (self.tail.len() + kept.len()).saturating_sub(TAIL_BYTES);
        self.tail.drain(..excess);
        self.tail.extend(kept);
        self.write_file(bytes);
        if self.to_stderr {
            write_if_ready(bytes);
        }
    }

    fn write_file(&mut self, bytes: &[u8]) {
        let Some(file) = &mut self.file else { return };
        let room = usize::try_from(FILE_MAX_BYTES.saturating_sub(self.file_bytes)).unwrap_or(0);
        let part = bytes.get(..room.min(bytes.len())).unwrap_or_default();
        self.file_bytes += part.len() as u64;
        let full = part.len() < bytes.len();
        // A full disk costs the log, not the VM.
        if file.write_all(part).is_err() || full {
            if full {
                let _ = file.write_all(b"\n[hull-vmm: log file is full]\n");
            }
            self.file = None;
        }
    }
}

/// Writes to standard error what it takes without waiting.
fn write_if_ready(bytes: &[u8]) {
    let stderr = io::stderr();
    for chunk in bytes.chunks(PIPE_CHUNK_BYTES) {
        let mut fds = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
        if !matches!(poll(&mut fds, PollTimeout::ZERO), Ok(1)) || stderr.lock().write_all(chunk).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests stop at the first surprise")]

    use super::*;

    #[test]
    fn only_the_end_is_kept() {
        let log = ConsoleLog::in_memory();
        for _ in 0..10_000 {
            log.write(b"0123456789\n");
        }
        log.write(b"Kernel panic - not syncing: end\r\n\x1b[0m");
        assert!(log.tail().len() <= REPORT_BYTES);
        assert!(log.tail().ends_with("not syncing: end\n[0m"), "{:?}", log.tail());
        assert_eq!(log.lock().tail.len(), TAIL_BYTES);
        assert_eq!(log.last_line_with("Kernel panic").unwrap(), "Kernel panic - not syncing: end");
    }

    #[test]
    fn a_line_for_a_message_has_no_control_characters() {
        let log = ConsoleLog::in_memory();
        log.write(b"Kernel panic \x1b]0;title\x07\xc2\x9b2J end\n");
        assert_eq!(log.last_line_with("Kernel panic").unwrap(), "Kernel panic ]0;title2J end");
    }

    #[test]
    fn one_huge_write_is_cut() {
        let log = ConsoleLog::in_memory();
        log.write(&vec![b'x'; 1 << 20]);
        assert_eq!(log.lock().tail.len(), TAIL_BYTES);
    }

    #[test]
    fn bytes_that_are_not_text_stay_bounded() {
        let log = ConsoleLog::in_memory();
        log.write(&[0xff; TAIL_BYTES]);
        assert!(log.tail().len() <= REPORT_BYTES);
    }

    #[test]
    fn the_log_file_gets_everything_up_to_its_limit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        let log =
            ConsoleLog::open(&config::Console { log_path: Some(path.clone()), ..config::Console::default() }).unwrap();
        log.write(b"hello");
        log.lock().file_bytes = FILE_MAX_BYTES - 1;
        log.write(b"XY");
        log.write(b"Z");
        assert_eq!(std::fs::read(path).unwrap(), b"helloX\n[hull-vmm: log file is full]\n");
    }

    #[test]
    fn a_fifo_without_reader_is_an_error_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fifo");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(ConsoleLog::open(&config::Console { log_path: Some(path), ..config::Console::default() }).is_err());
    }
}
