//! Network device (virtio 1.2, section 5.1) over a tap of the host or a Unix stream socket, such as passt's.
//!
//! A worker for each queue pair moves frames both ways. Frames and the kernel's headers for checksums and segments go between tap and
//! guest memory without a copy; filters (promiscuous mode, address tables) are not offered, for a device that passes on
//! everything needs none, and each command would cost exits.

mod checksum;
mod commands;
mod io;
mod pool;
mod port;
mod relay;
mod rx;
mod service;
mod shared;
mod spec;
mod stream;
mod tap;
mod tun;
mod tx;
mod vhost;

use std::os::fd::RawFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;
use thiserror::Error;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use self::commands::Commands;
use self::port::Port;
use self::relay::Relay;
use self::rx::Receiver;
use self::service::PairService;
use self::shared::Shared;
use self::spec::{Offloads, feature};
use self::stream::FrameStream;
use self::tap::Tap;
use self::tx::Transmitter;
use self::vhost::Vhost;
use super::counters::Counters;
use super::device::{ActivateError, Activation, ActiveQueue, Queues, VirtioDevice};
use super::rate_limiter::{Gate, SharedLimiter};
use super::spec::device_type;
use super::sys;
use super::worker::{Quiesce, Workers};
use crate::config;
use crate::log::one_line;

pub use self::shared::NetControl;
pub use self::spec::MAX_PAIRS;
pub use self::tap::TapError;
pub use self::tun::MAX_NAME_BYTES;
pub use self::vhost::VhostError;

const QUEUE_SIZE: u16 = 256;
const COMMANDS_SIZE: u16 = 64;
/// Frames of one direction before the driver is notified and the other direction has its turn.
const FRAMES_AT_ONCE: usize = 64;
/// Smallest MTU (section 5.1.4.1).
const MIN_MTU: u16 = 68;

/// Why a direction stands still.
#[derive(Debug, PartialEq, Eq)]
enum Stop {
    /// The port has no frame.
    PortEmpty,
    /// The port takes no frame.
    PortFull,
    /// The driver has given no buffer, or no frame; its next one rings the doorbell.
    Ring,
    /// The rate limiter says so.
    Throttled,
    /// It doesn't: it was only its turn that has ended.
    Budget,
    /// The port is lost, for this reason.
    Gone(String),
}

/// Where frames go.
#[derive(Debug, Clone)]
pub enum Backend {
    /// Tap of this name in the monitor's network namespace; made if it doesn't exist.
    Tap(String),
    /// Inherited descriptor of a tap.
    TapDescriptor(RawFd),
    /// Unix stream socket at this path, with frames that have their length in front.
    Socket(PathBuf),
}

/// What a network device is made of.
#[derive(Debug, Clone)]
pub struct NetConfig {
    /// Name in messages.
    pub id: String,
    /// Where frames go.
    pub backend: Backend,
    /// The guest's address; without it, the guest makes one up.
    pub mac: Option<[u8; 6]>,
    /// Largest packet; without it, that of the tap.
    pub mtu: Option<u16>,
    /// The host's kernel moves the frames. For taps only, and without limits.
    pub vhost: bool,
    /// Most queue pairs, at most [`MAX_PAIRS`].
    pub pairs: u16,
    /// Limits of the way to the guest.
    pub rx_limits: Option<config::RateLimiter>,
    /// Limits of the way from the guest.
    pub tx_limits: Option<config::RateLimiter>,
}

impl NetConfig {
    /// Of an interface that was validated, for a guest with `vcpus` processors.
    pub fn new(interface: &config::NetworkInterface, vcpus: u8) -> Self {
        let backend = match (&interface.host_dev_name, interface.tap_fd, &interface.socket_path) {
            (Some(name), ..) => Backend::Tap(name.clone()),
            (None, Some(number), _) => Backend::TapDescriptor(number),
            (None, None, path) => Backend::Socket(path.clone().unwrap_or_default()),
        };
        Self {
            id: interface.iface_id.clone(),
            backend,
            mac: interface.guest_mac.map(|mac| mac.0),
            mtu: interface.mtu,
            vhost: interface.vhost,
            pairs: u16::from(vcpus).clamp(1, MAX_PAIRS),
            rx_limits: interface.rx_rate_limiter,
            tx_limits: interface.tx_rate_limiter,
        }
    }
}

