//! The way of a blob from the network to the thread that unpacks it.
//!
//! Layers are unpacked one after the other but fetched several at once. A blob whose turn has not come waits in an
//! unnamed file; from its turn on, what still comes passes through memory alone.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::Notify;

use crate::cancel::{Cancel, Cancelled};
use crate::limits::Limits;

/// Bytes that may wait in memory between the network and the decompression.
const QUEUE_BYTES: usize = 1 << 20;

/// Disk space for blobs that wait for their turn, shared by those of one image.
pub(crate) struct Ahead {
    dir: PathBuf,
    left_bytes: Mutex<u64>,
}

impl Ahead {
    /// At most an eighth of what the file system of `dir` can spare: the image itself needs space too.
    pub(crate) fn new(dir: &Path, limits: &Limits) -> Self {
        let free_bytes = rustix::fs::statvfs(dir).map_or(0, |status| status.f_bavail.saturating_mul(status.f_frsize));
        let spare_bytes = free_bytes.saturating_sub(limits.min_free_bytes) / 8;
        Ahead { dir: dir.to_owned(), left_bytes: Mutex::new(spare_bytes.min(limits.max_ahead_bytes)) }
    }

    fn take(&self, bytes: u64) -> bool {
        let mut left = lock(&self.left_bytes);
        let enough = *left >= bytes;
        if enough {
            *left -= bytes;
        }
        enough
    }

    fn give_back(&self, bytes: u64) {
        *lock(&self.left_bytes) += bytes;
    }
}

/// Makes both ends for one blob. A reader gives up with an error when `cancel` says so.
pub(crate) fn pipe(ahead: &Arc<Ahead>, cancel: &Cancel) -> (BlobSender, BlobReader) {
    let shared = Arc::new(Shared {
        state: Mutex::default(),
        readable: Condvar::new(),
        writable: Notify::new(),
        ahead: ahead.clone(),
        cancel: cancel.clone(),
    });
    (BlobSender(shared.clone()), BlobReader(shared))
}

struct Shared {
    state: Mutex<State>,
    readable: Condvar,
    writable: Notify,
    ahead: Arc<Ahead>,
    cancel: Cancel,
}

#[derive(Default)]
struct State {
    /// The reader has begun. From then on nothing is written to the file, so all of it comes before the queue.
    begun: bool,
    reader_gone: bool,
    end: Option<End>,
    file: Option<File>,
    /// Bytes in the file, and how many of them were read.
    written_bytes: u64,
    read_bytes: u64,
    queue: VecDeque<Bytes>,
    queued_bytes: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Complete,
    Aborted,
}

/// The network's end. Dropping it without [`finish`](Self::finish) makes the reader fail.
pub(crate) struct BlobSender(Arc<Shared>);

/// The reader went away: nobody wants the blob any more.
#[derive(Debug)]
pub(crate) struct Unwanted;

impl BlobSender {
    /// Passes on a piece; waits while there is no room for it.
    pub(crate) async fn send(&self, piece: Bytes) -> Result<(), Unwanted> {
        loop {
            {
                let mut state = lock(&self.0.state);
                if state.reader_gone {
                    return Err(Unwanted);
                }
                let taken = if state.begun { state.enqueue(&piece) } else { state.store(&piece, &self.0.ahead) };
                if taken {
                    self.0.readable.notify_one();
                    return Ok(());
                }
            }
            // There is one sender, and a notification that comes first is kept for it.
            self.0.writable.notified().await;
        }
    }

    /// All of the blob was sent.
    pub(crate) fn finish(self) {
        lock(&self.0.state).end = Some(End::Complete);
    }
}

impl Drop for BlobSender {
    fn drop(&mut self) {
        lock(&self.0.state).end.get_or_insert(End::Aborted);
        self.0.readable.notify_one();
    }
}

impl State {
    fn enqueue(&mut self, piece: &Bytes) -> bool {
        let room = self.queued_bytes < QUEUE_BYTES;
        if room {
            self.queued_bytes += piece.len();
            self.queue.push_back(piece.clone());
        }
        room
    }

    /// Writes a piece to the file. Where that can't be, the blob just waits for its turn. (Such a short write to the
    /// page cache is not worth a thread of its own.)
    fn store(&mut self, piece: &Bytes, ahead: &Ahead) -> bool {
        let bytes = piece.len() as u64;
        if !ahead.take(bytes) {
            return false;
        }
        match self.write(piece, &ahead.dir) {
            Ok(()) => self.written_bytes += bytes,
            Err(error) => {
                tracing::debug!(%error, "cannot fetch ahead");
                ahead.give_back(bytes);
                return false;
            }
        }
        true
    }

    fn write(&mut self, piece: &[u8], dir: &Path) -> std::io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(tempfile::tempfile_in(dir)?),
        };
        file.write_all_at(piece, self.written_bytes)
    }

    /// Removes the file.
    fn discard(&mut self, ahead: &Ahead) {
        self.file = None;
        ahead.give_back(std::mem::take(&mut self.written_bytes));
        self.read_bytes = 0;
    }
}

/// The unpacking thread's end. Its first `read` is the blob's turn.
pub(crate) struct BlobReader(Arc<Shared>);

