//! Socket device (virtio 1.2, section 5.10) whose host side is a Unix socket.
//!
//! A host process connects to the socket and writes `CONNECT <port>\n`; when the guest accepts, it reads `OK <host port>\n`
//! and then has a stream. A connection from the guest to port P of the host goes to the Unix socket `<uds_path>_P`.

mod connection;
mod control;
mod dials;
mod muxer;
mod packet;
mod ports;
mod service;

use std::io;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use thiserror::Error;

pub use self::control::{Control, Streams};
use self::muxer::Muxer;
use self::service::VsockService;
use super::counters::Counters;
use super::device::{ActivateError, Activation, VirtioDevice};
use super::rate_limiter::Gate;
use super::spec::device_type;
use super::worker::{Quiesce, Workers};
use crate::config;

/// Receive, transmit and event queue (section 5.10.2).
const QUEUE_SIZES: &[u16] = &[256, 256, 16];
const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;

/// A socket device can't be made.
#[derive(Debug, Error)]
pub enum VsockError {
    /// The host's side can't listen.
    #[error("Can't listen for vsock connections at {}", path.display())]
    Listen {
        /// Unix socket.
        path: PathBuf,
        /// What bind says.
        source: io::Error,
    },
    /// No file descriptor for the rate limiters.
    #[error("Can't make the rate limiters of the socket device")]
    Limiter(#[source] io::Error),
}

/// A socket device.
pub struct Vsock {
    guest_cid: u32,
    listener: UnixListener,
    path: PathBuf,
    counters: Arc<Counters>,
    control: Arc<Control>,
    workers: Workers<VsockService>,
}

impl Vsock {
    /// Listens at `uds_path`; the socket file is removed when the device is dropped. Host processes may connect before the
    /// guest has started: they wait. `rx` limits the way to the guest, `tx` that from the guest.
    pub fn new(
        guest_cid: u32,
        uds_path: &Path,
        rx: Option<&config::RateLimiter>,
        tx: Option<&config::RateLimiter>,
    ) -> Result<Self, VsockError> {
        let control = Control::new(rx, tx).map_err(VsockError::Limiter)?;
        let fail = |source| VsockError::Listen { path: uds_path.to_owned(), source };
        let listener = UnixListener::bind(uds_path).map_err(fail)?;
        let this = Self {
            guest_cid,
            listener,
            path: uds_path.to_owned(),
            counters: Arc::default(),
            control,
            workers: Workers::default(),
        };
        this.listener.set_nonblocking(true).map_err(fail)?;
        Ok(this)
    }

    /// The handle for changes at run time.
    pub fn control(&self) -> &Arc<Control> {
        &self.control
    }
}

impl Drop for Vsock {
    fn drop(&mut self) {
        self.reset();
        let _ = std::fs::remove_file(&self.path);
    }
}

impl VirtioDevice for Vsock {
    fn device_type(&self) -> u16 {
        device_type::SOCKET
    }

    fn queue_max_sizes(&self) -> &[u16] {
        QUEUE_SIZES
    }

    fn msix_vectors(&self) -> u16 {
        2
    }

    fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// The guest's context identifier (section 5.10.4).
    fn config_space(&self) -> Vec<u8> {
        u64::from(self.guest_cid).to_le_bytes().to_vec()
    }

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        let mut queues = activation.queues(&self.counters);
        let listener = self.listener.try_clone()?;
        let muxer = Muxer::new(
            u64::from(self.guest_cid),
            listener,
            self.path.clone(),
            Arc::clone(&self.counters),
            Arc::clone(&self.control),
        );
        let service = VsockService {
            memory: activation.memory,
            receive: queues.take(RECEIVE)?,
            transmit: queues.take(TRANSMIT)?,
            rx_gate: Gate::new(Arc::clone(&self.control.rx), Arc::clone(&self.counters)),
            tx_gate: Gate::new(Arc::clone(&self.control.tx), Arc::clone(&self.counters)),
            unpaid_bytes: 0,
            paid: true,
            muxer,
        };
        Ok(self.workers.start("vsock", [service])?)
    }

    /// Closes all connections; host processes see the end of their streams.
    fn reset(&mut self) {
        self.workers.stop();
    }

    fn workers(&self) -> &dyn Quiesce {
        &self.workers
    }
}

#[cfg(test)]
mod patience_test;
#[cfg(test)]
mod test_guest;
#[cfg(test)]
#[path = "vsock_test.rs"]
mod vsock_test;