/// A network device can't be made.
#[derive(Debug, Error)]
pub enum NetError {
    /// No tap.
    #[error("Interface {id}: {source}")]
    Tap {
        /// Interface.
        id: String,
        /// What is wrong with the tap.
        #[source]
        source: TapError,
    },
    /// The kernel can't move the frames.
    #[error("Interface {id}: {source}")]
    Vhost {
        /// Interface.
        id: String,
        /// What is wrong with vhost-net.
        #[source]
        source: VhostError,
    },
    /// No peer.
    #[error("Interface {id} can't connect to the socket at {}", path.display())]
    Connect {
        /// Interface.
        id: String,
        /// Socket.
        path: PathBuf,
        /// What connect says.
        source: std::io::Error,
    },
    /// No file descriptors.
    #[error("The host refuses an eventfd")]
    Event(#[source] std::io::Error),
}

/// A network device.
pub struct Net {
    mac: Option<[u8; 6]>,
    mtu: Option<u16>,
    pairs: u16,
    queue_sizes: Vec<u16>,
    tap: Option<Arc<Tap>>,
    /// With what has arrived in part. The worker has it while the device is active.
    stream: Option<Box<FrameStream>>,
    shared: Arc<Shared>,
    counters: Arc<Counters>,
    engine: Engine,
}

/// Who moves frames.
enum Engine {
    /// A worker for each queue pair.
    Workers(Workers<PairService>),
    /// The host's kernel, and a worker that passes on what it says.
    Vhost(Arc<Vhost>, Workers<Relay>),
}

impl Quiesce for Engine {
    fn pause(&self) {
        match self {
            Self::Workers(workers) => workers.pause(),
            Self::Vhost(vhost, relay) => {
                relay.pause();
                vhost.pause();
            }
        }
    }

    fn resume(&self) {
        match self {
            Self::Workers(workers) => workers.resume(),
            Self::Vhost(vhost, relay) => {
                vhost.resume();
                relay.resume();
            }
        }
    }
}

/// Who moves the frames of an interface, as the metrics call it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum EngineKind {
    /// Workers of the monitor.
    Workers,
    /// The host's kernel.
    Vhost,
}

impl Net {
    /// Opens or makes the tap, or connects to the socket. Both are closed when the device is dropped; a tap that was made here
    /// disappears then.
    pub fn new(config: &NetConfig) -> Result<Self, NetError> {
        let tap_error = |source| NetError::Tap { id: config.id.clone(), source };
        let tap = match &config.backend {
            Backend::Tap(name) => {
                Some(Tap::open(name, config.pairs.clamp(1, MAX_PAIRS), config.mtu).map_err(tap_error)?)
            }
            Backend::TapDescriptor(number) => Some(Tap::inherited(*number, config.mtu).map_err(tap_error)?),
            Backend::Socket(_) => None,
        };
        let tap = tap.map(Arc::new);
        let vhost_error = |source| NetError::Vhost { id: config.id.clone(), source };
        let vhost = tap.as_ref().filter(|_| config.vhost).map(Vhost::open).transpose().map_err(vhost_error)?;
        let stream = match &config.backend {
            Backend::Socket(path) => Some(Box::new(connect(&config.id, path)?)),
            _ => None,
        };
        let pairs = tap.as_ref().map_or(1, |tap| tap.pairs());
        let mut queue_sizes = vec![QUEUE_SIZE; 2 * usize::from(pairs)];
        if tap.is_some() {
            queue_sizes.push(COMMANDS_SIZE);
        }
        let limiter =
            |limits: &Option<config::RateLimiter>| SharedLimiter::new(limits.as_ref()).map_err(NetError::Event);
        let (rx, tx) = (limiter(&config.rx_limits)?, limiter(&config.tx_limits)?);
        let shared = Shared::new(&config.id, pairs, tap.clone(), vhost.clone(), rx, tx).map_err(NetError::Event)?;
        let mtu = tap.as_ref().map_or(config.mtu, |tap| tap.mtu()).filter(|mtu| *mtu >= MIN_MTU);
        Ok(Self {
            mac: config.mac,
            mtu,
            pairs,
            queue_sizes,
            tap,
            stream,
            shared,
            counters: Arc::default(),
            engine: match vhost {
                Some(vhost) => Engine::Vhost(vhost, Workers::default()),
                None => Engine::Workers(Workers::default()),
            },
        })
    }

