//! Giving up work that runs on another thread.

use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A flag that whoever works looks at in each loop; clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cancel(Arc<AtomicBool>);

impl Cancel {
    pub(crate) fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// An error once the work is given up.
    pub(crate) fn check(&self) -> Result<(), Cancelled> {
        if self.0.load(Ordering::Relaxed) { Err(Cancelled) } else { Ok(()) }
    }

    /// Gives the work up when the guard is dropped: with the future that waits for the work.
    #[must_use]
    pub(crate) fn on_drop(&self) -> CancelOnDrop {
        CancelOnDrop(self.clone())
    }
}

/// A stream that ends with an error once the work is given up.
pub(crate) struct CancellableReader<R> {
    inner: R,
    cancel: Cancel,
}

impl<R: Read> CancellableReader<R> {
    pub(crate) fn new(inner: R, cancel: &Cancel) -> Self {
        CancellableReader { inner, cancel: cancel.clone() }
    }
}

impl<R: Read> Read for CancellableReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.cancel.check()?;
        self.inner.read(buffer)
    }
}

/// See [`Cancel::on_drop`].
pub(crate) struct CancelOnDrop(Cancel);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// The caller stopped waiting, or something else failed.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("Cancelled")]
pub(crate) struct Cancelled;

impl From<Cancelled> for std::io::Error {
    fn from(cancelled: Cancelled) -> Self {
        std::io::Error::other(cancelled)
    }
}
