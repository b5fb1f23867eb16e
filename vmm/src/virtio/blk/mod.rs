//! Block device (virtio 1.2, section 5.2) over raw files and host block devices.

mod engine;
mod image;
mod request;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use thiserror::Error;
use vm_memory::GuestAddressSpace;
use vmm_sys_util::epoll::EventSet;

use self::engine::{Engine, SyncEngine};
use self::image::Image;
use self::request::Disk;
use super::counters::Counters;
use super::device::{ActivateError, Activation, VirtioDevice};
use super::queue::VirtQueue;
use super::spec::device_type;
use super::worker::{Quiesce, Service, Watch, Workers};
use crate::memory::GuestRam;

const QUEUE_SIZES: &[u16] = &[256];
/// Unit of capacity and of positions (section 5.2.4).
const SECTOR_BYTES: u64 = 512;
/// Feature bits (section 5.2.3).
const F_SEG_MAX: u64 = 1 << 2;
const F_RO: u64 = 1 << 5;
const F_BLK_SIZE: u64 = 1 << 6;
const F_FLUSH: u64 = 1 << 9;
/// Most data segments of a request: a header and a status go with them.
const SEG_MAX: u32 = 254;

/// What a block device is made of.
#[derive(Debug, Clone)]
pub struct BlockConfig {
    /// Raw image or host block device.
    pub path: PathBuf,
    /// Name in errors and serial number, at most 20 bytes.
    pub id: String,
    /// Refuse writes.
    pub read_only: bool,
}

/// A block device can't be made.
#[derive(Debug, Error)]
pub enum BlockError {
    /// The image can't be opened.
    #[error("Can't open the image of drive {id} at {}", path.display())]
    Open {
        /// Drive.
        id: String,
        /// Image.
        path: PathBuf,
        /// What open says.
        source: io::Error,
    },
    /// The path is neither a file nor a block device.
    #[error("Image of drive {id} at {} is neither a regular file nor a block device", path.display())]
    Kind {
        /// Drive.
        id: String,
        /// Image.
        path: PathBuf,
    },
    /// The image has no whole sector.
    #[error("Image of drive {id} at {} is smaller than a sector of 512 bytes", path.display())]
    Empty {
        /// Drive.
        id: String,
        /// Image.
        path: PathBuf,
    },
    /// Another process writes the image, or reads it while this one wants to write.
    #[error("Image of drive {id} at {} is in use by another process", path.display())]
    InUse {
        /// Drive.
        id: String,
        /// Image.
        path: PathBuf,
    },
    /// The image can't be locked.
    #[error("Can't lock the image of drive {id} at {}", path.display())]
    Lock {
        /// Drive.
        id: String,
        /// Image.
        path: PathBuf,
        /// What fcntl says.
        source: io::Error,
    },
    /// The identifier doesn't fit.
    #[error("Drive identifier {0:?} is longer than 20 bytes")]
    Id(String),
}

/// A block device over a raw image.
pub struct Block {
    counters: Arc<Counters>,
    image: Arc<Image>,
    workers: Workers<BlockService>,
}

impl Block {
    /// Opens and locks the image: shared if read-only, else for this process alone. The lock lasts as long as the device.
    pub fn new(config: &BlockConfig) -> Result<Self, BlockError> {
        Ok(Self { counters: Arc::default(), image: Arc::new(Image::open(config)?), workers: Workers::default() })
    }

    /// Device-specific configuration (section 5.2.4).
    fn config_space(&self) -> [u8; 60] {
        let mut bytes = [0; 60];
        let fields = self.image.sectors.to_le_bytes().into_iter();
        let fields = fields.chain([0; 4]).chain(SEG_MAX.to_le_bytes()).chain([0; 4]);
        let block_size = u32::try_from(SECTOR_BYTES).unwrap_or(0).to_le_bytes();
        for (to, from) in bytes.iter_mut().zip(fields.chain(block_size)) {
            *to = from;
        }
        bytes
    }
}

impl VirtioDevice for Block {
    fn device_type(&self) -> u16 {
        device_type::BLOCK
    }

    fn queue_max_sizes(&self) -> &[u16] {
        QUEUE_SIZES
    }

    fn device_features(&self) -> u64 {
        F_SEG_MAX | F_BLK_SIZE | F_FLUSH | if self.image.read_only { F_RO } else { 0 }
    }

    fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let skip = usize::try_from(offset).unwrap_or(usize::MAX);
        for (to, from) in data.iter_mut().zip(self.config_space().iter().skip(skip)) {
            *to = *from;
        }
    }

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        let mut queues = activation.queues(&self.counters);
        let disk = Disk {
            image: Arc::clone(&self.image),
            counters: Arc::clone(&self.counters),
            // Without FLUSH the driver can't ask for durability, so every write has to be durable (section 5.2.6.2).
            write_through: activation.driver_features & F_FLUSH == 0,
        };
        let engine = Box::new(SyncEngine::new(Arc::clone(&self.image)));
        let service = BlockService { memory: activation.memory, queue: queues.take(0)?, engine, disk };
        Ok(self.workers.start("blk", [service])?)
    }

    fn reset(&mut self) {
        self.workers.stop();
    }

    fn workers(&self) -> &dyn Quiesce {
        &self.workers
    }
}

struct BlockService {
    memory: GuestRam,
    queue: VirtQueue,
    engine: Box<dyn Engine>,
    disk: Disk,
}

impl BlockService {
    fn serve(&mut self) {
        let memory = self.memory.memory();
        let Self { queue, engine, disk, .. } = self;
        queue.drain(&memory, |queue, chain| {
            let (head, written) = disk.execute(engine.as_ref(), chain);
            queue.complete(&memory, head, written);
        });
    }
}

impl Service for BlockService {
    fn start(&mut self, watch: &Watch) -> io::Result<()> {
        watch.add(self.queue.doorbell(), EventSet::IN, 0)?;
        self.serve();
        Ok(())
    }

    fn handle(&mut self, _watch: &Watch, _token: u64, _events: EventSet) {
        self.queue.acknowledge();
        self.serve();
    }
}

#[cfg(test)]
#[path = "blk_test.rs"]
mod blk_test;