    /// A handle to change the device while it runs.
    pub fn control(&self) -> NetControl {
        NetControl(Arc::clone(&self.shared))
    }

    /// Hands the rings to the kernel.
    fn start_vhost(
        &mut self,
        vhost: &Arc<Vhost>,
        frames: Vec<[ActiveQueue; 2]>,
        commands: Option<Commands>,
        activation: &Activation,
    ) -> Result<(), ActivateError> {
        let Some(tap) = self.tap.clone() else { return Err(ActivateError("There is no tap".to_owned())) };
        let (features, memory, interrupt) = (activation.driver_features, &activation.memory, &activation.interrupt);
        let usable = u16::try_from(frames.len()).unwrap_or(0);
        let mut events = Vec::new();
        for (pair, queues) in (0u16..).zip(frames) {
            let set_up = vhost.set_up(pair, queues, features, memory, interrupt);
            events.extend(set_up.map_err(|error| ActivateError(one_line(&error)))?);
        }
        if usable == 0 {
            return Err(ActivateError("The queues of the first pair are not enabled".to_owned()));
        }
        let relay = Relay {
            vhost: Arc::clone(vhost),
            tap,
            events,
            commands,
            shared: Arc::clone(&self.shared),
            memory: memory.clone(),
            interrupt: Arc::clone(interrupt),
            counters: Arc::clone(&self.counters),
            next_look: Instant::now(),
        };
        let Engine::Vhost(_, workers) = &mut self.engine else { return Ok(()) };
        workers.start("net", [relay])?;
        self.shared.start(usable);
        Ok(())
    }

    fn port(&mut self, pair: u16) -> Result<Port, ActivateError> {
        if let Some(tap) = &self.tap {
            return Ok(Port::tap(tap, pair));
        }
        let stream = self.stream.take().ok_or_else(|| ActivateError("The connection is lost".to_owned()))?;
        Ok(Port::Stream(stream))
    }

    fn service(
        &mut self,
        pair: u16,
        queues: &mut Queues,
        commands: Option<Commands>,
        activation: &Activation,
    ) -> Result<PairService, ActivateError> {
        let features = activation.driver_features;
        let gate = |limiter| Gate::new(Arc::clone(limiter), Arc::clone(&self.counters));
        let receiver = Receiver::new(
            queues.take(2 * pair)?,
            features & feature::MRG_RXBUF != 0,
            gate(&self.shared.rx_limiter),
            Arc::clone(&self.counters),
        );
        let transmitter = Transmitter::new(
            queues.take(2 * pair + 1)?,
            Offloads::of_driver(features),
            gate(&self.shared.tx_limiter),
            Arc::clone(&self.counters),
        );
        // The port last: nothing can fail any more that would lose it.
        let again = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let port = self.port(pair)?;
        Ok(PairService::new(
            (pair, port, again),
            (receiver, transmitter),
            commands,
            Arc::clone(&self.shared),
            activation.memory.clone(),
            Arc::clone(&activation.interrupt),
        ))
    }
}

/// Takes the queues of frames out, pair by pair, up to the first that the driver hasn't set up as a whole.
fn take_frame_queues(activation: &mut Activation, pairs: u16) -> Vec<[ActiveQueue; 2]> {
    let (frames, others) =
        std::mem::take(&mut activation.queues).into_iter().partition(|queue| queue.index < 2 * pairs);
    activation.queues = others;
    let mut frames: Vec<ActiveQueue> = frames;
    let mut taken = Vec::new();
    for pair in 0..pairs {
        let mut take = |index| frames.iter().position(|queue| queue.index == index).map(|at| frames.swap_remove(at));
        let (Some(rx), Some(tx)) = (take(2 * pair), take(2 * pair + 1)) else { break };
        taken.push([rx, tx]);
    }
    taken
}

