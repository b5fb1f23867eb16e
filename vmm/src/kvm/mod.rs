//! KVM: the only module that knows its ioctls.
//!
//! The files here contain `unsafe` where an ioctl takes an address or a structure is read from the memory shared with KVM.
#![allow(unsafe_code, reason = "memory slots and the kvm_run page can't be described safely")]

mod fabric;
mod slots;
mod stats;
mod system;
mod vcpu;
mod vm;

#[cfg(test)]
mod kvm_test;

pub use fabric::KvmFabric;
pub use slots::KvmSlots;
pub use stats::{Statistics, VcpuStatistics};
pub use system::{MissingCapabilities, OpenError, REQUIRED_CAPABILITIES, System};
pub use vcpu::{Exit, KvmVcpu, install_kick_handler, kick};
pub use vm::KvmVm;

use thiserror::Error;

/// An ioctl failed.
#[derive(Debug, Error)]
#[error("KVM refuses {operation}")]
pub struct KvmError {
    /// What was asked for.
    pub operation: &'static str,
    /// Its answer.
    pub source: std::io::Error,
}

impl KvmError {
    fn of(operation: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Self {
        move |error| Self { operation, source: std::io::Error::from_raw_os_error(error.errno()) }
    }
}
