//! Hull's virtual machine monitor.

pub mod arch;
pub mod builder;
pub mod bus;
pub mod cleanup;
pub mod config;
pub mod console;
pub mod control;
pub mod device;
pub mod devices;
pub mod ending;
pub mod event_loop;
pub mod events;
pub mod fd;
pub mod interrupt;
pub mod kvm;
pub mod loader;
pub mod log;
pub mod memory;
pub mod pci;
pub mod probe;
pub mod report;
pub mod resident;
pub mod tiny_guest;
pub mod vcpu;
pub mod virtio;
pub mod vm;