fn connect(id: &str, path: &std::path::Path) -> Result<FrameStream, NetError> {
    let fail = |source| NetError::Connect { id: id.to_owned(), path: path.to_owned(), source };
    FrameStream::new(sys::connect_unix(path).map_err(fail)?).map_err(fail)
}

impl Drop for Net {
    fn drop(&mut self) {
        self.reset();
    }
}

impl VirtioDevice for Net {
    fn device_type(&self) -> u16 {
        device_type::NET
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn device_features(&self) -> u64 {
        let when = |condition, bits| if condition { bits } else { 0 };
        let tap = self.tap.as_ref().map_or(0, |tap| tap.features() | feature::CTRL_VQ | feature::CTRL_GUEST_OFFLOADS);
        feature::STATUS
            | match &self.engine {
                Engine::Workers(_) => feature::MRG_RXBUF,
                Engine::Vhost(vhost, _) => vhost.features(),
            }
            | tap
            | when(self.mac.is_some(), feature::MAC)
            | when(self.mtu.is_some(), feature::MTU)
            | when(self.pairs > 1, feature::MQ)
    }

    /// Linux wants none for the control queue.
    fn msix_vectors(&self) -> u16 {
        1 + 2 * self.pairs
    }

    fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// Device-specific configuration (section 5.1.4).
    fn config_space(&self) -> Vec<u8> {
        let [s0, s1] = self.shared.status().to_le_bytes();
        let [p0, p1] = self.pairs.to_le_bytes();
        let [m0, m1] = self.mtu.unwrap_or(0).to_le_bytes();
        let [a, b, c, d, e, f] = self.mac.unwrap_or_default();
        vec![a, b, c, d, e, f, s0, s1, p0, p1, m0, m1]
    }

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        let features = activation.driver_features;
        let pairs = if features & feature::MQ != 0 { self.pairs } else { 1 };
        let frames = match &self.engine {
            Engine::Vhost(..) => take_frame_queues(&mut activation, pairs),
            Engine::Workers(_) => Vec::new(),
        };
        let mut queues = activation.queues(&self.counters);
        // The control queue comes behind the pairs that were negotiated (section 5.1.2).
        let commands = (features & feature::CTRL_VQ != 0).then(|| queues.take(2 * pairs).ok()).flatten();
        let mut commands = commands.map(|queue| Commands::new(queue, Arc::clone(&self.shared), features));
        if self.shared.set_guest_offloads(features & feature::GUEST_OFFLOADS).is_none() {
            return Err(ActivateError("The tap refuses the offloads that were negotiated".to_owned()));
        }
        if let Engine::Vhost(vhost, _) = &self.engine {
            return self.start_vhost(&Arc::clone(vhost), frames, commands, &activation);
        }
        let mut services = vec![self.service(0, &mut queues, commands.take(), &activation)?];
        for pair in 1..pairs {
            // A driver needn't set up all.
            match self.service(pair, &mut queues, None, &activation) {
                Ok(service) => services.push(service),
                Err(_) => break,
            }
        }
        let Engine::Workers(workers) = &mut self.engine else { return Ok(()) };
        self.shared.start(u16::try_from(services.len()).unwrap_or(0));
        Ok(workers.start("net", services)?)
    }

    fn reset(&mut self) {
        match &mut self.engine {
            Engine::Workers(workers) => {
                for service in workers.stop() {
                    if let Port::Stream(stream) = service.into_port() {
                        self.stream = Some(stream);
                    }
                }
            }
            Engine::Vhost(vhost, relay) => {
                relay.stop();
                vhost.reset();
            }
        }
        self.shared.stop();
    }

    fn workers(&self) -> &dyn Quiesce {
        &self.engine
    }
}

#[cfg(test)]
#[path = "net_test.rs"]
mod net_test;
#[cfg(test)]
#[path = "tap_test.rs"]
mod tap_test;
#[cfg(test)]
#[path = "vhost_test.rs"]
mod vhost_test;
