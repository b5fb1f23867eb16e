//! A virtual machine: memory slots, interrupt controller, vCPUs.

use std::sync::Arc;

use kvm_bindings::{KVM_CAP_SPLIT_IRQCHIP, kvm_enable_cap};
use kvm_ioctls::VmFd;

use super::slots::KvmSlots;
use super::{KvmError, KvmFabric, KvmVcpu};
use crate::memory::HostRange;
use crate::memory_slots::Access;

/// A virtual machine of KVM.
pub struct KvmVm {
    fd: Arc<VmFd>,
    slots: KvmSlots,
}

impl KvmVm {
    pub(super) fn new(fd: VmFd) -> Self {
        let fd = Arc::new(fd);
        Self { slots: KvmSlots::new(fd.clone()), fd }
    }

    /// Sets where KVM may put its task state segment (needed by Intel processors without unrestricted guest).
    pub fn set_tss_address(&self, address: usize) -> Result<(), KvmError> {
        self.fd.set_tss_address(address).map_err(KvmError::of("KVM_SET_TSS_ADDR"))
    }

    /// Local APICs in the kernel, no I/O APIC and no PIC: interrupts are messages only.
    pub fn create_local_apics(&self) -> Result<(), KvmError> {
        let reserved_pins = 0;
        let cap = kvm_enable_cap { cap: KVM_CAP_SPLIT_IRQCHIP, args: [reserved_pins, 0, 0, 0], ..Default::default() };
        self.fd.enable_cap(&cap).map_err(KvmError::of("KVM_CAP_SPLIT_IRQCHIP"))
    }

    /// Gives the guest a piece of memory.
    pub fn add_memory(&self, range: HostRange) -> Result<(), KvmError> {
        self.slots.add(range, Access::ReadWrite).map(drop)
    }

    /// Gives the guest memory that it can only read: writes become MMIO exits.
    pub fn add_read_only_memory(&self, range: HostRange) -> Result<(), KvmError> {
        self.slots.add(range, Access::ReadOnly).map(drop)
    }

    /// Memory slots for devices that have memory of their own.
    pub fn slots(&self) -> KvmSlots {
        self.slots.clone()
    }

    /// Makes a vCPU; `id` is its APIC ID too.
    pub fn create_vcpu(&self, id: u8) -> Result<KvmVcpu, KvmError> {
        self.fd.create_vcpu(u64::from(id)).map(KvmVcpu::new).map_err(KvmError::of("KVM_CREATE_VCPU"))
    }

    /// Doorbells and interrupts of this VM. There is one per VM: it owns the table of interrupt routes.
    pub fn fabric(&self) -> KvmFabric {
        KvmFabric::new(self.fd.clone())
    }
}
