//! Streams that the guest asked for and whose listener on the host has no place in its queue right now.
//!
//! A connect to a Unix socket with a full queue either waits, which would hold up every other stream, or fails at once, which a
//! guest that starts many streams at a time would see as refusals. So the device tries again, for as long as Linux waits for an
//! answer.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::packet::Header;
use super::ports::Ports;

/// Time between two tries.
const RETRY_INTERVAL: Duration = Duration::from_millis(10);
/// How long a guest waits for an answer (Linux: `VSOCK_DEFAULT_CONNECT_TIMEOUT`).
const PATIENCE: Duration = Duration::from_secs(2);

/// A request of the guest that isn't answered yet.
#[derive(Debug, Clone, Copy)]
pub struct Dial {
    /// The request.
    pub header: Header,
    /// When it is refused.
    pub until: Instant,
}

impl Dial {
    /// A request that comes now.
    pub fn new(header: &Header) -> Self {
        Self { header: *header, until: Instant::now() + PATIENCE }
    }

    fn ports(&self) -> Ports {
        Ports { host: self.header.dst_port, guest: self.header.src_port }
    }
}

/// Requests in the order in which they came.
#[derive(Default)]
pub struct Dials {
    waiting: VecDeque<Dial>,
    retry_at: Option<Instant>,
}

impl Dials {
    /// Number of requests that wait. Each of them counts as a connection.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Has a request wait.
    pub fn push(&mut self, dial: Dial) {
        self.waiting.push_back(dial);
        self.retry_at.get_or_insert_with(|| Instant::now() + RETRY_INTERVAL);
    }

    /// The guest doesn't wait any more, or asks anew.
    pub fn cancel(&mut self, ports: Ports) {
        if !self.waiting.is_empty() {
            self.waiting.retain(|dial| dial.ports() != ports);
        }
    }

    /// A request for this port of the host waits: a later one must not overtake it.
    pub fn has_port(&self, host_port: u32) -> bool {
        self.waiting.iter().any(|dial| dial.header.dst_port == host_port)
    }

    /// When to try again.
    pub fn deadline(&self) -> Option<Instant> {
        self.retry_at
    }

    /// Takes all requests if it is time to try again; those that still have to wait come back by [`Dials::push`].
    pub fn take_due(&mut self, now: Instant) -> VecDeque<Dial> {
        if self.retry_at.is_none_or(|at| at > now) {
            return VecDeque::new();
        }
        self.retry_at = None;
        std::mem::take(&mut self.waiting)
    }
}
