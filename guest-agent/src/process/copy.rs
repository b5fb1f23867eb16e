//! Moves bytes between a process and its streams.
//!
//! `splice` moves pipe to socket (and socket to pipe) without a copy through the agent. A terminal is no pipe: its bytes
//! go through a buffer. Every task waits only for its own two descriptors, so that a slow reader holds up nothing else.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{SpliceFFlags, splice};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::isatty;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, watch};

/// Most bytes that are moved at once.
const CHUNK_BYTES: usize = 64 << 10;

/// How long a process's output may stay open and silent after its end, before the output counts as complete. Only a
/// process that left others behind, which hold its output, comes to this. The stream stays open for them.
const LEFT_BEHIND_GRACE: Duration = Duration::from_secs(1);

/// Where bytes come from or go to.
pub type Fd = AsyncFd<OwnedFd>;

/// Moves a process's output to the host until its end. `drained` becomes true when everything that the process wrote
/// has been handed over.
///
/// A host that closes the stream early ends the output: the process sees a broken pipe, as with any reader that goes away.
/// A terminal has no such thing; its output is read and dropped from then on.
pub async fn output(source: Fd, sink: Option<Fd>, mut ended: watch::Receiver<bool>, drained: watch::Sender<bool>) {
    let mut mover = Mover::new();
    let mut sink = sink;
    loop {
        let silent = async {
            let _ = ended.wait_for(|ended| *ended).await;
            tokio::time::sleep(LEFT_BEHIND_GRACE).await;
        };
        let moving = async {
            match &sink {
                Some(to) => mover.step(&source, to).await,
                None => discard(&source).await,
            }
        };
        let moved = tokio::select! {
            moved = moving => moved,
            () = silent, if !*drained.borrow() => {
                // A host that reads slowly is waited for as long as it takes.
                if mover.pending.is_empty() && !ready(&source, PollFlags::POLLIN) {
                    drained.send_replace(true);
                }
                continue;
            }
        };
        match moved {
            Ok(0) | Err(Stopped::Source) => break,
            Ok(_) => {}
            Err(Stopped::Sink) if isatty(source.get_ref()).unwrap_or(false) => sink = None,
            Err(Stopped::Sink) => break,
        }
    }
    if let Some(sink) = sink {
        shut(&sink);
    }
    drained.send_replace(true);
}

/// Moves the host's bytes to a process until the host closes the stream, the process closes its end, or `close` asks
/// for it: then what has arrived is delivered first.
pub async fn input(source: Fd, sink: Fd, close: Arc<Notify>) {
    let mut mover = Mover::new();
    let mut closing = false;
    loop {
        if closing && !ready(&source, PollFlags::POLLIN) {
            break;
        }
        tokio::select! {
            moved = mover.step(&source, &sink) => match moved {
                Ok(0) | Err(_) => break,
                Ok(_) => {}
            },
            // Moving waits for the source first: nothing is lost when this interrupts it, and a sink that is full is
            // waited for without interruption because `step` is started again.
            () = close.notified(), if !closing => closing = true,
        }
    }
}

/// One end is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stopped {
    Source,
    Sink,
}

/// Moves one chunk after the other, by the best way that works for the two descriptors.
struct Mover {
    way: Way,
    /// Bytes that were read and are not yet written; survives an interrupted [`Mover::step`].
    pending: std::ops::Range<usize>,
}

enum Way {
    Splice,
    Buffer(Box<[u8]>),
}

impl Mover {
    fn new() -> Self {
        Self { way: Way::Splice, pending: 0..0 }
    }

