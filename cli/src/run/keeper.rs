//! The keeper: owns a container whose terminal may go away.
//!
//! Its standard input is the socket to the process that is attached. When that process is gone without having detached,
//! the container ends.

use std::io::{self, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use anyhow::{Context as _, bail};
use hull_sandbox::ProcessStreams;
use hull_sandbox::timeline::Timeline;
use tokio::sync::mpsc;

use super::frames::{Frame, FrameWriter, FromKeeper, ToKeeper, read_frame};
use super::outcome::Outcome;
use super::pump::{Outputs, blocking};
use super::typing::{BUFFER_BYTES, CREDIT_BYTES};
use super::{Control, signals, supervise};
use crate::context;
use crate::failure::Failure;

/// `hull __keeper`.
pub fn keeper() -> Result<u8, Failure> {
    // Signals of the terminal are for others.
    nix::unistd::setsid().context("hull __keeper is started by hull run only")?;
    std::env::set_current_dir("/").context("/")?;
    let socket = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let mut reader = socket.try_clone()?;
    let Frame::Message(ToKeeper::Launch(launch)) = read_frame(&mut reader)? else { bail_launch()? };
    let link =
        Arc::new(Link { writer: FrameWriter::new(socket), silent: AtomicBool::new(false), typed: Mutex::new(None) });
    let outcome = context::block_on(async {
        let (sender, controls) = mpsc::channel(64);
        // `hull stop` sends its signal to this process.
        relay(signals::controls(launch.record.stop_signal, false)?, sender.clone());
        let listener = Arc::clone(&link);
        thread::Builder::new().name("link".into()).spawn(move || listener.listen(reader, &sender))?;
        let attach = |streams, timeline: &Arc<Timeline>| connect(&link, streams, timeline);
        let outcome = supervise::supervise(*launch, Arc::default(), controls, attach).await;
        anyhow::Ok(outcome)
    })??;
    link.say(&FromKeeper::Outcome(outcome));
    Ok(0)
}

fn bail_launch<T>() -> anyhow::Result<T> {
    bail!("the first frame is no launch")
}

fn relay(mut from: mpsc::Receiver<Control>, to: mpsc::Sender<Control>) {
    tokio::spawn(async move {
        while let Some(control) = from.recv().await {
            let _ = to.send(control).await;
        }
    });
}

/// The connection to the attached process.
struct Link {
    writer: FrameWriter,
    /// Nobody listens any more.
    silent: AtomicBool,
    /// Where typed bytes go, once the container has a terminal.
    typed: Mutex<Option<Typed>>,
}

impl Link {
    fn say(&self, message: &FromKeeper) {
        if !self.silent.load(Ordering::Acquire) {
            let _ = self.writer.message(message);
        }
    }

    /// Output for nobody is dropped: the container must not stand still because of it.
    fn output(&self, bytes: &[u8]) {
        if !self.silent.load(Ordering::Acquire) && self.writer.bytes(bytes).is_err() {
            self.silent.store(true, Ordering::Release);
        }
    }

    fn listen(&self, mut socket: UnixStream, controls: &mpsc::Sender<Control>) {
        loop {
            let control = match read_frame::<ToKeeper>(&mut socket) {
                Ok(Frame::Bytes(bytes)) => {
                    if self.input(bytes) {
                        continue;
                    }
                    Control::Abandoned
                }
                Ok(Frame::Message(ToKeeper::Signal(signal))) => Control::Signal(signal),
                Ok(Frame::Message(ToKeeper::Resize(size))) => Control::Resize(size),
                Ok(Frame::Message(ToKeeper::InputEnd)) => {
                    self.close_input();
                    continue;
                }
                Ok(Frame::Message(ToKeeper::Detach)) => {
                    self.silent.store(true, Ordering::Release);
                    return;
                }
                Ok(Frame::Message(ToKeeper::Launch(_))) | Err(_) => Control::Abandoned,
            };
            if controls.blocking_send(control).is_err() || control == Control::Abandoned {
                return;
            }
        }
    }

    /// Never waits: the other side sends no more than there is credit for. False if it did.
    fn input(&self, bytes: Vec<u8>) -> bool {
        let typed = self.typed.lock().unwrap_or_else(PoisonError::into_inner);
        typed.as_ref().is_none_or(|typed| typed.push(bytes))
    }

    fn close_input(&self) {
        self.typed.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

fn connect(link: &Arc<Link>, streams: ProcessStreams, timeline: &Arc<Timeline>) -> io::Result<Outputs> {
    let mut outputs = Outputs::default();
    if let Some(stream) = streams.stdout {
        let link = Arc::clone(link);
        let sink = move |bytes: &[u8]| {
            link.output(bytes);
            Ok(())
        };
        outputs.pump(blocking(stream)?, sink, Arc::clone(timeline))?;
    }
    if let Some(stream) = streams.stdin {
        let stream = blocking(stream)?;
        let (sender, pieces) = channel();
        let waiting = Arc::new(AtomicUsize::new(0));
        let typed = Typed { sender, waiting: Arc::clone(&waiting) };
        *link.typed.lock().unwrap_or_else(PoisonError::into_inner) = Some(typed);
        let link = Arc::clone(link);
        thread::Builder::new().name("stdin".into()).spawn(move || feed(stream, &pieces, &waiting, &link))?;
    }
    link.say(&FromKeeper::Started);
    Ok(outputs)
}

/// The way of typed bytes to the container.
struct Typed {
    sender: Sender<Vec<u8>>,
    /// Bytes that it has not taken.
    waiting: Arc<AtomicUsize>,
}

impl Typed {
    /// False if the container has taken so little that nobody may send these bytes.
    fn push(&self, bytes: Vec<u8>) -> bool {
        // All that waits at the other side comes at once when the user detaches.
        const MOST: usize = CREDIT_BYTES + BUFFER_BYTES;
        let count = bytes.len();
        if count > MOST.saturating_sub(self.waiting.load(Ordering::Acquire)) {
            return false;
        }
        self.waiting.fetch_add(count, Ordering::AcqRel);
        // An input that has ended takes everything.
        let _ = self.sender.send(bytes);
        true
    }
}

/// Writes pieces to the container and tells the attached side of each part that was taken. A container that takes no more
/// input lets the rest go.
fn feed(mut stream: UnixStream, pieces: &Receiver<Vec<u8>>, waiting: &AtomicUsize, link: &Link) {
    for piece in pieces {
        let mut rest = piece.as_slice();
        while !rest.is_empty() {
            let count = match stream.write(rest) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Ok(0) | Err(_) => rest.len(),
                Ok(count) => count,
            };
            rest = rest.get(count..).unwrap_or_default();
            waiting.fetch_sub(count, Ordering::AcqRel);
            link.say(&FromKeeper::Taken(count));
        }
    }
    let _ = stream.shutdown(Shutdown::Write);
}

/// For the attached side: what is said when a keeper ends without an outcome.
pub fn died() -> Outcome {
    Outcome::killed("the hull process that kept it has died")
}
