//! What can be in a slot of the bus.

use std::ops::Range;
use std::sync::Arc;

use crate::virtio::counters::Counters;

/// Where the two BARs of a function are decoded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Decoded {
    /// Address of the register BAR.
    pub registers: Option<u64>,
    /// Address of the doorbell BAR.
    pub doorbells: Option<u64>,
}

/// What is needed to make a function.
pub struct Place {
    /// Offset of its configuration space in the pages.
    pub config_offset: usize,
    /// First address of its register BAR.
    pub registers: u64,
    /// First address of its doorbell BAR.
    pub doorbells: u64,
    /// Where BARs may be.
    pub window: Range<u64>,
}

/// What the bus asks of the function in a slot. Called from vCPU threads and the main thread.
pub trait PciFunction: Send + Sync {
    /// A write by the guest to configuration space. True if BARs have moved.
    fn write_config(&self, offset: usize, data: &[u8]) -> bool;

    /// Where the BARs are.
    fn decoded(&self) -> Decoded;

    /// A read in the register BAR, if the guest doesn't see it in memory.
    fn read_registers(&self, offset: u64, data: &mut [u8]);

    /// A write into the register BAR.
    fn write_registers(&self, offset: u64, data: &[u8]);

    /// A read in the doorbell BAR.
    fn read_doorbells(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    /// A write into the doorbell BAR that no ioeventfd has caught.
    fn write_doorbells(&self, _offset: u64, _data: &[u8]) {}

    /// Stands still: touches no guest memory, counts no time.
    fn pause(&self);

    /// Goes on.
    fn resume(&self);

    /// The device changed its configuration: shows it to the guest and tells the driver.
    fn config_changed(&self) {}

    /// What the device has done so far, if it counts.
    fn counters(&self) -> Option<Arc<Counters>> {
        None
    }

    /// Whether a driver has started the device.
    fn is_active(&self) -> bool;

    /// Stops for good and goes out of the guest's sight.
    fn shutdown(&self);
}
