//! PCI: one bus, type 0 functions, modern virtio transport and a watchdog, message-signalled interrupts only.
//!
//! What a guest reads is memory, what it writes is an exit: configuration space and device registers are copies in a
//! read-only memory slot ([`ConfigSpaceMemory`]), brought up to date before a write returns. Linux's probe of a device
//! reads about three times as often as it writes.

mod config;
mod function;
mod msix;
mod page;
mod root;
mod slot;
mod watchdog;

pub use root::{PciError, PciRoot, PciSlot, PlugError};
pub use watchdog::WatchdogFunction;

/// Devices that bus 0 can have, with the host bridge.
const SLOTS: usize = 32;
/// Size of each half of the pages.
const HALF_BYTES: usize = 1 << 20;

/// The monitor's side of pages that the guest reads without an exit and can't write: 1 MiB of ECAM for bus 0, then 1 MiB
/// for device registers.
pub trait ConfigSpaceMemory: Send + Sync {
    /// Writes little-endian registers. A store of 1, 2, 4 or 8 bytes that is aligned to its size is seen whole. What lies
    /// outside of the pages is dropped.
    fn store(&self, offset: usize, data: &[u8]);
}

#[cfg(test)]
mod pci_test;
#[cfg(test)]
mod watchdog_test;
