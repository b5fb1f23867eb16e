//! Hull's virtual machine monitor.

pub mod arch;
pub mod bus;
pub mod config;
pub mod interrupt;
pub mod memory;
pub mod pci;
pub mod report;
pub mod virtio;
