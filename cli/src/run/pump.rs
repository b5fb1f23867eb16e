//! Bytes between the process in the guest and the standard streams, on threads that block: a slow reader slows the writer
//! in the guest down, and nothing is dropped.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use hull_sandbox::ProcessStreams;
use hull_sandbox::timeline::Timeline;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::sync::oneshot;
use tokio::time::sleep;

const BUFFER_BYTES: usize = 64 << 10;
/// After the end of the process, a stream that neither delivers nor ends for so long is given up.
const SILENCE: Duration = Duration::from_secs(10);

/// Connects the process to the standard streams of this process.
pub fn local_streams(streams: ProcessStreams, timeline: &Arc<Timeline>) -> io::Result<Outputs> {
    let mut outputs = Outputs::default();
    if let Some(stream) = streams.stdout {
        let sink = |bytes: &[u8]| write_all(io::stdout().as_fd(), bytes);
        outputs.pump(blocking(stream)?, sink, Arc::clone(timeline))?;
    }
    if let Some(stream) = streams.stderr {
        let sink = |bytes: &[u8]| write_all(io::stderr().as_fd(), bytes);
        outputs.pump(blocking(stream)?, sink, Arc::clone(timeline))?;
    }
    if let Some(stream) = streams.stdin {
        let stream = blocking(stream)?;
        thread::Builder::new().name("stdin".into()).spawn(move || feed(stream))?;
    }
    Ok(outputs)
}

/// Streams from the guest that are being read.
#[derive(Default)]
pub struct Outputs(Vec<Output>);

struct Output {
    finished: oneshot::Receiver<()>,
    progress: Arc<Progress>,
    stream: UnixStream,
}

#[derive(Default)]
struct Progress {
    /// Waits for the guest, not for the reader of our output.
    reading: AtomicBool,
    bytes: AtomicU64,
}

impl Outputs {
    /// Reads `stream` to its end on a thread of its own. If `sink` fails, the guest's writer sees a closed pipe.
    pub fn pump(
        &mut self,
        stream: UnixStream,
        mut sink: impl FnMut(&[u8]) -> io::Result<()> + Send + 'static,
        timeline: Arc<Timeline>,
    ) -> io::Result<()> {
        let (sender, finished) = oneshot::channel();
        let progress = Arc::new(Progress::default());
        let seen = Arc::clone(&progress);
        let mut reader = stream.try_clone()?;
        thread::Builder::new().name("output".into()).spawn(move || {
            let mut buffer = vec![0; BUFFER_BYTES];
            loop {
                seen.reading.store(true, Ordering::Release);
                let length = match reader.read(&mut buffer) {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Err(_) | Ok(0) => break,
                    Ok(length) => length,
                };
                seen.reading.store(false, Ordering::Release);
                if seen.bytes.fetch_add(length as u64, Ordering::AcqRel) == 0 {
                    timeline.mark("first output");
                }
                if sink(buffer.get(..length).unwrap_or_default()).is_err() {
                    let _ = reader.shutdown(Shutdown::Both);
                    break;
                }
            }
            let _ = sender.send(());
        })?;
        self.0.push(Output { finished, progress, stream });
        Ok(())
    }

    /// Returns when all that the guest has sent is written, however slow the reader.
    pub async fn drained(&mut self) {
        for output in &mut self.0 {
            output.drained().await;
        }
    }
}

impl Output {
    async fn drained(&mut self) {
        loop {
            let before = self.progress.bytes.load(Ordering::Acquire);
            tokio::select! {
                biased;
                _ = &mut self.finished => return,
                () = sleep(SILENCE) => (),
            }
            let silent = self.progress.bytes.load(Ordering::Acquire) == before;
            if silent && self.progress.reading.load(Ordering::Acquire) {
                tracing::warn!("an output stream did not end with its process");
                let _ = self.stream.shutdown(Shutdown::Both);
            }
        }
    }
}

/// A tokio stream as one that blocks.
pub fn blocking(stream: tokio::net::UnixStream) -> io::Result<UnixStream> {
    let stream = stream.into_std()?;
    stream.set_nonblocking(false)?;
    Ok(stream)
}

/// Standard input to the guest, and its end too.
fn feed(mut stream: UnixStream) {
    let mut buffer = vec![0; BUFFER_BYTES];
    while let Ok(length @ 1..) = read(io::stdin().as_fd(), &mut buffer) {
        if stream.write_all(buffer.get(..length).unwrap_or_default()).is_err() {
            return;
        }
    }
    let _ = stream.shutdown(Shutdown::Write);
}

/// Reads past Rust's buffer, and also from a descriptor that somebody made non-blocking.
pub fn read(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match nix::unistd::read(fd, buffer) {
            Ok(length) => return Ok(length),
            Err(Errno::EINTR) => (),
            Err(Errno::EAGAIN) => wait(fd, PollFlags::POLLIN)?,
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Writes past Rust's buffer, and also to a descriptor that somebody made non-blocking.
pub fn write_all(fd: BorrowedFd<'_>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match nix::unistd::write(fd, bytes) {
            Ok(length) => bytes = bytes.get(length..).unwrap_or_default(),
            Err(Errno::EINTR) => (),
            Err(Errno::EAGAIN) => wait(fd, PollFlags::POLLOUT)?,
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

fn wait(fd: BorrowedFd<'_>, flags: PollFlags) -> io::Result<()> {
    match poll(&mut [PollFd::new(fd, flags)], PollTimeout::NONE) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[tokio::test]
    async fn all_bytes_arrive_before_drained_returns_however_slow_the_reader() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let got = Arc::new(Mutex::new(Vec::new()));
        let sink = {
            let got = Arc::clone(&got);
            move |bytes: &[u8]| {
                thread::sleep(Duration::from_micros(200));
                got.lock().unwrap().extend_from_slice(bytes);
                Ok(())
            }
        };
        let timeline = Arc::new(Timeline::default());
        let mut outputs = Outputs::default();
        outputs.pump(ours, sink, Arc::clone(&timeline)).unwrap();
        let sent: Vec<u8> = (0..4_000_000_u32).map(|number| u8::try_from(number % 251).unwrap()).collect();
        let copy = sent.clone();
        let writer = thread::spawn(move || theirs.write_all(&copy).unwrap());
        outputs.drained().await;
        writer.join().unwrap();
        assert!(*got.lock().unwrap() == sent);
        assert_eq!(timeline.marks()[0].name, "first output");
    }

    #[tokio::test]
    async fn a_reader_that_goes_away_closes_the_guests_pipe() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut outputs = Outputs::default();
        let sink = |_: &[u8]| Err(io::ErrorKind::BrokenPipe.into());
        outputs.pump(ours, sink, Arc::default()).unwrap();
        theirs.write_all(b"x").unwrap();
        outputs.drained().await;
        assert!(theirs.write_all(&[0; 1 << 20]).is_err());
    }

    #[test]
    fn a_non_blocking_descriptor_loses_nothing() {
        let (a, b) = UnixStream::pair().unwrap();
        a.set_nonblocking(true).unwrap();
        b.set_nonblocking(true).unwrap();
        let reader = thread::spawn(move || {
            let (mut total, mut buffer) = (0, [0; 4096]);
            while let Ok(length @ 1..) = read(b.as_fd(), &mut buffer) {
                total += length;
            }
            total
        });
        write_all(a.as_fd(), &vec![7; 3 << 20]).unwrap();
        drop(a);
        assert_eq!(reader.join().unwrap(), 3 << 20);
    }
}
