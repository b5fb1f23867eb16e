//! Signals of this process become controls of the container.

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::{Control, terminal};

/// Signals that are meant for the command. Those that stop and continue a job are meant for this process.
const FORWARDED: [i32; 7] =
    [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGUSR1, libc::SIGUSR2, libc::SIGALRM, libc::SIGTERM];
const MAX_QUEUED: usize = 64;

/// From now on this process does not die of these signals. Also `extra`, the container's stop signal; with a terminal
/// also changes of its size.
pub fn controls(extra: i32, with_terminal: bool) -> anyhow::Result<mpsc::Receiver<Control>> {
    let (sender, receiver) = mpsc::channel(MAX_QUEUED);
    for number in FORWARDED {
        forward(number, sender.clone()).with_context(|| format!("catching signal {number}"))?;
    }
    if !FORWARDED.contains(&extra) && extra != libc::SIGKILL {
        // Some can't be caught; then only `hull stop` is affected, which kills after its time-out.
        let _ = forward(extra, sender.clone());
    }
    if with_terminal {
        watch_size(sender).context("catching SIGWINCH")?;
    }
    Ok(receiver)
}

/// Waits for a signal that asks this process to end, and says which.
pub async fn request_to_end() -> i32 {
    let caught = |number| signal(SignalKind::from_raw(number));
    let (Ok(mut interrupt), Ok(mut terminate), Ok(mut hangup)) =
        (caught(libc::SIGINT), caught(libc::SIGTERM), caught(libc::SIGHUP))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => libc::SIGINT,
        _ = terminate.recv() => libc::SIGTERM,
        _ = hangup.recv() => libc::SIGHUP,
    }
}

fn forward(number: i32, sender: mpsc::Sender<Control>) -> std::io::Result<()> {
    let mut signals = signal(SignalKind::from_raw(number))?;
    tokio::spawn(async move {
        while signals.recv().await.is_some() {
            let _ = sender.send(Control::Signal(number)).await;
        }
    });
    Ok(())
}

fn watch_size(sender: mpsc::Sender<Control>) -> std::io::Result<()> {
    let mut signals = signal(SignalKind::window_change())?;
    tokio::spawn(async move {
        while signals.recv().await.is_some() {
            let _ = sender.send(Control::Resize(terminal::size())).await;
        }
    });
    Ok(())
}
