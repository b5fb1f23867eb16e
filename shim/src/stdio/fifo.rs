//! FIFOs, opened so that the other side may come late, go, and come back.

use std::io;

use tokio::net::unix::pipe::{OpenOptions, Receiver, Sender};

/// The writing end of a FIFO. It is opened for both directions: then there is always a reader, so that a client that has
/// gone neither ends the container nor its output; output waits in the FIFO, and then in the container, for the next.
pub fn output(path: &str) -> io::Result<Sender> {
    OpenOptions::new().read_write(true).open_sender(path)
}

/// The reading end of a FIFO.
#[derive(Debug)]
pub struct Input {
    receiver: Receiver,
    keep_open: KeepOpen,
}

/// As long as it exists a FIFO has a writer, so that its reader waits for clients instead of seeing the end.
#[derive(Debug)]
pub struct KeepOpen(#[allow(dead_code, reason = "it is held, not used")] Sender);

impl Input {
    /// Opens the FIFO at `path`.
    pub fn open(path: &str) -> io::Result<Self> {
        let receiver = OpenOptions::new().open_receiver(path)?;
        // There is a reader by now, so that this doesn't fail for want of one.
        let keep_open = KeepOpen(OpenOptions::new().open_sender(path)?);
        Ok(Self { receiver, keep_open })
    }

    /// The reader, and what keeps it from seeing the end.
    pub fn split(self) -> (Receiver, KeepOpen) {
        (self.receiver, self.keep_open)
    }
}
