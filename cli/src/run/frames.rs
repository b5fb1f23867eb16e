//! What a keeper and the process that is attached to it say to each other over their socket.
//!
//! A frame is a kind (one byte), a length (four bytes, little-endian) and so many bytes.

use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Mutex;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::launch::Launch;
use super::outcome::Outcome;
use super::pump::write_all;
use hull_sandbox::container::TerminalSize;

/// Bounds both a launch with a long command line and a piece of output.
const MAX_FRAME_BYTES: usize = 16 << 20;

/// Bytes as they are; everything else as JSON.
#[derive(Debug)]
pub enum Frame<M> {
    Bytes(Vec<u8>),
    Message(M),
}

/// To the keeper; bytes are typed.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToKeeper {
    /// The first frame.
    Launch(Box<Launch>),
    Signal(i32),
    Resize(TerminalSize),
    /// The container goes on without a terminal.
    Detach,
    /// Nothing more will be typed.
    InputEnd,
}

/// From the keeper; bytes are the terminal's output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FromKeeper {
    /// The command is about to run: keys are its own from now on.
    Started,
    /// So many typed bytes have reached the container.
    Taken(usize),
    /// The last frame.
    Outcome(Outcome),
}

const BYTES: u8 = 0;
const MESSAGE: u8 = 1;

/// Writes whole frames, from any thread.
pub struct FrameWriter {
    socket: Mutex<UnixStream>,
}

impl FrameWriter {
    pub fn new(socket: UnixStream) -> Self {
        Self { socket: Mutex::new(socket) }
    }

    pub fn bytes(&self, bytes: &[u8]) -> io::Result<()> {
        self.frame(BYTES, bytes)
    }

    pub fn message(&self, message: &impl Serialize) -> io::Result<()> {
        self.frame(MESSAGE, &serde_json::to_vec(message)?)
    }

    fn frame(&self, kind: u8, payload: &[u8]) -> io::Result<()> {
        let length = u32::try_from(payload.len()).map_err(|_| too_large())?;
        if payload.len() > MAX_FRAME_BYTES {
            return Err(too_large());
        }
        let mut frame = Vec::with_capacity(5 + payload.len());
        frame.push(kind);
        frame.extend_from_slice(&length.to_le_bytes());
        frame.extend_from_slice(payload);
        let socket = self.socket.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        write_all(socket.as_fd(), &frame)
    }
}

/// Reads one frame; an error also at the end.
pub fn read_frame<M: DeserializeOwned>(socket: &mut impl Read) -> io::Result<Frame<M>> {
    let mut kind = [0];
    let mut length = [0; 4];
    socket.read_exact(&mut kind)?;
    socket.read_exact(&mut length)?;
    let length = usize::try_from(u32::from_le_bytes(length)).map_err(|_| too_large())?;
    if length > MAX_FRAME_BYTES {
        return Err(too_large());
    }
    let mut payload = vec![0; length];
    socket.read_exact(&mut payload)?;
    match kind {
        [BYTES] => Ok(Frame::Bytes(payload)),
        [MESSAGE] => Ok(Frame::Message(serde_json::from_slice(&payload)?)),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "unknown frame")),
    }
}

fn too_large() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "a frame is too large")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn frames_arrive_as_they_were_sent() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let writer = FrameWriter::new(ours);
        writer.bytes(b"typed").unwrap();
        writer.message(&FromKeeper::Started).unwrap();
        drop(writer);
        assert!(matches!(read_frame::<FromKeeper>(&mut theirs).unwrap(), Frame::Bytes(bytes) if bytes == b"typed"));
        assert!(matches!(read_frame(&mut theirs).unwrap(), Frame::Message(FromKeeper::Started)));
        assert!(read_frame::<FromKeeper>(&mut theirs).is_err());
    }

    proptest! {
        #[test]
        fn foreign_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = read_frame::<ToKeeper>(&mut bytes.as_slice());
        }
    }
}
