//! Memory slots: what a device with memory of its own needs of the machine, without knowing KVM.

use std::io;

use crate::memory::HostRange;

/// A memory slot in use, given out by [`MemorySlots`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SlotId(pub u32);

/// Shows pieces of the monitor's memory to the guest's processors, and takes them away again while the guest runs.
///
/// KVM's implementation is in `kvm/`; tests use one that records calls.
pub trait MemorySlots: Send + Sync {
    /// Shows a range that no other slot overlaps.
    fn show(&self, range: HostRange, access: Access) -> io::Result<SlotId>;

    /// Takes it away: the guest's accesses become MMIO exits.
    fn hide(&self, slot: SlotId) -> io::Result<()>;
}

/// What the guest may do with a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Everything.
    ReadWrite,
    /// Read and execute; writes become MMIO exits.
    ReadOnly,
}
