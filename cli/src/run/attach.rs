//! The attached side of `hull run -it`: passes keys, signals and sizes to the keeper, and the output to the terminal.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;

use anyhow::Context as _;
use tokio::sync::mpsc;

use super::frames::{Frame, FrameWriter, FromKeeper, ToKeeper, read_frame};
use super::launch::Launch;
use super::outcome::Outcome;
use super::pump::write_all;
use super::terminal::RawMode;
use super::typing::Typing;
use super::{Control, keeper, signals};
use crate::failure::Failure;

/// What happens on the threads.
enum Event {
    Started,
    Detached,
    Ended(Outcome),
}

type Events = mpsc::UnboundedSender<Event>;

/// Starts a keeper for `launch` and stays attached until the container ends or the user detaches.
pub async fn attach(launch: &Launch) -> Result<Outcome, Failure> {
    let mut controls = signals::controls(launch.record.stop_signal, true)?;
    let (socket, mut child) = start_keeper()?;
    let keeper = Arc::new(FrameWriter::new(socket.try_clone()?));
    keeper.message(&ToKeeper::Launch(Box::new(launch.clone()))).context("starting the keeper")?;
    let (sender, mut events) = mpsc::unbounded_channel();
    let typing = Arc::<Typing>::default();
    receive(socket, sender.clone(), Arc::clone(&typing))?;
    // Restores the terminal in whatever way this ends.
    let mut raw = None;
    let end = loop {
        tokio::select! {
            biased;
            event = events.recv() => match event {
                Some(Event::Started) => {
                    raw = Some(RawMode::enter()?);
                    let sender = sender.clone();
                    let detached = move || drop(sender.send(Event::Detached));
                    typing.start(Arc::clone(&keeper), detached)?;
                }
                Some(Event::Detached) => break detached(launch),
                Some(Event::Ended(outcome)) => break outcome,
                None => break keeper::died(),
            },
            Some(control) = controls.recv() => {
                if let Some(end) = pass_on(&keeper, control) {
                    break end;
                }
            }
        }
    };
    drop(raw);
    // Reap it if it is gone already; it does not matter if not.
    let _ = child.try_wait();
    Ok(end)
}

fn detached(launch: &Launch) -> Outcome {
    let name = &launch.record.name;
    Outcome::success(format!("hull: detached from {name}; `hull stop {name}` ends it"))
}

/// A hangup also ends this process, and with it the container: nobody could reach it any more.
fn pass_on(keeper: &FrameWriter, control: Control) -> Option<Outcome> {
    let message = match control {
        Control::Signal(signal) => ToKeeper::Signal(signal),
        Control::Resize(size) => ToKeeper::Resize(size),
        Control::Abandoned => return None,
    };
    let _ = keeper.message(&message);
    (control == Control::Signal(libc::SIGHUP)).then(|| Outcome::interrupted(libc::SIGHUP))
}

fn start_keeper() -> anyhow::Result<(UnixStream, std::process::Child)> {
    let (ours, theirs) = UnixStream::pair().context("a socket pair")?;
    let program = std::env::current_exe().context("finding hull itself")?;
    let child = Command::new(&program)
        .arg("__keeper")
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| program.display().to_string())?;
    Ok((ours, child))
}

/// Writes output to the terminal on a thread; tells of the start and of the end.
fn receive(mut socket: UnixStream, events: Events, typing: Arc<Typing>) -> io::Result<()> {
    thread::Builder::new().name("output".into()).spawn(move || {
        loop {
            let event = match read_frame(&mut socket) {
                Ok(Frame::Bytes(bytes)) => {
                    // A terminal that is gone is noticed by its hangup.
                    let _ = write_all(io::stdout().as_fd(), &bytes);
                    continue;
                }
                Ok(Frame::Message(FromKeeper::Taken(count))) => {
                    typing.taken(count);
                    continue;
                }
                Ok(Frame::Message(FromKeeper::Started)) => Event::Started,
                Ok(Frame::Message(FromKeeper::Outcome(outcome))) => Event::Ended(outcome),
                Err(_) => Event::Ended(keeper::died()),
            };
            let is_last = matches!(event, Event::Ended(_));
            if events.send(event).is_err() || is_last {
                return;
            }
        }
    })?;
    Ok(())
}
