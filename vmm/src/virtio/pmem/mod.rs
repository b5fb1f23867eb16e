//! Persistent memory (virtio 1.2, section 5.19): a file of the host as memory of the guest.
//!
//! Reads and writes need no request at all; the queue is for flushing. Behind the end of the file there is memory up to a whole huge
//! page, whose content is lost. Other devices can't reach the file's pages: a buffer there counts as outside of guest memory. That
//! keeps the monitor away from pages that vanish when the file is cut short, and read-only files from being written by a device.

mod backing;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use thiserror::Error;
use vm_memory::{GuestAddress, GuestAddressSpace};
use vmm_sys_util::epoll::EventSet;

use self::backing::Backing;
use super::counters::Counters;
use super::device::{ActivateError, Activation, VirtioDevice};
use super::queue::{Chain, VirtQueue};
use super::spec::device_type;
use super::worker::{Quiesce, Service, Watch, Workers};
use crate::memory::{GuestRam, HostRange, MemoryError};
use crate::memory_slots::MemorySlots;

const QUEUE_SIZES: &[u16] = &[64];
/// Request type (section 5.19.6).
const FLUSH: u32 = 0;
/// Length of a request and of its answer.
const WORD_BYTES: usize = 4;
/// Answers.
const DONE: u32 = 0;
const FAILED: u32 = u32::MAX;

/// What a persistent memory device is made of.
#[derive(Debug, Clone)]
pub struct PmemConfig {
    /// Name in errors.
    pub id: String,
    /// Regular file or block device.
    pub path: PathBuf,
    /// The guest can't write.
    pub read_only: bool,
    /// Where the guest sees it: a multiple of a huge page.
    pub start: GuestAddress,
}

/// A persistent memory device can't be made.
#[derive(Debug, Error)]
pub enum PmemError {
    /// The file can't be opened.
    #[error("Can't open the file of pmem {id} at {}", path.display())]
    Open {
        /// Device.
        id: String,
        /// File.
        path: PathBuf,
        /// What open says.
        source: io::Error,
    },
    /// Not a file, or an empty one.
    #[error("The file of pmem {id} at {} is neither a regular file nor a block device, or is empty", path.display())]
    Kind {
        /// Device.
        id: String,
        /// File.
        path: PathBuf,
    },
    /// Another process writes the file, or reads it while this one wants to write.
    #[error("The file of pmem {id} at {} is in use by another process", path.display())]
    InUse {
        /// Device.
        id: String,
        /// File.
        path: PathBuf,
    },
    /// The file can't be mapped.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The guest can't be shown the file.
    #[error("The host refuses a memory slot for pmem {id}")]
    Slot {
        /// Device.
        id: String,
        /// What the machine says.
        source: io::Error,
    },
}

/// A request or its answer doesn't fit into its buffers.
#[derive(Debug, Error)]
#[error("A request or the space for its answer has less than {WORD_BYTES} bytes")]
struct TooSmall;

/// The device.
pub struct Pmem {
    backing: Arc<Backing>,
    counters: Arc<Counters>,
    workers: Workers<PmemService>,
}

impl Pmem {
    /// Opens, locks and maps the file, and shows it to the guest as long as the device lives.
    pub fn new(config: &PmemConfig, slots: Arc<dyn MemorySlots>) -> Result<Self, PmemError> {
        let backing = Arc::new(Backing::open(config, slots)?);
        Ok(Self { backing, counters: Arc::default(), workers: Workers::default() })
    }

    /// Where the file is in the guest and in the monitor.
    pub fn range(&self) -> HostRange {
        self.backing.range()
    }
}

impl VirtioDevice for Pmem {
    fn device_type(&self) -> u16 {
        device_type::PMEM
    }

    fn queue_max_sizes(&self) -> &[u16] {
        QUEUE_SIZES
    }

    fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// Start and size (section 5.19.4).
    fn config_space(&self) -> Vec<u8> {
        let HostRange { guest, size, .. } = self.backing.range();
        [guest.0, size].map(u64::to_le_bytes).concat()
    }

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        let queue = activation.queues(&self.counters).take(0)?;
        let (backing, counters) = (Arc::clone(&self.backing), Arc::clone(&self.counters));
        let service = PmemService { memory: activation.memory, queue, backing, counters };
        Ok(self.workers.start("pmem", [service])?)
    }

    fn reset(&mut self) {
        self.workers.stop();
    }

    fn workers(&self) -> &dyn Quiesce {
        &self.workers
    }
}

struct PmemService {
    memory: GuestRam,
    queue: VirtQueue,
    backing: Arc<Backing>,
    counters: Arc<Counters>,
}

impl PmemService {
    fn serve(&mut self) {
        let memory = self.memory.memory();
        let Self { queue, backing, counters, .. } = self;
        queue.drain(&memory, |queue, mut chain| match answer(backing, &mut chain, counters) {
            Some(()) => queue.complete(&memory, chain.head, chain.writer.written()),
            None => queue.fail(&TooSmall),
        });
    }
}

/// Executes a request; `None` if it or its answer doesn't fit.
fn answer(backing: &Backing, chain: &mut Chain<'_>, counters: &Counters) -> Option<()> {
    let mut kind = [0; WORD_BYTES];
    if chain.reader.read(&mut kind) != WORD_BYTES || chain.writer.remaining() < WORD_BYTES {
        return None;
    }
    let done = u32::from_le_bytes(kind) == FLUSH && backing.flush().is_ok();
    if !done {
        counters.errors.add(1);
    }
    chain.writer.write(&if done { DONE } else { FAILED }.to_le_bytes());
    Some(())
}

impl Service for PmemService {
    fn start(&mut self, watch: &Watch) -> io::Result<()> {
        watch.add(self.queue.doorbell(), EventSet::IN, 0)?;
        self.serve();
        Ok(())
    }

    fn fail(&mut self, error: &io::Error) {
        self.queue.fail(error);
    }

    fn handle(&mut self, _watch: &Watch, _token: u64, _events: EventSet) {
        self.queue.acknowledge();
        self.serve();
    }
}

#[cfg(test)]
#[path = "pmem_test.rs"]
mod pmem_test;
