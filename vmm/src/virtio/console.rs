//! Console device (virtio 1.2, section 5.3).

use crate::virtio::device::{ActivateError, Activation, VirtioDevice};

/// Receives what the guest writes to its console. Called from the device's worker: an implementation must not block for long.
pub trait ConsoleSink: Send {
    /// Takes all bytes.
    fn write(&mut self, bytes: &[u8]);
}

/// A console with one port.
pub struct Console {
    _sink: Box<dyn ConsoleSink>,
}

impl Console {
    /// Makes a console that writes to `sink`.
    pub fn new(sink: Box<dyn ConsoleSink>) -> Self {
        Self { _sink: sink }
    }
}

impl VirtioDevice for Console {
    fn device_type(&self) -> u16 {
        3
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
