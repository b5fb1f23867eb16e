//! Engine: the host's kernel moves frames between the rings and a tap (vhost-net, Linux's `drivers/vhost/net.c`).
//!
//! For the kernel each queue pair is a device of its own. It gets the rings when the driver has set them up, and gives them back,
//! with the index that it has come to, while the VM is paused, the link is down or the driver doesn't use the pair.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use thiserror::Error;
use vhost::net::VhostNet;
use vhost::vhost_kern::VhostKernBackend;
use vhost::vhost_kern::net::Net as KernelNet;
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_queue::QueueT;
use vm_memory::{GuestAddress, GuestAddressSpace, GuestMemory, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::spec::feature;
use super::tap::Tap;
use crate::memory::{self, GuestRam};
use crate::virtio::device::{ActiveQueue, Interrupt};
use crate::virtio::spec::{feature as ring_feature, ring};

/// What concerns the rings and not the frames, so that the kernel has to know it.
const RING_FEATURES: u64 = ring_feature::VERSION_1 | ring_feature::RING_INDIRECT_DESC | ring_feature::RING_EVENT_IDX;
/// Rings of a pair: for frames to the guest, and from it.
const RINGS: usize = 2;

/// The kernel can't be used for a network interface.
#[derive(Debug, Error)]
pub enum VhostError {
    /// The driver is missing.
    #[error("Field vhost: there is no /dev/vhost-net; load the kernel module vhost_net")]
    NoDriver(#[source] io::Error),
    /// The driver can't be opened.
    #[error("Field vhost: can't open /dev/vhost-net")]
    Open(#[source] io::Error),
    /// The driver is too old.
    #[error("Field vhost: the host's vhost_net lacks features {0:#x}")]
    Features(u64),
    /// The driver refuses a step.
    #[error("Field vhost: the host's vhost_net refuses {0}")]
    Refused(&'static str, #[source] vhost::Error),
    /// The rings are not where the kernel could use them.
    #[error("A ring lies in two pieces of memory")]
    Ring,
    /// No file descriptors.
    #[error("The host refuses an eventfd")]
    Event(#[source] io::Error),
}

/// The kernel's side of a network device.
pub struct Vhost {
    tap: Arc<Tap>,
    features: u64,
    pairs: Vec<Mutex<Pair>>,
}

/// What the kernel says about one queue.
pub struct QueueEvents {
    /// Queue.
    pub index: u16,
    /// Rings at a used buffer notification.
    pub call: EventFd,
    /// Rings when the ring is broken.
    pub error: EventFd,
}

/// The device of the kernel for one queue pair, and what decides whether it works.
struct Pair {
    handle: Handle,
    /// To tell the driver of a failure. None until the driver has set up the rings.
    interrupt: Option<Arc<dyn Interrupt>>,
    /// The driver uses the pair.
    used: bool,
    /// The link is up.
    up: bool,
    /// The VM is paused.
    paused: bool,
    /// The kernel has the rings.
    running: bool,
    /// Where it goes on in the available rings.
    bases: [u16; RINGS],
}

/// Calls to the kernel, with the guest's memory for the addresses of rings.
struct Handle {
    net: KernelNet<GuestRam>,
    memory: GuestRam,
}

impl AsRawFd for Handle {
    fn as_raw_fd(&self) -> RawFd {
        self.net.as_raw_fd()
    }
}

impl VhostKernBackend for Handle {
    type AS = GuestRam;

    fn mem(&self) -> &GuestRam {
        &self.memory
    }

    /// The transport has checked the rings. The library's own check would refuse one that ends with a piece of memory.
    fn is_valid(&self, _: &VringConfigData) -> bool {
        true
    }
}

impl Vhost {
    /// Opens a device of the kernel for each queue of the tap.
    pub fn open(tap: &Arc<Tap>) -> Result<Arc<Self>, VhostError> {
        let handles = (0..tap.pairs()).map(|_| Handle::open()).collect::<Result<Vec<_>, _>>()?;
        let mut features = RING_FEATURES | feature::MRG_RXBUF;
        for handle in &handles {
            features &= handle.get_features().map_err(refused("its features"))?;
        }
        if features & RING_FEATURES != RING_FEATURES {
            return Err(VhostError::Features(RING_FEATURES & !features));
        }
        let pairs = handles.into_iter().map(|handle| Mutex::new(Pair::new(handle))).collect();
        Ok(Arc::new(Self { tap: Arc::clone(tap), features, pairs }))
    }

    /// Features of the network device that the kernel makes possible, among those that it has to know.
    pub fn features(&self) -> u64 {
        self.features & !RING_FEATURES
    }

    /// Gives a pair the rings of a driver that accepted `driver_features`. It begins to work when it is used.
    pub fn set_up(
        &self,
        pair: u16,
        queues: [ActiveQueue; RINGS],
        driver_features: u64,
        memory: &GuestRam,
        interrupt: &Arc<dyn Interrupt>,
    ) -> Result<[QueueEvents; RINGS], VhostError> {
        let mut pair = self.pair(pair).ok_or(VhostError::Ring)?;
        pair.stop();
        pair.handle.memory = memory.clone();
        pair.handle.set_features(driver_features & self.features).map_err(refused("the driver's features"))?;
        pair.handle.set_memory()?;
        let [rx, tx] = queues;
        let events = [pair.handle.set_ring(0, &rx)?, pair.handle.set_ring(1, &tx)?];
        pair.bases = [0; RINGS];
        pair.interrupt = Some(Arc::clone(interrupt));
        Ok(events)
    }

    /// The driver uses a pair, or doesn't. When it doesn't, the kernel gives it no frames once this has returned.
    pub fn set_used(&self, pair: u16, used: bool) {
        self.change(pair, |pair| pair.used = used);
    }

    /// The link is up, or down.
    pub fn set_link(&self, up: bool) {
        self.change_all(|pair| pair.up = up);
    }

    /// The VM is paused: the kernel touches no guest memory once this has returned.
    pub fn pause(&self) {
        self.change_all(|pair| pair.paused = true);
    }

    /// Undoes [`Vhost::pause`].
    pub fn resume(&self) {
        self.change_all(|pair| pair.paused = false);
    }

    /// A ring is broken: its pair stands still until the next reset.
    pub fn break_queue(&self, queue: u16) {
        self.change(queue / 2, |pair| pair.interrupt = None);
    }

    /// The driver has reset the device, and its rings are its own again.
    pub fn reset(&self) {
        self.change_all(|pair| {
            pair.interrupt = None;
            pair.paused = false;
        });
    }

    fn change_all(&self, change: impl Fn(&mut Pair)) {
        (0..self.tap.pairs()).for_each(|pair| self.change(pair, &change));
    }

    /// Changes what decides whether a pair works, and lets that happen.
    fn change(&self, number: u16, change: impl FnOnce(&mut Pair)) {
        let Some(mut pair) = self.pair(number) else { return };
        change(&mut pair);
        if !pair.wants_to_run() {
            pair.stop();
        } else if let Err(error) = pair.start(self.tap.file(number)) {
            pair.stop();
            if let Some(interrupt) = pair.interrupt.take() {
                interrupt.signal_needs_reset(&crate::log::one_line(&error));
            }
        }
    }

    fn pair(&self, number: u16) -> Option<MutexGuard<'_, Pair>> {
        self.pairs.get(usize::from(number)).map(|pair| pair.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Pair {
    fn new(handle: Handle) -> Self {
        let (used, up, paused, running) = (false, true, false, false);
        Self { handle, interrupt: None, used, up, paused, running, bases: [0; RINGS] }
    }

    fn wants_to_run(&self) -> bool {
        self.interrupt.is_some() && self.used && self.up && !self.paused
    }

    /// Hands the rings to the kernel. What the driver has offered meanwhile has left its doorbell readable, and the kernel looks.
    fn start(&mut self, tap: Option<&File>) -> Result<(), VhostError> {
        if self.running {
            return Ok(());
        }
        self.running = true;
        for (ring, base) in self.bases.into_iter().enumerate() {
            self.handle.set_vring_base(ring, base).map_err(refused("the place in a ring"))?;
            self.handle.net.set_backend(ring, tap).map_err(refused("the tap"))?;
        }
        Ok(())
    }

    /// Takes the rings back. The kernel waits until it has let go of their buffers.
    fn stop(&mut self) {
        if !std::mem::take(&mut self.running) {
            return;
        }
        for (ring, base) in self.bases.iter_mut().enumerate() {
            let stopped = self.handle.net.set_backend(ring, None);
            let at = stopped.and_then(|()| self.handle.get_vring_base(ring));
            match at.map(u16::try_from) {
                Ok(Ok(at)) => *base = at,
                // Neither happens with a kernel that has started the ring.
                Ok(Err(_)) => crate::log::line("vhost-net gives no place in a ring"),
                Err(error) => crate::log::line(&format!("can't take a ring back from vhost-net: {error}")),
            }
        }
    }
}

impl Handle {
    fn open() -> Result<Self, VhostError> {
        let memory = GuestRam::new(GuestMemoryMmap::default());
        let net = KernelNet::new(memory.clone()).map_err(|error| match error {
            vhost::Error::VhostOpen(error) => match error.raw_os_error() {
                Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => VhostError::NoDriver(error),
                _ => VhostError::Open(error),
            },
            other => VhostError::Refused("to be opened", other),
        })?;
        let this = Self { net, memory };
        this.set_owner().map_err(refused("an owner"))?;
        Ok(this)
    }

    fn set_memory(&self) -> Result<(), VhostError> {
        let ranges = memory::host_ranges(&self.memory.memory());
        let regions: Vec<_> = ranges
            .into_iter()
            .map(|range| VhostUserMemoryRegionInfo {
                guest_phys_addr: range.guest.0,
                memory_size: range.size,
                userspace_addr: range.host,
                ..VhostUserMemoryRegionInfo::default()
            })
            .collect();
        self.set_mem_table(&regions).map_err(refused("the guest's memory"))
    }

    fn set_ring(&self, ring: usize, active: &ActiveQueue) -> Result<QueueEvents, VhostError> {
        let (queue, size) = (&active.queue, active.queue.size());
        let parts = [
            (queue.desc_table(), ring::descriptor_bytes(size)),
            (queue.avail_ring(), ring::available_bytes(size)),
            (queue.used_ring(), ring::used_bytes(size)),
        ];
        let memory = self.memory.memory();
        // For the kernel a ring begins at an address of this process, and goes on behind it.
        if parts.iter().any(|&(address, bytes)| memory.get_slice(GuestAddress(address), bytes).is_err()) {
            return Err(VhostError::Ring);
        }
        let [(desc_table_addr, _), (avail_ring_addr, _), (used_ring_addr, _)] = parts;
        let config = VringConfigData {
            queue_max_size: queue.max_size(),
            queue_size: size,
            desc_table_addr,
            avail_ring_addr,
            used_ring_addr,
            ..VringConfigData::default()
        };
        let event = || EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(VhostError::Event);
        let events = QueueEvents { index: active.index, call: event()?, error: event()? };
        self.set_vring_num(ring, size).map_err(refused("the size of a ring"))?;
        self.set_vring_addr(ring, &config).map_err(refused("the addresses of a ring"))?;
        self.set_vring_call(ring, &events.call).map_err(refused("an eventfd"))?;
        self.set_vring_err(ring, &events.error).map_err(refused("an eventfd"))?;
        self.set_vring_kick(ring, &active.doorbell).map_err(refused("an eventfd"))?;
        Ok(events)
    }
}

fn refused(what: &'static str) -> impl FnOnce(vhost::Error) -> VhostError {
    move |source| VhostError::Refused(what, source)
}
