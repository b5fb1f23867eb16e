//! Block device (virtio 1.2, section 5.2) over raw files, host block devices and qcow2 images.

mod backend;
mod engine;
mod held;
mod image;
mod qcow2;
mod request;
mod service;

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use thiserror::Error;

pub use self::engine::EngineKind;
use self::engine::{Engine, SyncEngine};
use self::image::Image;
use self::request::{
    Disk, MAX_DISCARD_SECTORS, MAX_DISCARD_SEGMENTS, MAX_ZEROES_SECTORS, MAX_ZEROES_SEGMENTS, SEG_MAX, SIZE_MAX,
};
use self::service::BlockService;
use super::counters::Counters;
use super::device::{ActivateError, Activation, VirtioDevice};
use super::rate_limiter::{Gate, SharedLimiter};
use super::spec::device_type;
use super::worker::{Quiesce, Workers};
use crate::config;

/// Entries of each queue.
const QUEUE_SIZE: u16 = 256;
/// Most queues: each has a thread.
pub const MAX_QUEUES: u16 = 16;
/// Unit of capacity and of positions (section 5.2.4).
const SECTOR_BYTES: u64 = 512;
/// Feature bits (section 5.2.3).
const F_SIZE_MAX: u64 = 1 << 1;
const F_SEG_MAX: u64 = 1 << 2;
const F_RO: u64 = 1 << 5;
const F_BLK_SIZE: u64 = 1 << 6;
const F_FLUSH: u64 = 1 << 9;
const F_MQ: u64 = 1 << 12;
const F_DISCARD: u64 = 1 << 13;
const F_WRITE_ZEROES: u64 = 1 << 14;
/// Length of the device-specific configuration (section 5.2.4), up to the last field that is offered.
const CONFIG_BYTES: usize = 60;

/// How the bytes of a disk lie in its image. Never guessed from content, which a guest may have written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Format {
    /// As they are.
    #[default]
    Raw,
    /// qcow2, read-only, perhaps with backing files.
    Qcow2,
}

/// What a block device is made of.
#[derive(Debug, Clone, Default)]
pub struct BlockConfig {
    /// Image or host block device.
    pub path: PathBuf,
    /// Name in errors and serial number, at most 20 bytes.
    pub id: String,
    /// Refuse writes.
    pub read_only: bool,
    /// Past the host's page cache.
    pub direct: bool,
    /// Format of the image.
    pub format: Format,
    /// Use io_uring where the host has it.
    pub asynchronous: bool,
    /// Number of queues: 1 to [`MAX_QUEUES`]; what is outside counts as the nearest.
    pub queues: u16,
    /// Limits.
    pub limits: Option<config::RateLimiter>,
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
    /// Not without the page cache.
    #[error("The file system of drive {id} at {} doesn't support direct I/O", path.display())]
    Direct {
        /// Drive.
        id: String,
        /// Image.
        path: PathBuf,
        /// What open or read say.
        source: io::Error,
    },
    /// Not a qcow2 image, or one that isn't supported.
    #[error("Can't use the qcow2 image of drive {id} at {}", path.display())]
    Qcow2 {
        /// Drive.
        id: String,
        /// Image.
        path: PathBuf,
        /// What is wrong.
        source: io::Error,
    },
    /// No file descriptor for the device.
    #[error("The host refuses a file descriptor")]
    Host(#[source] io::Error),
    /// The identifier doesn't fit.
    #[error("Drive identifier {0:?} is longer than 20 bytes")]
    Id(String),
}

/// A block device.
pub struct Block {
    counters: Arc<Counters>,
    control: Arc<BlockControl>,
    queue_sizes: Vec<u16>,
    /// Of queues that no worker has. They are made with the device, while the process may still do so, and outlive resets.
    engines: BTreeMap<u16, Box<dyn Engine>>,
    workers: Workers<BlockService>,
}

/// What can be changed and asked while the device runs.
pub struct BlockControl {
    image: Arc<Image>,
    limiter: Arc<SharedLimiter>,
    engine: EngineKind,
}

impl BlockControl {
    /// Looks at the size of the image anew and returns it in bytes. The driver has to be told of the configuration change.
    pub fn resize(&self) -> io::Result<u64> {
        Ok(self.image.refresh()?.saturating_mul(SECTOR_BYTES))
    }

