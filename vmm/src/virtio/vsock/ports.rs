//! Which connection has which pair of ports, and how many there may be.

use std::collections::HashMap;
use std::sync::Arc;

use super::connection::Connection;
use super::control::Control;

/// Most connections at once, with those that are not yet or no longer established.
pub const MAX_CONNECTIONS: usize = 2048;
/// The host's ports for connections that host processes start.
const FIRST_LOCAL_PORT: u32 = 1 << 30;
const LAST_LOCAL_PORT: u32 = (1 << 31) - 1;
/// Receive buffers: the first connections get large ones, so that many connections can't take much memory of the host.
const LARGE_BUFFER_BYTES: u32 = 256 << 10;
const SMALL_BUFFER_BYTES: u32 = 32 << 10;
const LARGE_BUFFERS: usize = 128;

/// A connection's name inside the monitor; never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Token(pub u64);

/// A pair of ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ports {
    pub host: u32,
    pub guest: u32,
}

/// All connections.
pub struct Connections {
    all: HashMap<Token, Connection>,
    by_ports: HashMap<Ports, Token>,
    next_token: u64,
    next_local_port: u32,
    control: Arc<Control>,
}

impl Connections {
    /// None yet. Tokens start at `first_token`.
    pub fn new(first_token: u64, control: Arc<Control>) -> Self {
        Self {
            all: HashMap::new(),
            by_ports: HashMap::new(),
            next_token: first_token,
            next_local_port: FIRST_LOCAL_PORT,
            control,
        }
    }

    /// There is no place for one more beside `others` that have no connection yet.
    pub fn is_full(&self, others: usize) -> bool {
        self.all.len().saturating_add(others) >= MAX_CONNECTIONS
    }

    /// Size of the receive buffer that the next connection may have.
    pub fn buffer_bytes(&self) -> u32 {
        if self.all.len() < LARGE_BUFFERS { LARGE_BUFFER_BYTES } else { SMALL_BUFFER_BYTES }
    }

    /// Adds a connection that has no ports yet.
    pub fn add(&mut self, connection: Connection) -> Token {
        let token = Token(self.next_token);
        self.next_token += 1;
        self.all.insert(token, connection);
        self.control.streams.open.add(1);
        token
    }

    /// Gives a connection its ports. False if another one has them.
    pub fn name(&mut self, token: Token, ports: Ports) -> bool {
        if self.by_ports.contains_key(&ports) {
            return false;
        }
        self.by_ports.insert(ports, token);
        true
    }

    /// Takes the ports from a connection, for another one.
    pub fn unname(&mut self, token: Token) {
        if let Some(connection) = self.all.get(&token) {
            let ports = Ports { host: connection.host_port, guest: connection.guest_port };
            if self.by_ports.get(&ports) == Some(&token) {
                self.by_ports.remove(&ports);
            }
        }
    }

    /// Finds a connection.
    pub fn find(&self, ports: Ports) -> Option<Token> {
        self.by_ports.get(&ports).copied()
    }

    /// A connection.
    pub fn get(&mut self, token: Token) -> Option<&mut Connection> {
        self.all.get_mut(&token)
    }

    /// Closes a connection.
    pub fn remove(&mut self, token: Token) {
        self.unname(token);
        if self.all.remove(&token).is_some() {
            self.control.streams.open.take_back(1);
        }
    }

    /// A port of the host for a connection to `guest_port`. There are far more ports than connections, so one is free.
    pub fn local_port(&mut self, guest_port: u32) -> u32 {
        for _ in 0..=MAX_CONNECTIONS {
            let port = self.next_local_port;
            self.next_local_port = if port == LAST_LOCAL_PORT { FIRST_LOCAL_PORT } else { port + 1 };
            if self.find(Ports { host: port, guest: guest_port }).is_none() {
                return port;
            }
        }
        self.next_local_port
    }
}

impl Drop for Connections {
    fn drop(&mut self) {
        self.control.streams.open.take_back(self.all.len() as u64);
    }
}
