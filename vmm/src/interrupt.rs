//! Doorbells and interrupts: what a PCI function needs of the machine, without knowing KVM.

use std::io;

use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::EventFd;

/// A global system interrupt number, given out by a [`Fabric`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Gsi(pub u32);

/// A message-signalled interrupt: what the device writes, and where (PCI Local Bus Specification 3.0, section 6.8.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MsiMessage {
    /// Message address.
    pub address: u64,
    /// Message data.
    pub data: u32,
}

/// Connects event file descriptors with the guest: ioeventfds for doorbells, irqfds for interrupts.
///
/// KVM's implementation is in `kvm/`; tests use one that records calls.
pub trait Fabric: Send + Sync {
    /// A write of any width by the guest to `address` signals `doorbell`, without an exit to user space.
    fn attach_doorbell(&self, address: GuestAddress, doorbell: &EventFd) -> io::Result<()>;

    /// Undoes [`Fabric::attach_doorbell`].
    fn detach_doorbell(&self, address: GuestAddress, doorbell: &EventFd) -> io::Result<()>;

    /// Gives out an interrupt that a write to `irqfd` raises once a message is set by [`Fabric::route_msi`].
    fn attach_interrupt(&self, irqfd: &EventFd) -> io::Result<Gsi>;

    /// Sets the message that the interrupt sends; `None` sends nothing.
    fn route_msi(&self, gsi: Gsi, message: Option<MsiMessage>) -> io::Result<()>;

    /// Undoes [`Fabric::attach_interrupt`].
    fn detach_interrupt(&self, gsi: Gsi, irqfd: &EventFd) -> io::Result<()>;
}