impl Read for BlobReader {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let shared = &*self.0;
        let mut state = lock(&shared.state);
        if !state.begun {
            state.begun = true;
            shared.writable.notify_one();
        }
        loop {
            shared.cancel.check()?;
            if let Some(read) = state.read_file(buffer)? {
                if state.read_bytes == state.written_bytes {
                    state.discard(&shared.ahead);
                }
                return Ok(read);
            }
            if let Some(read) = state.read_queue(buffer) {
                shared.writable.notify_one();
                return Ok(read);
            }
            match state.end {
                Some(End::Complete) => return Ok(0),
                Some(End::Aborted) => return Err(Cancelled.into()),
                None => state = shared.readable.wait(state).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }
}

impl State {
    fn read_file(&mut self, buffer: &mut [u8]) -> std::io::Result<Option<usize>> {
        let Some(file) = &self.file else { return Ok(None) };
        let left = usize::try_from(self.written_bytes - self.read_bytes).unwrap_or(usize::MAX);
        let length = left.min(buffer.len());
        if length == 0 {
            return Ok(None);
        }
        file.read_exact_at(buffer.get_mut(..length).unwrap_or_default(), self.read_bytes)?;
        self.read_bytes += length as u64;
        Ok(Some(length))
    }

    fn read_queue(&mut self, buffer: &mut [u8]) -> Option<usize> {
        let piece = self.queue.front_mut()?;
        let length = piece.len().min(buffer.len());
        buffer.get_mut(..length).unwrap_or_default().copy_from_slice(&piece.split_to(length));
        if piece.is_empty() {
            self.queue.pop_front();
        }
        self.queued_bytes -= length;
        Some(length)
    }
}

impl Drop for BlobReader {
    fn drop(&mut self) {
        let mut state = lock(&self.0.state);
        state.reader_gone = true;
        state.queue.clear();
        state.queued_bytes = 0;
        state.discard(&self.0.ahead);
        drop(state);
        self.0.writable.notify_one();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    fn ends(bytes: u64) -> (BlobSender, BlobReader, Arc<Ahead>, Cancel, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let limits = Limits { max_ahead_bytes: bytes, ..Limits::default() };
        let (ahead, cancel) = (Arc::new(Ahead::new(dir.path(), &limits)), Cancel::default());
        let (sender, reader) = pipe(&ahead, &cancel);
        (sender, reader, ahead, cancel, dir)
    }

    /// Whether a piece is taken without waiting.
    fn offer(sender: &BlobSender, piece: &'static [u8]) -> bool {
        sender.send(Bytes::from_static(piece)).now_or_never().is_some()
    }

    #[test]
    fn bytes_come_in_order_before_and_after_the_turn() {
        let (sender, mut reader, ahead, _, _dir) = ends(6);
        assert!(offer(&sender, b"abc") && offer(&sender, b"def"));
        assert!(!offer(&sender, b"g"), "the space for waiting is used up");
        let mut buffer = [0; 2];
        reader.read_exact(&mut buffer).unwrap();
        assert!(offer(&sender, b"gh") && offer(&sender, b"ij"));
        sender.finish();
        let mut rest = String::new();
        reader.read_to_string(&mut rest).unwrap();
        assert_eq!((&buffer, rest.as_str()), (b"ab", "cdefghij"));
        assert_eq!(*lock(&ahead.left_bytes), 6, "space is given back");
        let full = Limits { min_free_bytes: u64::MAX, ..Limits::default() };
        assert_eq!(*lock(&Ahead::new(Path::new("/tmp"), &full).left_bytes), 0);
    }

    #[test]
    fn from_its_turn_on_a_blob_waits_for_room_in_memory() {
        let (sender, mut reader, _, _, _dir) = ends(100);
        let large: &'static [u8] = Box::leak(vec![7; QUEUE_BYTES].into_boxed_slice());
        assert!(offer(&sender, b"a"));
        reader.read_exact(&mut [0]).unwrap();
        assert!(offer(&sender, large) && !offer(&sender, b"b"));
        reader.read_exact(&mut [0; 10]).unwrap();
        assert!(offer(&sender, b"b"));
    }

    #[test]
    fn either_end_notices_that_the_other_is_gone() {
        let (sender, mut reader, _, _, dir) = ends(100);
        assert!(offer(&sender, b"half"));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "what waits has no name");
        drop(sender);
        let error = reader.read_to_end(&mut Vec::new()).unwrap_err();
        assert_eq!(error.to_string(), "Cancelled");
        let (sender, reader, ahead, _, _dir) = ends(100);
        assert!(offer(&sender, b"half"));
        drop(reader);
        assert!(matches!(sender.send(Bytes::from_static(b"x")).now_or_never(), Some(Err(Unwanted))));
        assert_eq!(*lock(&ahead.left_bytes), 100);
    }

    #[test]
    fn a_reader_stops_in_the_middle_when_the_work_is_given_up() {
        let (sender, mut reader, _, cancel, _dir) = ends(100);
        assert!(offer(&sender, b"half"));
        sender.finish();
        reader.read_exact(&mut [0]).unwrap();
        cancel.cancel();
        assert!(reader.read(&mut [0]).is_err());
    }
}
