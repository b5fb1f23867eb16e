//! The host's end of a port: a Unix socket that one process at a time is connected to.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, recv};
use vmm_sys_util::epoll::EventSet;

use crate::virtio::buffers::{Reader, Writer};
use crate::virtio::sys;
use crate::virtio::worker::Watch;

/// A listening socket; the file is removed when this is dropped.
pub struct PortSocket {
    path: PathBuf,
    listener: UnixListener,
    client: Option<Client>,
}

/// The process that is connected.
struct Client {
    stream: UnixStream,
    /// The socket may have data.
    readable: bool,
    /// The process sends nothing any more.
    silent: bool,
    /// The process takes nothing any more.
    gone: bool,
}

impl Client {
    /// All that it sent is read, as far as can be seen without reading.
    fn has_nothing(&self) -> bool {
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        self.silent || !matches!(recv(self.stream.as_raw_fd(), &mut [0], flags), Ok(1))
    }

    /// Its end is closed.
    fn has_left(&self) -> bool {
        let mut wanted = [PollFd::new(self.stream.as_fd(), PollFlags::empty())];
        let over = PollFlags::POLLHUP | PollFlags::POLLERR;
        poll(&mut wanted, PollTimeout::ZERO).is_ok()
            && wanted.iter().any(|fd| fd.revents().is_some_and(|events| events.intersects(over)))
    }
}

/// What came of sending.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// All of it, or nobody is there who could want it.
    All,
    /// The rest has to wait for the process to read.
    Part,
}

impl PortSocket {
    /// Listens at `path`.
    pub fn listen(path: &Path) -> io::Result<Self> {
        let listener = UnixListener::bind(path)?;
        let this = Self { path: path.to_owned(), listener, client: None };
        this.listener.set_nonblocking(true)?;
        Ok(this)
    }

    /// Has the worker called with `token` when a process connects.
    pub fn watch(&self, watch: &Watch, token: u64) -> io::Result<()> {
        watch.add(&self.listener, EventSet::IN | EventSet::EDGE_TRIGGERED, token)
    }

    /// A process is connected.
    pub fn is_connected(&self) -> bool {
        self.client.is_some()
    }

    /// Hangs up.
    pub fn disconnect(&mut self) {
        self.client = None;
    }

    /// Accepts the next process if none is connected. The worker hears of its events with `token`.
    pub fn accept(&mut self, watch: &Watch, token: u64) {
        while self.client.is_none() {
            let stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return,
            };
            let events = EventSet::IN | EventSet::OUT | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
            if stream.set_nonblocking(true).is_ok() && watch.add(&stream, events, token).is_ok() {
                self.client = Some(Client { stream, readable: true, silent: false, gone: false });
            }
        }
    }

    /// Something happened at the process's socket. It may have been the socket of the process before, if both were in one batch of
    /// events: so whether this one has left is asked, not believed.
    pub fn note(&mut self, events: EventSet) {
        if let Some(client) = &mut self.client {
            client.gone |= events.intersects(EventSet::HANG_UP | EventSet::ERROR) && client.has_left();
            client.readable |=
                events.intersects(EventSet::IN | EventSet::READ_HANG_UP | EventSet::HANG_UP | EventSet::ERROR);
        }
    }

    /// There may be data for the guest.
    pub fn has_input(&self) -> bool {
        self.client.as_ref().is_some_and(|client| client.readable && !client.silent)
    }

    /// Forgets a process that has left. What it sent before stays as long as it is `wanted`.
    pub fn forget_gone(&mut self, wanted: bool) {
        let over = |client: &Client| client.gone && (!wanted || client.has_nothing());
        if self.client.as_ref().is_some_and(over) {
            self.client = None;
        }
    }

    /// Reads into guest memory. `None` if there is nothing now.
    pub fn receive(&mut self, writer: &mut Writer<'_>) -> Option<u32> {
        let client = self.client.as_mut()?;
        let limit = writer.remaining();
        match writer.receive(client.stream.as_fd(), limit) {
            Ok(0) => client.silent = true,
            Ok(_) => return Some(writer.written()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => client.readable = false,
            Err(_) => (client.silent, client.gone) = (true, true),
        }
        None
    }

    /// Sends what the process takes now; the rest is lost.
    pub fn send_some(&mut self, bytes: &[u8]) {
        if let Some(client) = &mut self.client {
            let result = sys::send_bytes(client.stream.as_fd(), bytes);
            client.gone |= result
                .is_err_and(|error| !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted));
        }
    }

    /// Sends from guest memory what the process takes now.
    pub fn send(&mut self, reader: &mut Reader<'_>) -> Sent {
        while reader.remaining() > 0 {
            let Some(client) = self.client.as_mut().filter(|client| !client.gone) else { return Sent::All };
            match reader.send(client.stream.as_fd()) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Sent::Part,
                Err(_) => client.gone = true,
            }
        }
        Sent::All
    }
}

impl Drop for PortSocket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}
