//! Entropy device (virtio 1.2, section 5.4).

use crate::virtio::device::{ActivateError, Activation, VirtioDevice};

/// Random bytes from the host's kernel.
#[derive(Default)]
pub struct Rng;

impl Rng {
    /// Makes the device.
    pub fn new() -> Self {
        Self
    }
}

impl VirtioDevice for Rng {
    fn device_type(&self) -> u16 {
        4
    }
    fn queue_max_sizes(&self) -> &[u16] {
        &[64]
    }
    fn device_features(&self) -> u64 {
        0
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
