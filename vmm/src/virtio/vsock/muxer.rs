//! Many streams over one device: what packets, sockets and time do to connections.

use std::collections::{HashSet, VecDeque};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::EventSet;

use super::connection::{Connection, Fate, Phase};
use super::control::Control;
use super::dials::{Dial, Dials};
use super::packet::{HEADER_BYTES, HOST_CID, Header, SHUTDOWN_BOTH, TYPE_STREAM, op};
use super::ports::{Connections, MAX_CONNECTIONS, Ports, Token};
use crate::virtio::buffers::{Reader, Writer};
use crate::virtio::counters::Counters;
use crate::virtio::sys;
use crate::virtio::worker::Watch;

/// Token of the listening socket; smaller ones are the queues'.
pub const LISTENER_TOKEN: u64 = 2;
/// Token of changes of the limits towards the guest.
pub const RX_LIMITS_TOKEN: u64 = 3;
/// Token of changes of the limits from the guest.
pub const TX_LIMITS_TOKEN: u64 = 4;
const FIRST_CONNECTION_TOKEN: u64 = 16;
/// How long a host process may take to name its port, the guest to answer, and the guest to close what is over.
const PATIENCE: Duration = Duration::from_secs(10);
/// Most resets for unknown connections that wait for a receive buffer. More are dropped: the guest gets a timeout instead.
const MAX_STRAY_RESETS: usize = 1024;
/// More deadlines than this are cleared of those that mean nothing any more. Each connection has at most one that does.
const MAX_DEADLINES: usize = 2 * MAX_CONNECTIONS;
/// Connections accepted in one go, so that a flood of them can't keep the others waiting.
const ACCEPTS_AT_ONCE: usize = 64;

/// All streams of a device.
pub struct Muxer {
    guest_cid: u64,
    listener: UnixListener,
    path: PathBuf,
    counters: Arc<Counters>,
    control: Arc<Control>,
    connections: Connections,
    /// Connections that may have something for the guest, each at most once.
    ready: VecDeque<Token>,
    stray_resets: VecDeque<Header>,
    dials: Dials,
    /// In the order of time, because all wait equally long.
    deadlines: VecDeque<(Instant, Token)>,
    /// Host processes may wait in the listener's queue.
    accepting: bool,
}

impl Muxer {
    /// No streams yet.
    pub fn new(
        guest_cid: u64,
        listener: UnixListener,
        path: PathBuf,
        counters: Arc<Counters>,
        control: Arc<Control>,
    ) -> Self {
        Self {
            guest_cid,
            listener,
            path,
            counters,
            connections: Connections::new(FIRST_CONNECTION_TOKEN, Arc::clone(&control)),
            control,
            ready: VecDeque::new(),
            stray_resets: VecDeque::new(),
            dials: Dials::default(),
            deadlines: VecDeque::new(),
            accepting: true,
        }
    }

    /// Starts to wait for host processes.
    pub fn start(&mut self, watch: &Watch) -> io::Result<()> {
        watch.add(&self.listener, EventSet::IN | EventSet::EDGE_TRIGGERED, LISTENER_TOKEN)
    }

    /// Something happened at a socket.
    pub fn socket_event(&mut self, watch: &Watch, token: u64, events: EventSet) {
        if token == LISTENER_TOKEN {
            self.accepting = true;
            return self.accept(watch);
        }
        let token = Token(token);
        let Some(connection) = self.connections.get(token) else { return };
        if matches!(connection.phase, Phase::Greeting(_)) {
            return self.read_greeting(token);
        }
        if events.intersects(EventSet::HANG_UP | EventSet::ERROR) {
            connection.hung_up();
        }
        if events.intersects(EventSet::IN | EventSet::READ_HANG_UP) {
            connection.became_readable();
        }
        if connection.flush() == Fate::Finished {
            return self.finish(token);
        }
        self.enqueue(token);
    }

