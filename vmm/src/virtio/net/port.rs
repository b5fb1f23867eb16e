//! The way of one queue pair to the outside.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use super::io::FrameParts;
use super::spec::{HEADER_BYTES, Header};
use super::stream::FrameStream;
use super::tap::{self, Tap};
use crate::virtio::sys::GuestSlice;

/// Why there is no frame, or why one isn't taken.
#[derive(Debug, PartialEq, Eq)]
pub enum PortError {
    /// Nothing has arrived.
    Empty,
    /// The other side takes nothing now.
    Full,
    /// The frame can't be taken, or given.
    Frame,
    /// There is no other side any more, for this reason.
    Gone(String),
}

/// The host's end of a queue pair.
pub enum Port {
    /// A queue of a tap.
    Tap(Arc<Tap>, u16, FrameParts),
    /// A stream of frames.
    Stream(Box<FrameStream>),
}

impl Port {
    /// A port for one queue of a tap.
    pub fn tap(tap: &Arc<Tap>, pair: u16) -> Self {
        Self::Tap(Arc::clone(tap), pair, FrameParts::default())
    }

    /// Sends a frame of `bytes` bytes.
    pub fn send(&mut self, header: Header, frame: &[GuestSlice<'_>], bytes: usize) -> Result<(), PortError> {
        match self {
            Self::Tap(tap, pair, parts) => {
                let queue = tap.queue(*pair).ok_or_else(no_queue)?;
                match retry(|| parts.write(queue, &header.to_bytes(), frame)) {
                    Ok(_) => Ok(()),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(PortError::Full),
                    Err(error) if tap::is_gone(&error) => Err(gone(tap)),
                    // The interface is down, or the kernel found the header or frame wrong.
                    Err(_) => Err(PortError::Frame),
                }
            }
            Self::Stream(stream) => stream.send(frame, bytes),
        }
    }

    /// Sends what [`Port::send`] has held back.
    pub fn flush(&mut self) -> Result<(), PortError> {
        match self {
            Self::Tap(..) => Ok(()),
            Self::Stream(stream) => stream.flush(),
        }
    }

    /// Receives a frame: into `space`, and into `tail` what `space` doesn't hold. Returns its header and length.
    pub fn receive(&mut self, space: &[GuestSlice<'_>], tail: &mut [u8]) -> Result<(Header, usize), PortError> {
        match self {
            Self::Tap(tap, pair, parts) => {
                let queue = tap.queue(*pair).ok_or_else(no_queue)?;
                let mut header = [0; HEADER_BYTES];
                match retry(|| parts.read(queue, &mut header, space, tail)) {
                    Ok(bytes) => Ok((Header::from_bytes(header), bytes.saturating_sub(HEADER_BYTES))),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(PortError::Empty),
                    // A frame that the header can't describe. It is gone, and the next one may be better.
                    Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Err(PortError::Frame),
                    Err(_) => Err(gone(tap)),
                }
            }
            Self::Stream(stream) => {
                let frame = stream.frame()?;
                let bytes = frame.len();
                let mut rest = frame;
                for slice in space {
                    let (now, later) = rest.split_at(rest.len().min(slice.len()));
                    slice.copy_from(now);
                    rest = later;
                }
                for (to, from) in tail.iter_mut().zip(rest) {
                    *to = *from;
                }
                stream.consume(bytes);
                Ok((Header::default(), bytes))
            }
        }
    }

    /// The descriptor to wait for.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Tap(tap, pair, _) => tap.queue(*pair),
            Self::Stream(stream) => Some(stream.fd()),
        }
    }
}

fn no_queue() -> PortError {
    PortError::Gone("it has no such queue".to_owned())
}

fn gone(tap: &Tap) -> PortError {
    PortError::Gone(format!("{tap} has been deleted"))
}

/// Repeats a call that a signal has interrupted.
pub(super) fn retry(mut call: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}
