//! Moves bytes between the host's ends and the process's.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::net::unix::pipe::Receiver;
use tokio::sync::watch;
use tokio::time::sleep;

use super::Sink;

/// Bytes that are moved at once.
const BUFFER_BYTES: usize = 16 << 10;

/// How long output may stay open and silent after its process's end. Only processes that were left behind, which hold it,
/// come to this.
pub(super) const LEFT_BEHIND_GRACE: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 10 });

/// What output is still good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Its process may write.
    Open,
    /// Its process has ended: what it has written goes to the reader, however long that takes.
    Ending,
    /// Nobody will read the rest.
    Dropped,
}

/// Moves output to its sink until the process, and whoever it left its stream to, has closed it or is silent after its end,
/// or until it is dropped. A sink that fails is given up: the process goes on, its output is dropped.
pub async fn output(mut from: UnixStream, mut to: Sink, stage: watch::Receiver<Stage>) {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let count = tokio::select! {
            biased;
            () = reached(&stage, Stage::Dropped) => break,
            read = from.read(&mut buffer) => read.unwrap_or(0),
            () = silence(&stage) => break,
        };
        let bytes = match buffer.get(..count) {
            None | Some([]) => break,
            Some(bytes) => bytes,
        };
        let written = tokio::select! {
            biased;
            written = write(&mut to, bytes) => written,
            () = reached(&stage, Stage::Dropped) => break,
        };
        if let Err(error) = written {
            tracing::warn!(%error, "output of a process is dropped from now on");
            to = Sink::Discard;
        }
    }
    if let Sink::File(mut file) = to {
        let _ = file.flush().await;
    }
}

async fn write(to: &mut Sink, bytes: &[u8]) -> io::Result<()> {
    match to {
        Sink::Discard => Ok(()),
        Sink::Pipe(pipe) => pipe.write_all(bytes).await,
        Sink::File(file) => file.write_all(bytes).await,
    }
}

/// Waits until output has come to `wanted`. What tells it lives longer than its output; without it nothing changes any more.
async fn reached(stage: &watch::Receiver<Stage>, wanted: Stage) {
    if stage.clone().wait_for(|stage| *stage >= wanted).await.is_err() {
        std::future::pending().await
    }
}

async fn silence(stage: &watch::Receiver<Stage>) {
    reached(stage, Stage::Ending).await;
    sleep(LEFT_BEHIND_GRACE).await;
}

/// Moves a FIFO's bytes to the process's standard input until the last writer has closed it, then ends the input.
pub async fn input(mut from: Receiver, mut to: UnixStream) {
    let mut buffer = vec![0; BUFFER_BYTES];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        // A process that takes no more input lets the rest go, as with any pipe.
        if to.write_all(buffer.get(..count).unwrap_or_default()).await.is_err() {
            return;
        }
    }
    let _ = to.shutdown().await;
}
