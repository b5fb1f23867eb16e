//! Locks of the store. Whoever holds one has written its process ID into the lock's file; the kernel releases the locks
//! of a process that dies.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::FlockOperation;

use super::files::{Layout, try_lock};

/// Polls after which the user is told what is waited for: some two seconds. A short wait is not worth a line.
const TELL_AFTER_POLLS: u32 = 40;

/// Who holds a lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Holder(Option<u32>);

impl fmt::Display for Holder {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(process) => write!(formatter, "process {process}"),
            None => formatter.write_str("another process"),
        }
    }
}

impl Layout {
    /// Waits for its turn to build an image; `waiting` is told once for whom. Whoever waits finds the image built when
    /// its turn comes.
    pub(super) async fn lock_build(&self, key: &str, waiting: impl Fn(Holder)) -> std::io::Result<BuildLock> {
        let path = self.locks_dir().join(key);
        let mut polls = 0;
        loop {
            let file = open(&path)?;
            if try_lock(&file, FlockOperation::NonBlockingLockExclusive)? {
                // The holder before us removed the file: others lock another one now.
                if file.metadata()?.nlink() > 0 {
                    write_holder(&file);
                    return Ok(BuildLock { path, _file: file });
                }
                continue;
            }
            self.pause(&mut polls, &file, &waiting).await;
        }
    }

    /// Keeps images from being removed (shared) or used and added (exclusive). Held for moments only, unless its
    /// holder is stopped; `waiting` is told once for whom.
    pub(super) async fn lock_store(&self, exclusive: bool, waiting: impl Fn(Holder)) -> std::io::Result<StoreLock> {
        let mut polls = 0;
        loop {
            match self.try_lock_store(exclusive)? {
                Ok(lock) => return Ok(lock),
                Err(file) => self.pause(&mut polls, &file, &waiting).await,
            }
        }
    }

    /// Like [`lock_store`](Self::lock_store) for commands that take a moment themselves: gives up in the end.
    pub(super) fn lock_store_soon(
        &self,
        exclusive: bool,
        patience: Duration,
    ) -> std::io::Result<Result<StoreLock, Holder>> {
        let mut left = patience;
        loop {
            match self.try_lock_store(exclusive)? {
                Ok(lock) => return Ok(Ok(lock)),
                Err(file) if left.is_zero() => return Ok(Err(holder(&file))),
                Err(_) => std::thread::sleep(self.poll.min(left)),
            }
            left = left.saturating_sub(self.poll);
        }
    }

    async fn pause(&self, polls: &mut u32, file: &File, waiting: &impl Fn(Holder)) {
        if *polls == TELL_AFTER_POLLS {
            waiting(holder(file));
        }
        *polls = polls.saturating_add(1);
        tokio::time::sleep(self.poll).await;
    }

    /// The lock, or the file that somebody else holds locked.
    fn try_lock_store(&self, exclusive: bool) -> std::io::Result<Result<StoreLock, File>> {
        let file = open(&self.root().join("lock"))?;
        let operation = match exclusive {
            true => FlockOperation::NonBlockingLockExclusive,
            false => FlockOperation::NonBlockingLockShared,
        };
        if !try_lock(&file, operation)? {
            return Ok(Err(file));
        }
        match exclusive {
            true => write_holder(&file),
            // Many may share it: then nobody is named.
            false => drop(file.set_len(0)),
        }
        Ok(Ok(StoreLock { _file: file }))
    }
}

fn open(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path)
}

/// Without space on the disk nobody is named; the lock itself needs none, and `rmi` must work then.
fn write_holder(mut file: &File) {
    let _ = file.set_len(0).and_then(|()| file.write_all(std::process::id().to_string().as_bytes()));
}

fn holder(file: &File) -> Holder {
    let mut text = String::new();
    let read = file.take(16).read_to_string(&mut text);
    Holder(read.ok().and_then(|_| text.parse().ok()))
}

/// The right to build one image.
#[derive(Debug)]
pub(super) struct BuildLock {
    path: PathBuf,
    _file: File,
}

impl Drop for BuildLock {
    fn drop(&mut self) {
        // Removed while still locked, so that nobody else can hold the same file.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// See [`Layout::lock_store`].
#[derive(Debug)]
pub(super) struct StoreLock {
    _file: File,
}
