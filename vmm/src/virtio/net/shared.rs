//! What the workers of one network device and its control handle share.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::EngineKind;
use super::spec::{Offloads, STATUS_LINK_UP};
use super::tap::Tap;
use super::vhost::Vhost;
use crate::config;
use crate::virtio::rate_limiter::SharedLimiter;

/// State that outlives activations.
pub struct Shared {
    /// Name of the interface in messages.
    pub id: String,
    /// Limits of the way to the guest.
    pub rx_limiter: Arc<SharedLimiter>,
    /// Limits of the way from the guest.
    pub tx_limiter: Arc<SharedLimiter>,
    tap: Option<Arc<Tap>>,
    /// Moves the frames in place of workers.
    vhost: Option<Arc<Vhost>>,
    /// The user wants the link to be up.
    wanted_up: AtomicBool,
    /// The other side is lost for good.
    lost: AtomicBool,
    guest_offloads: AtomicU64,
    /// Pairs whose queues the driver has set up.
    usable: AtomicU16,
    /// For each pair, whether it is in use. A worker holds the lock while it moves frames.
    pairs: Vec<Mutex<bool>>,
    /// Written to at each change and never read: the workers wait for its edges, so each of them gets every change.
    changed: EventFd,
}

impl Shared {
    /// The state of a device that hasn't started.
    pub fn new(
        id: &str,
        pairs: u16,
        tap: Option<Arc<Tap>>,
        vhost: Option<Arc<Vhost>>,
        rx_limiter: Arc<SharedLimiter>,
        tx_limiter: Arc<SharedLimiter>,
    ) -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            id: id.to_owned(),
            rx_limiter,
            tx_limiter,
            tap,
            vhost,
            wanted_up: AtomicBool::new(true),
            lost: AtomicBool::new(false),
            guest_offloads: AtomicU64::new(0),
            usable: AtomicU16::new(0),
            pairs: (0..pairs).map(|_| Mutex::new(false)).collect(),
            changed: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
        }))
    }

    /// The configuration field `status`.
    pub fn status(&self) -> u16 {
        if self.is_up() { STATUS_LINK_UP } else { 0 }
    }

    /// Frames move.
    pub fn is_up(&self) -> bool {
        self.wanted_up.load(Ordering::Acquire) && !self.is_lost()
    }

    /// The other side is lost for good.
    pub fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Acquire)
    }

    /// The other side is lost for good. True for the first who notices.
    pub fn lose(&self) -> bool {
        let first = !self.lost.swap(true, Ordering::AcqRel);
        self.link_changed();
        first
    }

    /// What the device may leave to the driver now.
    pub fn allowed(&self) -> Offloads {
        Offloads::of_device(self.guest_offloads.load(Ordering::Acquire))
    }

    /// Changes it. `None` if the host refuses.
    pub fn set_guest_offloads(&self, features: u64) -> Option<()> {
        // A tap that is gone leaves nothing unfinished any more.
        if let Some(tap) = self.tap.as_ref().filter(|_| !self.is_lost()) {
            tap.set_guest_offloads(features).ok()?;
        }
        self.guest_offloads.store(features, Ordering::Release);
        Some(())
    }

    /// Readable, by edges, when something has changed.
    pub fn changed(&self) -> &EventFd {
        &self.changed
    }

    /// Whether a pair is in use; nothing changes that until the guard is dropped.
    pub fn pair(&self, pair: u16) -> Option<MutexGuard<'_, bool>> {
        self.pairs.get(usize::from(pair)).map(|pair| pair.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The driver has set up the queues of `usable` pairs and uses the first.
    pub fn start(&self, usable: u16) {
        self.usable.store(usable, Ordering::Release);
        self.set_pairs(1);
    }

    /// The device has been reset.
    pub fn stop(&self) {
        self.usable.store(0, Ordering::Release);
        self.set_pairs(0);
        let _ = self.set_guest_offloads(0);
    }

    /// Uses the first `count` pairs. None of the others gives frames to the driver once this has returned (section 5.1.6.5.5).
    /// `None` if the driver has not so many.
    pub fn set_pairs(&self, count: u16) -> Option<()> {
        if count > self.usable.load(Ordering::Acquire) {
            return None;
        }
        for (number, pair) in (0u16..).zip(&self.pairs) {
            let mut used = pair.lock().unwrap_or_else(PoisonError::into_inner);
            *used = number < count;
            // The last queue stays, so that the interface keeps its carrier.
            let attached = *used || number == 0;
            if let Some(vhost) = self.vhost.as_ref().filter(|_| !*used) {
                vhost.set_used(number, false);
            }
            if let Some(tap) = &self.tap
                && tap.set_attached(number, attached).is_err()
                && attached
            {
                *used = false;
            }
            if let Some(vhost) = self.vhost.as_ref().filter(|_| *used) {
                vhost.set_used(number, true);
            }
        }
        self.tell_workers();
        Some(())
    }

    fn link_changed(&self) {
        if let Some(vhost) = &self.vhost {
            vhost.set_link(self.is_up());
        }
        self.tell_workers();
    }

    fn tell_workers(&self) {
        // Can't fail: the counter is never near its end.
        let _ = self.changed.write(1);
    }
}

/// Changes a network device while it runs. After a change of the link the transport has to be told.
#[derive(Clone)]
pub struct NetControl(pub(super) Arc<Shared>);

impl NetControl {
    /// Pulls the cable out, or puts it in. True if that has changed what the guest sees.
    pub fn set_link(&self, up: bool) -> bool {
        let before = self.0.is_up();
        self.0.wanted_up.store(up, Ordering::Release);
        if let Some(tap) = &self.0.tap {
            tap.set_carrier(up);
        }
        self.0.link_changed();
        before != self.0.is_up()
    }

    /// Who moves frames.
    pub fn engine(&self) -> EngineKind {
        if self.0.vhost.is_some() { EngineKind::Vhost } else { EngineKind::Workers }
    }

    /// Whether the link is up.
    pub fn is_up(&self) -> bool {
        self.0.is_up()
    }

    /// Changes the limits that are given.
    pub fn set_limits(&self, rx: Option<&config::RateLimiter>, tx: Option<&config::RateLimiter>) {
        if let Some(limits) = rx {
            self.0.rx_limiter.update(limits);
        }
        if let Some(limits) = tx {
            self.0.tx_limiter.update(limits);
        }
    }
}
