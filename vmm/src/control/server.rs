//! Connections of the control socket: non-blocking, bounded in number, size and time.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use event_manager::{EventOps, Events, MutEventSubscriber};
use nix::sys::stat::{Mode, umask};
use thiserror::Error;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::timerfd::TimerFd;

use super::http::{self, MAX_REQUEST_BYTES, Parsed, Refusal, Response};
use super::routes::{self, Api};

/// Clients at the same time.
const MAX_CONNECTIONS: usize = 16;
/// A client that doesn't come to the end of a request, or of reading its answer, for so long is dropped.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
const CHECK_INTERVAL: Duration = Duration::from_secs(5);
/// How long new clients wait while the process has no descriptor for them.
const PAUSE: Duration = Duration::from_millis(100);
/// Answers that a client doesn't read.
const MAX_UNSENT_BYTES: usize = 1 << 20;

/// The control socket can't be made.
#[derive(Debug, Error)]
#[error("Can't listen at control socket {}", path.display())]
pub struct ControlError {
    path: PathBuf,
    source: io::Error,
}

/// A bound control socket, for the time before there is a VM.
pub struct ControlServer {
    listener: UnixListener,
    timer: TimerFd,
    connections: HashMap<RawFd, Connection>,
    api: Option<Api>,
    /// New clients have to wait: the listener is not watched.
    paused: bool,
}

impl ControlServer {
    /// Binds the socket; only the owner may connect. Call it before threads exist: it changes the process's umask for a moment.
    pub fn bind(path: &Path) -> Result<Self, ControlError> {
        let fail = |source| ControlError { path: path.to_owned(), source };
        let before = umask(Mode::S_IRWXG | Mode::S_IRWXO);
        let listener = UnixListener::bind(path);
        umask(before);
        let listener = listener.map_err(fail)?;
        listener.set_nonblocking(true).map_err(fail)?;
        let timer = TimerFd::new().map_err(|e| fail(io::Error::from_raw_os_error(e.errno())))?;
        Ok(Self { listener, timer, connections: HashMap::new(), api: None, paused: false })
    }

    /// Tells the server whom to ask.
    pub fn serve(mut self, api: Api) -> Self {
        self.api = Some(api);
        self
    }

    fn accept(&mut self, ops: &mut EventOps) {
        let mut stream = match self.listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if is_shortage(&error) => return self.pause(ops),
            // A client that left already.
            Err(_) => return,
        };
        if stream.set_nonblocking(true).is_err() {
            return;
        }
        if self.connections.len() >= MAX_CONNECTIONS {
            let _ = stream.write(&Response::fault(503, "Too many connections").to_bytes(false));
            return;
        }
        let fd = stream.as_raw_fd();
        if ops.add(Events::new_raw(fd, EventSet::IN)).is_ok() {
            self.connections.insert(fd, Connection::new(stream));
            let _ = self.timer.reset(CHECK_INTERVAL, Some(CHECK_INTERVAL));
        }
    }

    /// Stops to watch the listener: a client that can't be accepted stays in its queue, and would be reported without end.
    fn pause(&mut self, ops: &mut EventOps) {
        if self.timer.reset(PAUSE, Some(CHECK_INTERVAL)).is_ok() {
            let _ = ops.remove(Events::empty_raw(self.listener.as_raw_fd()));
            self.paused = true;
        }
    }

    /// Watches the listener again.
    fn resume(&mut self, ops: &mut EventOps) {
        if self.paused {
            self.paused = ops.add(Events::new_raw(self.listener.as_raw_fd(), EventSet::IN)).is_err();
        }
    }

    fn check(&mut self, ops: &mut EventOps) {
        let _ = self.timer.wait();
        self.resume(ops);
        self.drop_idle(ops);
        self.stop_timer();
    }

    fn drop_idle(&mut self, ops: &mut EventOps) {
        let now = Instant::now();
        let idle: Vec<_> = self
            .connections
            .iter()
            .filter(|(_, connection)| now.duration_since(connection.last_active) > IDLE_TIMEOUT)
            .map(|(fd, _)| *fd)
            .collect();
        for fd in idle {
            if let Some(connection) = self.connections.get_mut(&fd) {
                connection.say_timeout();
            }
            self.disconnect(fd, ops);
        }
    }

    fn disconnect(&mut self, fd: RawFd, ops: &mut EventOps) {
        // Before the descriptor is closed, so that the manager knows it well enough to forget it.
        let _ = ops.remove(Events::empty_raw(fd));
        self.connections.remove(&fd);
        self.resume(ops);
        self.stop_timer();
    }

    fn stop_timer(&mut self) {
        if self.connections.is_empty() && !self.paused {
            let _ = self.timer.clear();
        }
    }
}

