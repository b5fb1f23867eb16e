//! A virtual machine: memory slots, interrupt controller, vCPUs.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use kvm_bindings::{KVM_CAP_SPLIT_IRQCHIP, KVM_MEM_READONLY, kvm_enable_cap, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;

use super::{KvmError, KvmFabric, KvmVcpu};
use crate::memory::HostRange;

/// A virtual machine of KVM.
pub struct KvmVm {
    fd: Arc<VmFd>,
    next_slot: AtomicU32,
}

impl KvmVm {
    pub(super) fn new(fd: VmFd) -> Self {
        Self { fd: Arc::new(fd), next_slot: AtomicU32::new(0) }
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
        self.add_slot(range, 0)
    }

    /// Gives the guest memory that it can only read: writes become MMIO exits.
    pub fn add_read_only_memory(&self, range: HostRange) -> Result<(), KvmError> {
        self.add_slot(range, KVM_MEM_READONLY)
    }

    fn add_slot(&self, range: HostRange, flags: u32) -> Result<(), KvmError> {
        let region = kvm_userspace_memory_region {
            slot: self.next_slot.fetch_add(1, Ordering::Relaxed),
            flags,
            guest_phys_addr: range.guest.0,
            memory_size: range.size,
            userspace_addr: range.host,
        };
        // SAFETY: `HostRange`s are made by `memory.rs` only, of mappings that outlive the VM; the guest may change their content,
        // and the monitor accesses it by volatile means only.
        unsafe { self.fd.set_user_memory_region(region) }.map_err(KvmError::of("KVM_SET_USER_MEMORY_REGION"))
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
