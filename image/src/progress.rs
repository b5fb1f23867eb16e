//! How the store tells its caller what it is doing.

use std::io::Read;

use tokio::sync::mpsc;

use crate::cancel::Cancelled;

/// Receives progress; the command line draws bars or prints lines. Several items may be under way at once. Called from the task that runs
/// [`Store::get`](crate::Store::get).
pub trait Progress: Send + Sync {
    /// Work on an item (a layer, by its short digest) begins; the size in bytes if known.
    fn started(&self, item: &str, total_bytes: Option<u64>);
    /// So many more bytes of the item are done.
    fn advanced(&self, item: &str, bytes: u64);
    /// The item is complete.
    fn finished(&self, item: &str);
    /// Something worth a line.
    fn message(&self, text: &str);
    /// Why nothing happens: somebody else must be done first. A user who wants no other line still wants this one.
    fn waiting(&self, text: &str) {
        self.message(text);
    }
}

/// Ignores all progress.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoProgress;

impl Progress for NoProgress {
    fn started(&self, _item: &str, _total_bytes: Option<u64>) {}
    fn advanced(&self, _item: &str, _bytes: u64) {}
    fn finished(&self, _item: &str) {}
    fn message(&self, _text: &str) {}
}

/// What a worker thread reports; the task that waits for it hands it to the [`Progress`].
pub(crate) enum Event {
    Started { item: String, total_bytes: Option<u64> },
    Advanced { item: String, bytes: u64 },
    Finished { item: String },
    Message(String),
}

impl Event {
    pub(crate) fn report(&self, progress: &dyn Progress) {
        match self {
            Event::Started { item, total_bytes } => progress.started(item, *total_bytes),
            Event::Advanced { item, bytes } => progress.advanced(item, *bytes),
            Event::Finished { item } => progress.finished(item),
            Event::Message(text) => progress.message(text),
        }
    }
}

/// A worker's end of the channel. When the caller gave up (its future was dropped), sending fails and so
/// the worker ends.
#[derive(Clone)]
pub(crate) struct Reporter {
    sender: mpsc::Sender<Event>,
}

impl Reporter {
    pub(crate) fn channel() -> (Reporter, mpsc::Receiver<Event>) {
        let (sender, receiver) = mpsc::channel(64);
        (Reporter { sender }, receiver)
    }

    pub(crate) fn send(&self, event: Event) -> std::io::Result<()> {
        self.sender.blocking_send(event).map_err(|_| Cancelled.into())
    }
}

/// Reports how much was read, in steps that are not too small.
pub(crate) struct ReportingReader<R> {
    inner: R,
    item: String,
    reporter: Reporter,
    pending_bytes: u64,
}

const STEP_BYTES: u64 = 256 << 10;

impl<R: Read> ReportingReader<R> {
    pub(crate) fn new(inner: R, item: String, reporter: Reporter) -> Self {
        ReportingReader { inner, item, reporter, pending_bytes: 0 }
    }
}

impl<R: Read> Read for ReportingReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.pending_bytes += read as u64;
        if self.pending_bytes >= STEP_BYTES || (read == 0 && self.pending_bytes > 0) {
            let bytes = std::mem::take(&mut self.pending_bytes);
            self.reporter.send(Event::Advanced { item: self.item.clone(), bytes })?;
        }
        Ok(read)
    }
}
