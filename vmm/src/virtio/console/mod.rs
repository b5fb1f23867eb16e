//! Console device (virtio 1.2, section 5.3): the guest's log, and named ports that host processes talk to.
//!
//! Without named ports it is a device with one port, which costs a guest the fewest exits at boot. Each named port is a Unix socket
//! on the host and a file below `/sys/class/virtio-ports` in the guest.

mod messages;
mod port;
mod service;
mod socket;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use thiserror::Error;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use self::messages::{FEATURE_MULTIPORT, FEATURE_SIZE};
use self::port::{Backend, Port};
use self::service::{ConsoleService, ControlQueues};
use self::socket::PortSocket;
use super::counters::Counters;
use super::device::{ActivateError, Activation, Queues, VirtioDevice};
use super::spec::device_type;
use super::worker::{Quiesce, Workers};

/// Most named ports.
pub const MAX_PORTS: usize = 15;
/// Linux sends a line or less at once, and a page at most.
const QUEUE_SIZE: u16 = 32;
/// Queues of the control messages (section 5.3.2).
const CONTROL_TO_DRIVER: u16 = 2;
const CONTROL_FROM_DRIVER: u16 = 3;

/// Receives what the guest writes to its console. Called from the device's worker: an implementation must not block for long.
pub trait ConsoleSink: Send {
    /// Takes all bytes.
    fn write(&mut self, bytes: &[u8]);
}

/// A console can't be made.
#[derive(Debug, Error)]
pub enum ConsoleError {
    /// The host's side of a port can't listen.
    #[error("Can't listen for console connections at {}", path.display())]
    Listen {
        /// Unix socket.
        path: PathBuf,
        /// What bind says.
        source: io::Error,
    },
    /// No file descriptor.
    #[error("Can't make the console")]
    Host(#[source] io::Error),
}

/// What a console is made of.
pub struct ConsoleConfig<'a> {
    /// Receives the output of the first port.
    pub sink: Box<dyn ConsoleSink>,
    /// Where a process may connect to the first port, too.
    pub socket: Option<&'a Path>,
    /// Columns and rows; zero for unknown.
    pub size: (u16, u16),
    /// Name and socket of further ports, at most [`MAX_PORTS`].
    pub ports: Vec<(&'a str, &'a Path)>,
}

impl ConsoleConfig<'_> {
    /// A console that only writes.
    pub fn log(sink: Box<dyn ConsoleSink>) -> Self {
        Self { sink, socket: None, size: (0, 0), ports: Vec::new() }
    }
}

/// What can be changed of a console while it runs.
pub struct Control {
    /// Columns in the lower half, rows in the upper.
    size: AtomicU32,
    /// Wakes the worker after a change.
    wake: EventFd,
}

impl Control {
    /// Columns and rows.
    pub fn size(&self) -> (u16, u16) {
        let [a, b, c, d] = self.size_bytes();
        (u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d]))
    }

    /// Changes the size; show the configuration to the guest afterwards.
    pub fn set_size(&self, (columns, rows): (u16, u16)) {
        self.size.store(u32::from(columns) | u32::from(rows) << 16, Ordering::Relaxed);
        // Can't fail: the counter can't be full.
        let _ = self.wake.write(1);
    }

    /// As in configuration space and in a message (sections 5.3.4 and 5.3.6.2).
    fn size_bytes(&self) -> [u8; 4] {
        self.size.load(Ordering::Relaxed).to_le_bytes()
    }
}

/// A console.
pub struct Console {
    counters: Arc<Counters>,
    control: Arc<Control>,
    queue_sizes: Vec<u16>,
    /// The host's ends, while no worker has them.
    backends: Vec<Backend>,
    ports: u32,
    workers: Workers<ConsoleService>,
}

