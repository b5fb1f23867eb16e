//! Moves bytes between the host's ends and the process's.

use std::io;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::net::unix::pipe::Receiver;
use tokio::sync::watch;

use super::Sink;

/// Bytes that are moved at once.
const BUFFER_BYTES: usize = 16 << 10;

/// Moves output to its sink until the process, and whoever it left its stream to, has closed it. A sink that fails is given
/// up: the process goes on, its output is dropped. The same when the output is abandoned.
pub async fn output(mut from: UnixStream, mut to: Sink, mut abandoned: watch::Receiver<bool>) {
    let mut buffer = vec![0; BUFFER_BYTES];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        let bytes = buffer.get(..count).unwrap_or_default();
        let written = tokio::select! {
            biased;
            written = write(&mut to, bytes) => written,
            _ = abandoned.wait_for(|abandoned| *abandoned) => Err(io::ErrorKind::TimedOut.into()),
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
