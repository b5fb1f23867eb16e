//! One stream between a guest's port and a Unix socket.
//!
//! Guest to host: data goes from guest memory straight into the socket; what the socket doesn't take waits in a buffer
//! whose size the guest knows (`buf_alloc`) and must respect. Host to guest: data goes from the socket straight into guest
//! memory, as much as the guest has space for. So a slow reader on either side stops its own stream only.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::net::Shutdown;
use std::num::Wrapping;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Instant;

use super::packet::{Header, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, op};
use crate::virtio::buffers::{Reader, Writer};
use crate::virtio::sys;

/// Longest line with which a host process asks for a port: `CONNECT 4294967295` and a line end.
const MAX_GREETING_BYTES: usize = 32;
/// A buffer that grew beyond this is given back when it is empty.
const KEPT_BUFFER_BYTES: usize = 4096;

/// How far a connection has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    /// A host process has connected and not yet said to which port.
    Greeting(Vec<u8>),
    /// The guest has been asked.
    Requested,
    /// Both sides agree.
    Established,
}

/// What the guest has to be told, besides data.
#[derive(Debug, Clone, Copy, Default)]
pub struct Pending {
    pub request: bool,
    pub response: bool,
    pub reset: bool,
    pub credit_update: bool,
}

/// What became of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// The connection lives.
    Alive,
    /// Nothing more to do: forget the connection.
    Finished,
}

/// A stream.
pub struct Connection {
    pub stream: UnixStream,
    pub guest_port: u32,
    pub host_port: u32,
    pub phase: Phase,
    pub pending: Pending,
    /// In the list of connections that may have something for the guest.
    pub queued: bool,
    /// The guest has forgotten this connection; only the rest of its data has to be delivered.
    pub orphan: bool,
    /// When the muxer loses its patience.
    pub due: Option<Instant>,

    /// From the guest, not yet taken by the socket.
    buffer: VecDeque<u8>,
    buf_alloc: u32,
    received: Wrapping<u32>,
    forwarded: Wrapping<u32>,
    /// `forwarded` as the guest knows it.
    reported: Wrapping<u32>,
    guest_shutdown: u32,

    guest_buf_alloc: u32,
    guest_forwarded: Wrapping<u32>,
    sent: Wrapping<u32>,
    /// The socket may have data.
    readable: bool,
    end_of_data: bool,
    /// The socket takes no data any more.
    deaf: bool,
    told_shutdown: u32,
}

impl Connection {
    /// A connection with a buffer of `buf_alloc` bytes.
    pub fn new(stream: UnixStream, host_port: u32, guest_port: u32, phase: Phase, buf_alloc: u32) -> Self {
        Self {
            stream,
            guest_port,
            host_port,
            phase,
            pending: Pending::default(),
            queued: false,
            orphan: false,
            due: None,
            buffer: VecDeque::new(),
            buf_alloc,
            received: Wrapping(0),
            forwarded: Wrapping(0),
            reported: Wrapping(0),
            guest_shutdown: 0,
            guest_buf_alloc: 0,
            guest_forwarded: Wrapping(0),
            sent: Wrapping(0),
            readable: true,
            end_of_data: false,
            deaf: false,
            told_shutdown: 0,
        }
    }

    /// Takes what the guest says of its buffer; every packet says it (section 5.10.6.3).
    pub fn update_credit(&mut self, header: &Header) {
        self.guest_buf_alloc = header.buf_alloc;
        self.guest_forwarded = Wrapping(header.fwd_cnt);
    }

    /// Reads the line with the port, which must not take what is behind it. `None` if it isn't complete yet.
    pub fn read_greeting(&mut self) -> Option<Result<u32, GreetingError>> {
        let Phase::Greeting(line) = &mut self.phase else { return Some(Err(GreetingError)) };
        loop {
            let mut byte = [0];
            match self.stream.read(&mut byte) {
                Ok(0) => return Some(Err(GreetingError)),
                Ok(_) if byte == *b"\n" => return Some(parse_greeting(line)),
                Ok(_) if line.len() < MAX_GREETING_BYTES => line.extend(byte),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(_) | Err(_) => return Some(Err(GreetingError)),
            }
        }
    }