    /// Changes the limits.
    pub fn limit(&self, limits: &config::RateLimiter) {
        self.limiter.update(limits);
    }

    /// The engine in use.
    pub fn engine(&self) -> EngineKind {
        self.engine
    }
}

impl Block {
    /// Opens and locks the image: shared if read-only, else for this process alone. The lock lasts as long as the device.
    pub fn new(config: &BlockConfig) -> Result<Self, BlockError> {
        let image = Arc::new(Image::open(config)?);
        let queues = config.queues.clamp(1, MAX_QUEUES);
        let wanted = if config.asynchronous { EngineKind::Async } else { EngineKind::Sync };
        let (engine, engines) = engine::make(image.backend(), wanted, usize::from(queues));
        let limiter = SharedLimiter::new(config.limits.as_ref()).map_err(BlockError::Host)?;
        Ok(Self {
            counters: Arc::default(),
            control: Arc::new(BlockControl { image, limiter, engine }),
            queue_sizes: vec![QUEUE_SIZE; usize::from(queues)],
            engines: (0..queues).zip(engines).collect(),
            workers: Workers::default(),
        })
    }

    /// The handle for changes at run time.
    pub fn control(&self) -> &Arc<BlockControl> {
        &self.control
    }
}

impl VirtioDevice for Block {
    fn device_type(&self) -> u16 {
        device_type::BLOCK
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn device_features(&self) -> u64 {
        let writes = if self.control.image.read_only { F_RO } else { F_DISCARD | F_WRITE_ZEROES };
        let queues = if self.queue_sizes.len() > 1 { F_MQ } else { 0 };
        F_SIZE_MAX | F_SEG_MAX | F_BLK_SIZE | F_FLUSH | writes | queues
    }

    fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// Device-specific configuration (section 5.2.4).
    fn config_space(&self) -> Vec<u8> {
        let image = &self.control.image;
        let mut bytes = [0; CONFIG_BYTES];
        let mut put = |at: usize, value: &[u8]| {
            for (to, from) in bytes.iter_mut().skip(at).zip(value) {
                *to = *from;
            }
        };
        put(0, &image.sectors().to_le_bytes());
        put(8, &SIZE_MAX.to_le_bytes());
        put(12, &SEG_MAX.to_le_bytes());
        put(20, &image.block_bytes.to_le_bytes());
        put(34, &u16::try_from(self.queue_sizes.len()).unwrap_or(MAX_QUEUES).to_le_bytes());
        put(36, &MAX_DISCARD_SECTORS.to_le_bytes());
        put(40, &MAX_DISCARD_SEGMENTS.to_le_bytes());
        put(44, &(image.block_bytes.max(4096) / 512).to_le_bytes());
        put(48, &MAX_ZEROES_SECTORS.to_le_bytes());
        put(52, &MAX_ZEROES_SEGMENTS.to_le_bytes());
        put(56, &[1]);
        bytes.to_vec()
    }

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        let queues = activation.queues(&self.counters);
        let BlockControl { image, limiter, .. } = self.control.as_ref();
        let mut services = Vec::new();
        for queue in queues {
            let engine = self.engines.remove(&queue.index());
            services.push(BlockService {
                memory: activation.memory.clone(),
                queue,
                // Missing only if threads could not be started before.
                engine: engine.unwrap_or_else(|| Box::new(SyncEngine::new(Arc::clone(image.backend())))),
                disk: Disk {
                    image: Arc::clone(image),
                    counters: Arc::clone(&self.counters),
                    // Without FLUSH the driver can't ask for durability, so every write has to be durable (section 5.2.6.2).
                    write_through: activation.driver_features & F_FLUSH == 0,
                },
                gate: Gate::new(Arc::clone(limiter), Arc::clone(&self.counters)),
            });
        }
        Ok(self.workers.start("blk", services)?)
    }

    fn reset(&mut self) {
        for service in self.workers.stop() {
            self.engines.insert(service.queue.index(), service.engine);
        }
    }

    fn workers(&self) -> &dyn Quiesce {
        &self.workers
    }
}

#[cfg(test)]
#[path = "blk_test.rs"]
mod blk_test;

#[cfg(test)]
#[path = "blk_io_test.rs"]
mod blk_io_test;
