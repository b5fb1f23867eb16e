//! What the kernel says of changes in directories (inotify(7)).
#![allow(unsafe_code, reason = "registering a descriptor with the event loop")]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use tokio::io::unix::AsyncFd;

/// Room for one event with the longest name, and for many with short ones.
const BUFFER_BYTES: usize = 4096;
/// Most events that are read before others have a turn. The kernel keeps the rest.
const MAX_EVENTS: usize = 1024;

/// Watches over directories. The descriptor is not inherited.
#[derive(Debug)]
pub struct Changes(AsyncFd<OwnedFd>);

/// A change of something in a watched directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// In this one.
    In(i32),
    /// Perhaps in each: the kernel could not keep them all.
    Somewhere,
}

impl Changes {
    /// None is watched yet.
    pub fn new() -> io::Result<Self> {
        let descriptor = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        // SAFETY: the AsyncFd owns the descriptor, which nothing replaces or closes while it is registered.
        Ok(Self(unsafe { AsyncFd::register(descriptor) }?))
    }

    /// Watches what is made, removed and renamed in a directory. The answer is its number, the same for the same directory.
    pub fn watch(&self, directory: &Path) -> io::Result<i32> {
        let names = WatchFlags::CREATE | WatchFlags::DELETE | WatchFlags::MOVED_FROM | WatchFlags::MOVED_TO;
        Ok(inotify::add_watch(self.0.get_ref(), directory, names | WatchFlags::ONLYDIR)?)
    }

    /// Ends a watch. One whose directory is gone has ended before.
    pub fn forget(&self, number: i32) {
        let _ = inotify::remove_watch(self.0.get_ref(), number);
    }

    /// Waits for changes and hands them over.
    pub async fn next(&self, mut take: impl FnMut(Change)) -> io::Result<()> {
        let mut ready = self.0.readable().await?;
        let mut buffer = [MaybeUninit::uninit(); BUFFER_BYTES];
        let mut reader = Reader::new(self.0.get_ref(), &mut buffer);
        for _ in 0..MAX_EVENTS {
            match reader.next() {
                Ok(event) if event.events().contains(ReadFlags::QUEUE_OVERFLOW) => take(Change::Somewhere),
                Ok(event) => take(Change::In(event.wd())),
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    ready.clear_ready();
                    return Ok(());
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}