    /// Tells the host process that the guest has accepted.
    pub fn welcome(&mut self) -> io::Result<()> {
        let line = format!("OK {}\n", self.host_port);
        let sent = sys::send_bytes(self.stream.as_fd(), line.as_bytes())?;
        self.phase = Phase::Established;
        if sent == line.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }

    /// Ends the stream for the host process, which may still read what it got before.
    pub fn hang_up(&mut self) {
        let _ = self.stream.shutdown(Shutdown::Both);
    }

    /// The socket may have data, or its end.
    pub fn became_readable(&mut self) {
        self.readable = true;
    }

    /// The other end of the socket is closed for both directions.
    pub fn hung_up(&mut self) {
        self.deaf = true;
        self.readable = true;
    }

    /// Data from the guest. An error if it sent more than there was space for.
    pub fn receive(&mut self, reader: &mut Reader<'_>) -> Result<(), CreditError> {
        let len = u32::try_from(reader.remaining()).map_err(|_| CreditError)?;
        let in_buffer = (self.received - self.forwarded).0;
        if in_buffer.checked_add(len).is_none_or(|sum| sum > self.buf_alloc) {
            return Err(CreditError);
        }
        self.received += len;
        if self.buffer.is_empty() && !self.deaf {
            match reader.send(self.stream.as_fd()) {
                Ok(bytes) => self.forward(bytes),
                Err(error) => self.note_send_error(&error),
            }
        }
        if self.deaf {
            self.forward(reader.remaining());
            return Ok(());
        }
        self.keep(reader);
        Ok(())
    }

    /// The guest has shut down directions. Finished when nothing is left to deliver.
    pub fn shut_down(&mut self, flags: u32) -> Fate {
        self.guest_shutdown |= flags & SHUTDOWN_BOTH;
        if flags & SHUTDOWN_RECEIVE != 0 {
            let _ = self.stream.shutdown(Shutdown::Read);
        }
        self.flush()
    }

