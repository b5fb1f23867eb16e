//! Backend: a Unix stream socket whose peer, such as passt, speaks frames with their length in front: 4 bytes, big-endian.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use super::io::FrameParts;
use super::port::{PortError, retry};
use super::spec::{MAX_FRAME_BYTES, MIN_FRAME_BYTES};
use crate::virtio::sys::{self, GuestSlice};

const LENGTH_BYTES: usize = 4;
/// Frames that have arrived: at least one fits.
const INBOX_BYTES: usize = 256 << 10;
/// Frames up to this size are collected and sent together.
const SMALL_FRAME_BYTES: usize = 2048;
/// Bound for what is collected, beyond one frame.
const OUTBOX_BYTES: usize = 64 << 10;

/// One end of the socket.
pub struct FrameStream {
    socket: UnixStream,
    inbox: Box<[u8]>,
    start: usize,
    end: usize,
    outbox: Vec<u8>,
    /// Bytes of the outbox that are sent.
    sent: usize,
    parts: FrameParts,
}

impl FrameStream {
    /// Takes over a connected socket.
    pub fn new(socket: UnixStream) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self {
            socket,
            inbox: vec![0; INBOX_BYTES].into_boxed_slice(),
            start: 0,
            end: 0,
            outbox: Vec::new(),
            sent: 0,
            parts: FrameParts::default(),
        })
    }

    /// The next frame that the peer has sent; to be ended by [`FrameStream::consume`].
    pub fn frame(&mut self) -> Result<&[u8], PortError> {
        loop {
            let got = self.inbox.get(self.start..self.end).unwrap_or_default();
            let length = match got.first_chunk::<LENGTH_BYTES>() {
                Some(bytes) => Some(checked_length(u32::from_be_bytes(*bytes))?),
                None => None,
            };
            if let Some(length) = length
                && got.len() >= LENGTH_BYTES + length
            {
                let at = self.start + LENGTH_BYTES;
                return Ok(self.inbox.get(at..at + length).unwrap_or_default());
            }
            self.read_more()?;
        }
    }

    /// Drops the frame that [`FrameStream::frame`] returned.
    pub fn consume(&mut self, frame_bytes: usize) {
        self.start = (self.start + LENGTH_BYTES + frame_bytes).min(self.end);
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Takes a frame from the guest: all of it, or [`PortError::Full`].
    pub fn send(&mut self, frame: &[GuestSlice<'_>], bytes: usize) -> Result<(), PortError> {
        let length = u32::try_from(bytes).map_err(|_| PortError::Frame)?.to_be_bytes();
        if bytes > SMALL_FRAME_BYTES || self.outbox.len() >= OUTBOX_BYTES {
            self.flush()?;
        }
        if bytes <= SMALL_FRAME_BYTES {
            self.collect(&length, frame, 0);
            return Ok(());
        }
        match retry(|| self.parts.send(self.socket.as_fd(), &length, frame)) {
            // The rest has to follow before any other frame.
            Ok(sent) if sent < LENGTH_BYTES + bytes => self.collect(&length, frame, sent),
            Ok(_) => {}
            Err(error) => return Err(stream_error(&error)),
        }
        Ok(())
    }

    /// Sends what is collected; [`PortError::Full`] if the peer doesn't take all.
    pub fn flush(&mut self) -> Result<(), PortError> {
        while let Some(rest) = self.outbox.get(self.sent..).filter(|rest| !rest.is_empty()) {
            self.sent += retry(|| sys::send_bytes(self.socket.as_fd(), rest)).map_err(|error| stream_error(&error))?;
        }
        self.outbox.clear();
        self.sent = 0;
        Ok(())
    }

    /// The socket.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Keeps a frame, without the first `skip` bytes of length and frame.
    fn collect(&mut self, length: &[u8], frame: &[GuestSlice<'_>], skip: usize) {
        self.outbox.extend(length.iter().skip(skip));
        let mut skip = skip.saturating_sub(length.len());
        for slice in frame {
            if let Ok(rest) = slice.offset(skip.min(slice.len())) {
                let at = self.outbox.len();
                self.outbox.resize(at + rest.len(), 0);
                rest.copy_to(self.outbox.get_mut(at..).unwrap_or_default());
            }
            skip = skip.saturating_sub(slice.len());
        }
    }

    fn read_more(&mut self) -> Result<(), PortError> {
        if self.inbox.len() - self.end < LENGTH_BYTES + MAX_FRAME_BYTES {
            self.inbox.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        match self.socket.read(self.inbox.get_mut(self.end..).unwrap_or_default()) {
            Ok(0) => Err(PortError::Gone("the peer has closed the socket".to_owned())),
            Ok(bytes) => {
                self.end += bytes;
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(PortError::Empty),
            Err(error) => Err(PortError::Gone(error.to_string())),
        }
    }
}

fn checked_length(length: u32) -> Result<usize, PortError> {
    let valid = usize::try_from(length).ok().filter(|length| (MIN_FRAME_BYTES..=MAX_FRAME_BYTES).contains(length));
    valid.ok_or_else(|| PortError::Gone(format!("the peer announces a frame of {length} bytes")))
}

fn stream_error(error: &io::Error) -> PortError {
    match error.kind() {
        io::ErrorKind::WouldBlock => PortError::Full,
        _ => PortError::Gone(error.to_string()),
    }
}
