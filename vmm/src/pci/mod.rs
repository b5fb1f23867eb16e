//! PCI: one bus, type 0 functions, modern virtio transport, message-signalled interrupts only.

mod root;

pub use root::{ConfigSpaceMemory, PciError, PciRoot, PciSlot, PlugError};