    /// Accepts host processes, if any wait and there is a place for them.
    pub fn accept(&mut self, watch: &Watch) {
        for _ in 0..ACCEPTS_AT_ONCE {
            if !self.accepting || self.connections.is_full(self.dials.len()) {
                return;
            }
            match self.listener.accept() {
                Ok((stream, _)) => self.add_greeting(watch, stream),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    // With no file descriptors left, the next closed connection makes place.
                    self.accepting = error.kind() != io::ErrorKind::WouldBlock;
                    return;
                }
            }
        }
    }

    /// A packet from the guest.
    pub fn packet(&mut self, watch: &Watch, header: &Header, reader: &mut Reader<'_>) {
        if header.src_cid != self.guest_cid {
            self.counters.errors.add(1);
            return;
        }
        let data_bytes = usize::try_from(header.len).unwrap_or(usize::MAX);
        if header.dst_cid != HOST_CID || header.kind != TYPE_STREAM || data_bytes > reader.remaining() {
            return self.reset_stray(header);
        }
        reader.truncate(data_bytes);
        self.counters.bytes_from_guest.add(u64::from(header.len));
        let ports = Ports { host: header.dst_port, guest: header.src_port };
        let token = self.connections.find(ports);
        self.dials.cancel(ports);
        if header.op == op::REQUEST {
            self.control.streams.from_guest.add(1);
            // The guest may use its port again once it knows that both directions are over.
            if let Some(old) = token.filter(|&token| self.connections.get(token).is_some_and(|c| c.is_over())) {
                self.connections.remove(old);
                return self.request(watch, header);
            }
        }
        match token {
            Some(token) => self.packet_for(token, header, reader),
            None if header.op == op::REQUEST => self.request(watch, header),
            None => self.reset_stray(header),
        }
    }

    /// There is something to tell the guest, or there may be.
    pub fn has_packets(&self) -> bool {
        !self.ready.is_empty() || !self.stray_resets.is_empty()
    }

    /// Writes one packet for the guest and returns how many bytes of data it has; `None` if there is no packet after all.
    pub fn next_packet(&mut self, writer: &mut Writer<'_>) -> Option<u32> {
        if let Some(header) = self.stray_resets.pop_front() {
            writer.write(&header.to_bytes());
            return Some(0);
        }
        // Split once: a connection that turns out to have nothing must not take the space from the next one.
        let space = writer.remaining().checked_sub(HEADER_BYTES);
        let mut data = space.and_then(|bytes| writer.split_tail(bytes))?;
        while let Some(token) = self.ready.pop_front() {
            let Some(connection) = self.connections.get(token) else { continue };
            connection.queued = false;
            // Its ports may belong to another connection by now.
            if connection.orphan {
                continue;
            }
            let Some(sent) = connection.produce(writer, &mut data, self.guest_cid) else { continue };
            let over = connection.is_over();
            match sent {
                op::RST => self.connections.remove(token),
                op::SHUTDOWN if over => self.wait(token),
                _ => {}
            }
            self.enqueue(token);
            self.counters.bytes_to_guest.add(u64::from(data.written()));
            return Some(data.written());
        }
        None
    }

    /// The next time at which something takes too long.
    pub fn deadline(&self) -> Option<Instant> {
        let patience = self.deadlines.front().map(|(time, _)| *time);
        patience.into_iter().chain(self.dials.deadline()).min()
    }

    /// Gives up on what took too long, and tries again what may work now.
    pub fn timeout(&mut self, watch: &Watch) {
        let now = Instant::now();
        self.dial_again(watch, now);
        while let Some(&(time, token)) = self.deadlines.front().filter(|(time, _)| *time <= now) {
            self.deadlines.pop_front();
            let Some(connection) = self.connections.get(token) else { continue };
            // A later wait of the same connection has an entry of its own.
            if connection.due != Some(time) {
                continue;
            }
            match connection.phase {
                Phase::Greeting(_) => self.connections.remove(token),
                Phase::Requested => self.give_up(token),
                // The guest knows that it is over, so no answer is needed.
                Phase::Established if connection.is_over() => self.connections.remove(token),
                Phase::Established => {}
            }
        }
    }

    fn add_greeting(&mut self, watch: &Watch, stream: UnixStream) {
        let bytes = self.connections.buffer_bytes();
        let connection = Connection::new(stream, 0, 0, Phase::Greeting(Vec::new()), bytes);
        if let Some(token) = self.add(watch, connection) {
            self.wait(token);
        }
    }

    fn add(&mut self, watch: &Watch, connection: Connection) -> Option<Token> {
        connection.stream.set_nonblocking(true).ok()?;
        let fd = connection.stream.as_raw_fd();
        let token = self.connections.add(connection);
        let events = EventSet::IN | EventSet::OUT | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
        if watch.add(&fd, events, token.0).is_err() {
            self.connections.remove(token);
            return None;
        }
        Some(token)
    }

    fn read_greeting(&mut self, token: Token) {
        let Some(connection) = self.connections.get(token) else { return };
        let Some(port) = connection.read_greeting() else { return };
        let Ok(guest) = port else { return self.connections.remove(token) };
        let host = self.connections.local_port(guest);
        if !self.connections.name(token, Ports { host, guest }) {
            return self.connections.remove(token);
        }
        let Some(connection) = self.connections.get(token) else { return };
        connection.host_port = host;
        connection.guest_port = guest;
        connection.phase = Phase::Requested;
        connection.pending.request = true;
        self.control.streams.from_host.add(1);
        self.enqueue(token);
        self.wait(token);
    }

    /// The guest wants to connect to a port of the host.
    fn request(&mut self, watch: &Watch, header: &Header) {
        if self.connections.is_full(self.dials.len()) {
            return self.refuse(header);
        }
        let dial = Dial::new(header);
        if self.dials.has_port(header.dst_port) || !self.connect(watch, header) {
            self.dials.push(dial);
        }
    }

    /// Tries again to reach listeners whose queues were full.
    fn dial_again(&mut self, watch: &Watch, now: Instant) {
        // Behind the first that has to wait for a listener, all others for it wait, too.
        let mut full = HashSet::new();
        for dial in self.dials.take_due(now) {
            let port = dial.header.dst_port;
            if dial.until <= now {
                self.refuse(&dial.header);
            } else if full.contains(&port) || !self.connect(watch, &dial.header) {
                full.insert(port);
                self.dials.push(dial);
            }
        }
    }

    /// Connects to a listener of the host, or refuses. False if the listener's queue is full.
    fn connect(&mut self, watch: &Watch, header: &Header) -> bool {
        let mut path = self.path.clone().into_os_string();
        path.push(format!("_{}", header.dst_port));
        let stream = match sys::connect_unix(path.as_ref()) {
            Ok(stream) => stream,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
            Err(_) => {
                self.refuse(header);
                return true;
            }
        };
        let bytes = self.connections.buffer_bytes();
        let mut connection = Connection::new(stream, header.dst_port, header.src_port, Phase::Established, bytes);
        connection.update_credit(header);
        connection.pending.response = true;
        let ports = Ports { host: header.dst_port, guest: header.src_port };
        match self.add(watch, connection) {
            Some(token) if self.connections.name(token, ports) => self.enqueue(token),
            Some(token) => {
                self.connections.remove(token);
                self.refuse(header);
            }
            None => self.refuse(header),
        }
        true
    }

    fn refuse(&mut self, header: &Header) {
        self.control.streams.refused.add(1);
        self.reset_stray(header);
    }

    fn packet_for(&mut self, token: Token, header: &Header, reader: &mut Reader<'_>) {
        let Some(connection) = self.connections.get(token) else { return };
        connection.update_credit(header);
        let established = connection.phase == Phase::Established;
        match header.op {
            op::RESPONSE if connection.phase == Phase::Requested => {
                if connection.welcome().is_err() {
                    return self.break_off(token);
                }
            }
            op::RW if established => {
                if connection.receive(reader).is_err() {
                    self.counters.errors.add(1);
                    return self.break_off(token);
                }
            }
            op::SHUTDOWN if established => {
                if connection.shut_down(header.flags) == Fate::Finished {
                    return self.reset(token);
                }
            }
            op::RST if established => return self.orphan(token),
            op::RST => return self.connections.remove(token),
            op::CREDIT_UPDATE => {}
            op::CREDIT_REQUEST => connection.pending.credit_update = true,
            _ => return self.break_off(token),
        }
        self.enqueue(token);
    }

    /// Everything is delivered, after the guest has shut down both directions.
    fn finish(&mut self, token: Token) {
        match self.connections.get(token) {
            Some(connection) if connection.orphan => self.connections.remove(token),
            _ => self.reset(token),
        }
    }

    /// The guest has forgotten the connection. What it sent before still goes to the host process.
    fn orphan(&mut self, token: Token) {
        let Some(connection) = self.connections.get(token) else { return };
        if connection.shut_down(SHUTDOWN_BOTH) == Fate::Finished {
            return self.connections.remove(token);
        }
        connection.orphan = true;
        self.connections.unname(token);
    }

    /// Ends a connection that the guest doesn't answer. The guest may be gone for good, so nothing waits for it.
    fn give_up(&mut self, token: Token) {
        self.control.streams.broken.add(1);
        if let Some(connection) = self.connections.get(token).filter(|connection| !connection.pending.request) {
            let (src_port, dst_port) = (connection.guest_port, connection.host_port);
            let op = op::REQUEST;
            // As if the guest had sent something that belongs to nothing.
            let header = Header { dst_cid: HOST_CID, src_port, dst_port, kind: TYPE_STREAM, op, ..Header::default() };
            self.reset_stray(&header);
        }
        self.connections.remove(token);
    }

    /// Ends a connection that can't go on. The host process hears of it at once, whenever the guest takes the reset.
    fn break_off(&mut self, token: Token) {
        self.control.streams.broken.add(1);
        if let Some(connection) = self.connections.get(token) {
            connection.hang_up();
        }
        self.reset(token);
    }

    /// Ends a connection from this side.
    fn reset(&mut self, token: Token) {
        if let Some(connection) = self.connections.get(token) {
            connection.pending.reset = true;
            self.enqueue(token);
        }
    }

    /// Answers a packet that belongs to no connection.
    fn reset_stray(&mut self, header: &Header) {
        if header.op == op::RST || self.stray_resets.len() >= MAX_STRAY_RESETS {
            return;
        }
        self.stray_resets.push_back(Header {
            src_cid: header.dst_cid,
            dst_cid: self.guest_cid,
            src_port: header.dst_port,
            dst_port: header.src_port,
            kind: header.kind,
            op: op::RST,
            ..Header::default()
        });
    }

    fn enqueue(&mut self, token: Token) {
        let Some(connection) = self.connections.get(token) else { return };
        if !connection.queued && !connection.orphan && connection.has_work() {
            connection.queued = true;
            self.ready.push_back(token);
        }
    }

    fn wait(&mut self, token: Token) {
        let due = Instant::now() + PATIENCE;
        if let Some(connection) = self.connections.get(token) {
            connection.due = Some(due);
            self.deadlines.push_back((due, token));
        }
        self.forget_old_deadlines();
    }

    /// Connections that end early leave their deadlines behind; there shall not be many.
    fn forget_old_deadlines(&mut self) {
        if self.deadlines.len() > MAX_DEADLINES {
            let connections = &mut self.connections;
            self.deadlines.retain(|&(time, token)| connections.get(token).is_some_and(|it| it.due == Some(time)));
        }
    }
}