    /// Moves some bytes; 0 means the end of the source. May be dropped and started again at any point.
    async fn step(&mut self, source: &Fd, sink: &Fd) -> Result<usize, Stopped> {
        loop {
            match &mut self.way {
                Way::Splice => match splice_some(source, sink).await {
                    Err(Errno::EINVAL) => {
                        self.way = Way::Buffer(vec![0; CHUNK_BYTES].into_boxed_slice());
                    }
                    Ok(count) => return Ok(count),
                    Err(Errno::EPIPE) => return Err(Stopped::Sink),
                    // A reset connection is one end or the other; the next read of a pipe tells.
                    Err(_) if ready(sink, PollFlags::POLLERR | PollFlags::POLLHUP) => {
                        return Err(Stopped::Sink);
                    }
                    Err(_) => return Err(Stopped::Source),
                },
                Way::Buffer(buffer) => {
                    if self.pending.is_empty() {
                        let count = read(source, buffer).await.map_err(|_| Stopped::Source)?;
                        if count == 0 {
                            return Ok(0);
                        }
                        self.pending = 0..count;
                    }
                    let mut moved = 0;
                    while let Some(rest) = buffer.get(self.pending.clone()).filter(|r| !r.is_empty()) {
                        let count = write(sink, rest).await.map_err(|_| Stopped::Sink)?;
                        self.pending.start += count;
                        moved += count;
                    }
                    return Ok(moved);
                }
            }
        }
    }
}

async fn splice_some(source: &Fd, sink: &Fd) -> Result<usize, Errno> {
    let flags = SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK;
    loop {
        let mut readable = source.readable().await.map_err(|_| Errno::EIO)?;
        let mut writable = sink.writable().await.map_err(|_| Errno::EIO)?;
        match splice(source.get_ref(), None, sink.get_ref(), None, CHUNK_BYTES, flags) {
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => {
                // The kernel doesn't say which end isn't ready, and clearing the wrong one would wait for ever.
                if !ready(source, PollFlags::POLLIN | PollFlags::POLLHUP) {
                    readable.clear_ready();
                }
                if !ready(sink, PollFlags::POLLOUT) {
                    writable.clear_ready();
                }
                tokio::task::yield_now().await;
            }
            result => return result,
        }
    }
}

async fn discard(source: &Fd) -> Result<usize, Stopped> {
    let mut buffer = [0; 4096];
    read(source, &mut buffer).await.map_err(|_| Stopped::Source)
}

/// Reads what is there. A terminal whose other side is closed answers EIO, which is its end.
async fn read(source: &Fd, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        let mut guard = source.readable().await?;
        match nix::unistd::read(source, buffer) {
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) if guard.ready().is_read_closed() => return Err(hung_up()),
            Err(Errno::EAGAIN) => guard.clear_ready(),
            result => return Ok(result?),
        }
    }
}

/// Writes what fits.
async fn write(sink: &Fd, bytes: &[u8]) -> io::Result<usize> {
    loop {
        let mut guard = sink.writable().await?;
        match nix::unistd::write(sink, bytes) {
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) if guard.ready().is_write_closed() => return Err(hung_up()),
            Err(Errno::EAGAIN) => guard.clear_ready(),
            result => return Ok(result?),
        }
    }
}

/// A full terminal whose other side is closed answers EAGAIN for ever, and one that was opened again as well. Tokio counts
/// a closed side as ready and never forgets it: waiting for such a terminal would spin, and with it the whole agent.
fn hung_up() -> io::Error {
    io::ErrorKind::BrokenPipe.into()
}

/// Whether the descriptor is ready for one of `wanted` now.
fn ready(fd: &Fd, wanted: PollFlags) -> bool {
    let mut fds = [PollFd::new(fd.get_ref().as_fd(), wanted)];
    if poll(&mut fds, PollTimeout::ZERO).is_err() {
        return true;
    }
    let [fd] = fds;
    fd.revents().is_some_and(|events| events.intersects(wanted))
}

/// Tells the host that nothing more comes.
fn shut(sink: &Fd) {
    use std::os::fd::AsRawFd;
    // The host may have closed it already.
    let _ = nix::sys::socket::shutdown(sink.as_raw_fd(), nix::sys::socket::Shutdown::Write);
}

#[cfg(test)]
#[path = "copy_test.rs"]
mod tests;