impl Console {
    /// Makes a console. Its sockets listen from now on; their files are removed when it is dropped.
    pub fn new(config: ConsoleConfig<'_>) -> Result<Self, ConsoleError> {
        let listen = |path: &Path| {
            PortSocket::listen(path).map_err(|source| ConsoleError::Listen { path: path.to_owned(), source })
        };
        let mut backends =
            vec![Backend { name: None, sink: Some(config.sink), socket: config.socket.map(listen).transpose()? }];
        for (name, path) in config.ports {
            backends.push(Backend { name: Some(name.to_owned()), sink: None, socket: Some(listen(path)?) });
        }
        let ports = backends.len();
        // Two for each port and, between the first port and the others, two for control.
        let queues = if ports > 1 { 2 * ports + 2 } else { 2 };
        let wake = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(ConsoleError::Host)?;
        let control = Control { size: AtomicU32::new(0), wake };
        control.set_size(config.size);
        Ok(Self {
            counters: Arc::default(),
            control: Arc::new(control),
            queue_sizes: vec![QUEUE_SIZE; queues],
            ports: u32::try_from(ports).unwrap_or(u32::MAX),
            backends,
            workers: Workers::default(),
        })
    }

    /// The handle for changes at run time.
    pub fn control(&self) -> &Arc<Control> {
        &self.control
    }

    /// Makes the ports, or leaves everything as it is.
    fn make_ports(&mut self, queues: &mut Queues, multiport: bool) -> Result<Vec<Port>, ActivateError> {
        if self.backends.is_empty() {
            return Err(ActivateError("The console's output is gone".to_owned()));
        }
        let count = if multiport { self.backends.len() } else { 1 };
        let mut pairs = Vec::with_capacity(count);
        for port in (0u16..).take(count) {
            let receive = if port == 0 { 0 } else { 2 * port + 2 };
            pairs.push((queues.take(receive)?, queues.take(receive + 1)?));
        }
        let ports = self.backends.drain(..count).zip(pairs).enumerate().map(|(at, (backend, (receive, transmit)))| {
            let mut port = Port::new(backend, receive, transmit, at == 0);
            // Without messages nobody says that it is.
            port.is_guest_open = !multiport;
            port
        });
        Ok(ports.collect())
    }
}

impl VirtioDevice for Console {
    fn device_type(&self) -> u16 {
        device_type::CONSOLE
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn device_features(&self) -> u64 {
        if self.ports > 1 { FEATURE_SIZE | FEATURE_MULTIPORT } else { FEATURE_SIZE }
    }

    fn msix_vectors(&self) -> u16 {
        2
    }

    fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// Columns, rows, number of ports (section 5.3.4).
    fn config_space(&self) -> Vec<u8> {
        [self.control.size_bytes(), self.ports.to_le_bytes()].concat()
    }

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        let multiport = activation.driver_features & FEATURE_MULTIPORT != 0;
        let mut queues = activation.queues(&self.counters);
        let control_queues = if multiport {
            let (to_driver, from_driver) = (queues.take(CONTROL_TO_DRIVER)?, queues.take(CONTROL_FROM_DRIVER)?);
            Some(ControlQueues { to_driver, from_driver })
        } else {
            None
        };
        let service = ConsoleService {
            memory: activation.memory,
            ports: self.make_ports(&mut queues, multiport)?,
            queues: control_queues,
            control: Arc::clone(&self.control),
            counters: Arc::clone(&self.counters),
        };
        Ok(self.workers.start("console", [service])?)
    }

    /// Hangs up on host processes; they may connect again at once.
    fn reset(&mut self) {
        let ports = self.workers.stop().into_iter().flat_map(|service| service.ports);
        let mut backends: Vec<_> = ports.map(|port| port.backend).collect();
        for socket in backends.iter_mut().filter_map(|backend| backend.socket.as_mut()) {
            socket.disconnect();
        }
        backends.append(&mut self.backends);
        self.backends = backends;
    }

    fn workers(&self) -> &dyn Quiesce {
        &self.workers
    }
}

#[cfg(test)]
#[path = "console_test.rs"]
mod console_test;
