//! The contract between a virtio device and its transport.

use std::io;
use std::sync::Arc;

use thiserror::Error;
use virtio_queue::Queue;
use vmm_sys_util::eventfd::EventFd;

use super::counters::Counters;
use super::queue::VirtQueue;
use super::worker::Quiesce;
use crate::memory::GuestRam;

/// A virtio device, seen from its transport.
///
/// The life of a device: made with its backend, then any number of times [`activate`](VirtioDevice::activate) and
/// [`reset`](VirtioDevice::reset). Between the two a worker thread owns the queues; no lock is shared with it.
pub trait VirtioDevice: Send {
    /// Device type (virtio 1.2, section 5).
    fn device_type(&self) -> u16;

    /// Largest size of each queue: a power of two. The number of entries is the number of queues.
    fn queue_max_sizes(&self) -> &[u16];

    /// Feature bits offered, without those of the transport and the ring (`VIRTIO_F_VERSION_1`,
    /// `VIRTIO_F_RING_INDIRECT_DESC`, `VIRTIO_F_RING_EVENT_IDX`), which the transport adds.
    fn device_features(&self) -> u64 {
        0
    }

    /// Number of interrupt vectors offered: by default one for configuration changes and one for each queue. Fewer save
    /// exits when the driver starts: Linux then uses the first for configuration changes and the second for all queues.
    fn msix_vectors(&self) -> u16 {
        u16::try_from(self.queue_max_sizes().len()).unwrap_or(u16::MAX).saturating_add(1)
    }

    /// What the device has done so far.
    fn counters(&self) -> &Arc<Counters>;

    /// Device-specific configuration space, from its start; what lies behind its end reads as zero.
    fn config_space(&self) -> Vec<u8> {
        Vec::new()
    }

    /// Writes device-specific configuration space. Most devices have nothing writable.
    ///
    /// The transport shows the guest a copy, taken at plugging, at each write and at each reset.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    /// Starts the device: the driver has set `DRIVER_OK`. On an error the transport calls [`reset`](VirtioDevice::reset) and sets
    /// `DEVICE_NEEDS_RESET`; a later start may go well.
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError>;

    /// Stops the workers and waits for them. The device is as new afterwards; the transport makes new queues.
    fn reset(&mut self);

    /// The device's workers. The transport pauses them; nothing in flight is lost by that.
    fn workers(&self) -> &dyn Quiesce;
}

/// What a device gets when its driver is ready.
pub struct Activation {
    /// The guest's memory.
    pub memory: GuestRam,
    /// One entry for each queue that the driver enabled, with its index. Sizes and addresses are checked already.
    pub queues: Vec<ActiveQueue>,
    /// Signals the driver.
    pub interrupt: Arc<dyn Interrupt>,
    /// Feature bits that the driver accepted.
    pub driver_features: u64,
}

impl Activation {
    /// Takes the queues out, wrapped for use by a worker.
    pub fn queues(&mut self, counters: &Arc<Counters>) -> Queues {
        let queues = std::mem::take(&mut self.queues).into_iter();
        Queues(queues.map(|queue| VirtQueue::new(queue, Arc::clone(&self.interrupt), Arc::clone(counters))).collect())
    }
}

/// The queues of a device that starts.
pub struct Queues(Vec<VirtQueue>);

impl Queues {
    /// Takes the queue with this index; an error if the driver didn't enable it.
    pub fn take(&mut self, index: u16) -> Result<VirtQueue, ActivateError> {
        let at = self.0.iter().position(|queue| queue.index() == index);
        at.map(|at| self.0.swap_remove(at)).ok_or_else(|| ActivateError(format!("Queue {index} is not enabled")))
    }
}

impl IntoIterator for Queues {
    type Item = VirtQueue;
    type IntoIter = std::vec::IntoIter<VirtQueue>;

    /// All that the driver enabled, in the order of their indices.
    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

/// A queue that the driver has set up.
pub struct ActiveQueue {
    /// Index of the queue in the device.
    pub index: u16,
    /// The ring.
    pub queue: Queue,
    /// Readable when the driver has sent an available buffer notification.
    pub doorbell: EventFd,
}

/// Notifications from a device to its driver.
pub trait Interrupt: Send + Sync {
    /// Used buffer notification for one queue (virtio 1.2, section 2.3).
    fn signal_used(&self, queue_index: u16);

    /// Configuration change notification, after [`show_config`](Interrupt::show_config).
    fn signal_config(&self);

    /// Changes the device-specific configuration that the guest sees, from `offset` on, and its generation, without a
    /// notification. The device's own `config_space` has to return the same.
    fn show_config(&self, offset: u64, bytes: &[u8]);

    /// The driver broke the rules: sets `DEVICE_NEEDS_RESET` and tells the driver (virtio 1.2, section 2.1.2). `reason` is
    /// logged once per activation.
    fn signal_needs_reset(&self, reason: &str);
}

/// A device can't start.
#[derive(Debug, Error)]
#[error("Can't activate the device: {0}")]
pub struct ActivateError(pub String);

impl From<io::Error> for ActivateError {
    fn from(error: io::Error) -> Self {
        Self(format!("Can't start a worker: {error}"))
    }
}