    /// Gives buffered data to the socket.
    pub fn flush(&mut self) -> Fate {
        while !self.buffer.is_empty() && !self.deaf {
            match sys::send_bytes(self.stream.as_fd(), self.buffer.as_slices().0) {
                Ok(bytes) => {
                    self.buffer.drain(..bytes.min(self.buffer.len()));
                    self.forward(bytes);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => self.note_send_error(&error),
            }
        }
        if self.deaf {
            self.forward(self.buffer.len());
            self.buffer.clear();
        }
        if !self.buffer.is_empty() {
            return Fate::Alive;
        }
        if self.buffer.capacity() > KEPT_BUFFER_BYTES {
            self.buffer = VecDeque::new();
        }
        if self.guest_shutdown & SHUTDOWN_SEND != 0 {
            let _ = self.stream.shutdown(Shutdown::Write);
        }
        if self.guest_shutdown == SHUTDOWN_BOTH { Fate::Finished } else { Fate::Alive }
    }

    /// There may be something to tell the guest.
    pub fn has_work(&self) -> bool {
        let Pending { request, response, reset, credit_update } = self.pending;
        request || response || reset || credit_update || self.owed_shutdown() != 0 || self.may_send_data()
    }

    /// All is said: the guest knows that both directions are over, and may take its time to close.
    pub fn is_over(&self) -> bool {
        self.told_shutdown == SHUTDOWN_BOTH
    }

    /// Writes one packet for the guest: its header to `writer`, and data behind it. `None` if there is none after all; then
    /// nothing is written.
    pub fn produce(&mut self, writer: &mut Writer<'_>, data: &mut Writer<'_>, guest_cid: u64) -> Option<u16> {
        let mut header = Header {
            src_cid: super::packet::HOST_CID,
            dst_cid: guest_cid,
            src_port: self.host_port,
            dst_port: self.guest_port,
            kind: super::packet::TYPE_STREAM,
            buf_alloc: self.buf_alloc,
            ..Header::default()
        };
        header.op = self.next_control();
        if header.op == 0 && self.may_send_data() {
            header.len = self.receive_from_host(data)?;
            header.op = if header.len > 0 { op::RW } else { 0 };
        }
        if header.op == 0 {
            header.flags = self.owed_shutdown();
            self.told_shutdown |= header.flags;
            header.op = if header.flags != 0 { op::SHUTDOWN } else { return None };
        }
        header.fwd_cnt = self.forwarded.0;
        self.reported = self.forwarded;
        self.pending.credit_update = false;
        writer.write(&header.to_bytes());
        writer.count_tail(data);
        Some(header.op)
    }

    fn next_control(&mut self) -> u16 {
        let pending = &mut self.pending;
        if std::mem::take(&mut pending.reset) {
            return op::RST;
        }
        if std::mem::take(&mut pending.request) {
            return op::REQUEST;
        }
        if std::mem::take(&mut pending.response) {
            return op::RESPONSE;
        }
        if std::mem::take(&mut pending.credit_update) {
            return op::CREDIT_UPDATE;
        }
        0
    }

    /// Reads from the socket. Zero at the end of data, `None` if there is none right now.
    fn receive_from_host(&mut self, data: &mut Writer<'_>) -> Option<u32> {
        let limit = usize::try_from(self.credit()).ok()?.min(data.remaining());
        if limit == 0 {
            return None;
        }
        loop {
            match data.receive(self.stream.as_fd(), limit) {
                Ok(0) => self.end_of_data = true,
                Ok(_) => self.sent += data.written(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.readable = false;
                    // There may still be a shutdown to tell.
                    return (self.owed_shutdown() != 0).then_some(0);
                }
                Err(_) => {
                    self.end_of_data = true;
                    self.deaf = true;
                }
            }
            return Some(data.written());
        }
    }

    fn may_send_data(&self) -> bool {
        self.phase == Phase::Established
            && self.readable
            && !self.end_of_data
            && self.guest_shutdown & SHUTDOWN_RECEIVE == 0
            && self.credit() > 0
    }

    /// Free space in the guest's buffer (section 5.10.6.3). A guest that shrinks its buffer below what is in it has none.
    fn credit(&self) -> u32 {
        self.guest_buf_alloc.saturating_sub((self.sent - self.guest_forwarded).0)
    }

    /// Ends of the host's side that the guest doesn't know of.
    fn owed_shutdown(&self) -> u32 {
        if self.phase != Phase::Established {
            return 0;
        }
        let send = if self.end_of_data { SHUTDOWN_SEND } else { 0 };
        let receive = if self.deaf { SHUTDOWN_RECEIVE } else { 0 };
        (send | receive) & !self.told_shutdown
    }

    fn keep(&mut self, reader: &mut Reader<'_>) {
        let mut bytes = [0; 4096];
        while reader.remaining() > 0 {
            let count = reader.read(&mut bytes);
            self.buffer.extend(bytes.get(..count).unwrap_or_default());
        }
    }

    /// Counts bytes that have left the buffer, and tells the guest when it may believe that half of the buffer is full.
    fn forward(&mut self, bytes: usize) {
        self.forwarded += u32::try_from(bytes).unwrap_or(u32::MAX);
        let believed_full = (self.received - self.reported).0;
        if self.forwarded != self.reported && believed_full > self.buf_alloc / 2 {
            self.pending.credit_update = true;
        }
    }

    fn note_send_error(&mut self, error: &io::Error) {
        if !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) {
            self.deaf = true;
        }
    }
}

/// The first line isn't `CONNECT <port>`.
#[derive(Debug, PartialEq, Eq)]
pub struct GreetingError;

/// The guest sent more than it was allowed to.
#[derive(Debug, PartialEq, Eq)]
pub struct CreditError;

fn parse_greeting(line: &[u8]) -> Result<u32, GreetingError> {
    let text = std::str::from_utf8(line).map_err(|_| GreetingError)?;
    let port = text.trim_end().strip_prefix("CONNECT ").ok_or(GreetingError)?;
    port.parse().map_err(|_| GreetingError)
}