impl MutEventSubscriber for ControlServer {
    fn init(&mut self, ops: &mut EventOps) {
        for fd in [self.listener.as_raw_fd(), self.timer.as_raw_fd()] {
            if let Err(error) = ops.add(Events::new_raw(fd, EventSet::IN)) {
                crate::log::line(&format!("the control socket doesn't work: {error}"));
            }
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        let fd = events.fd();
        if fd == self.listener.as_raw_fd() {
            return self.accept(ops);
        }
        if fd == self.timer.as_raw_fd() {
            return self.check(ops);
        }
        let (Some(connection), Some(api)) = (self.connections.get_mut(&fd), &self.api) else { return };
        match connection.progress(&|request: &http::Request| routes::answer(api, request)) {
            Progress::Closed => self.disconnect(fd, ops),
            Progress::WantsRead => drop(ops.modify(Events::new_raw(fd, EventSet::IN))),
            Progress::WantsWrite => drop(ops.modify(Events::new_raw(fd, EventSet::OUT))),
        }
    }
}

/// The process or the system has no room for another descriptor.
fn is_shortage(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM))
}

struct Connection {
    stream: UnixStream,
    input: Vec<u8>,
    output: Vec<u8>,
    closing: bool,
    /// The client was told to send the body of the request that is in `input`.
    continued: bool,
    /// When the last request was complete, or the client last read a part of an answer.
    last_active: Instant,
}

enum Progress {
    WantsRead,
    WantsWrite,
    Closed,
}

impl Connection {
    fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            input: Vec::new(),
            output: Vec::new(),
            closing: false,
            continued: false,
            last_active: Instant::now(),
        }
    }

    /// Reads, answers and writes as far as it goes without waiting. One read a call: other events have their turn.
    fn progress(&mut self, answerer: &dyn Fn(&http::Request) -> Response) -> Progress {
        if self.output.is_empty() && !self.read() {
            return Progress::Closed;
        }
        // A client that asks faster than it reads has more requests here than fit into one round.
        loop {
            self.answer(answerer);
            let had_output = !self.output.is_empty();
            if !self.write() || (self.closing && self.output.is_empty()) {
                return Progress::Closed;
            }
            if !self.output.is_empty() {
                return Progress::WantsWrite;
            }
            if !had_output {
                return Progress::WantsRead;
            }
        }
    }

    fn read(&mut self) -> bool {
        let mut chunk = [0; 8192];
        match self.stream.read(&mut chunk) {
            Ok(0) => false,
            Ok(count) => {
                self.input.extend_from_slice(chunk.get(..count).unwrap_or_default());
                true
            }
            Err(error) => matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted),
        }
    }

    fn answer(&mut self, answerer: &dyn Fn(&http::Request) -> Response) {
        while !self.closing && self.output.len() < MAX_UNSENT_BYTES {
            match http::parse(&self.input) {
                Ok(Parsed::Partial { .. }) if self.input.len() > MAX_REQUEST_BYTES => {
                    self.refuse(&Refusal { status: 413, problem: "The request is too long".to_owned() });
                }
                Ok(Parsed::Partial { wants_continue }) => {
                    if wants_continue && !std::mem::replace(&mut self.continued, true) {
                        self.output.extend(http::CONTINUE);
                    }
                    return;
                }
                Ok(Parsed::Whole(request, used)) => {
                    self.input.drain(..used);
                    self.continued = false;
                    self.last_active = Instant::now();
                    self.closing = !request.keep_alive;
                    self.output.extend(answerer(&request).to_bytes(request.keep_alive));
                }
                Err(refusal) => self.refuse(&refusal),
            }
        }
    }

    /// Tells a client that is in the middle of a request why it is dropped. One that is idle sees the end of the connection.
    fn say_timeout(&mut self) {
        if !self.input.is_empty() && self.output.is_empty() {
            self.refuse(&Refusal { status: 408, problem: "The request did not come to its end in time".to_owned() });
            self.write();
        }
    }

    fn refuse(&mut self, refusal: &Refusal) {
        self.closing = true;
        self.output.extend(Response::fault(refusal.status, &refusal.problem).to_bytes(false));
    }

    fn write(&mut self) -> bool {
        while !self.output.is_empty() {
            match self.stream.write(&self.output) {
                Ok(count) => {
                    self.output.drain(..count);
                    self.last_active = Instant::now();
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        true
    }
}

#[cfg(test)]
#[path = "server_test.rs"]
mod tests;
