//! The table of memory slots of a VM.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_bindings::{KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;

use super::KvmError;
use crate::memory::HostRange;
use crate::memory_slots::{Access, MemorySlots, SlotId};

/// [`MemorySlots`] on KVM. There is one table per VM; clones share it.
#[derive(Clone)]
pub struct KvmSlots {
    vm: Arc<VmFd>,
    used: Arc<Mutex<BTreeMap<u32, HostRange>>>,
}

impl KvmSlots {
    pub(super) fn new(vm: Arc<VmFd>) -> Self {
        Self { vm, used: Arc::default() }
    }

    /// Takes the lowest free slot for a range.
    pub(super) fn add(&self, range: HostRange, access: Access) -> Result<SlotId, KvmError> {
        let mut used = self.used();
        // Numbers are dense from 0 on except where slots were taken away, so the search ends within the table.
        let number = (0..u32::MAX).find(|number| !used.contains_key(number)).unwrap_or(u32::MAX);
        let flags = match access {
            Access::ReadWrite => 0,
            Access::ReadOnly => KVM_MEM_READONLY,
        };
        self.set(number, range, range.size, flags)?;
        used.insert(number, range);
        Ok(SlotId(number))
    }

    fn set(&self, slot: u32, range: HostRange, memory_size: u64, flags: u32) -> Result<(), KvmError> {
        let region = kvm_userspace_memory_region {
            slot,
            flags,
            guest_phys_addr: range.guest.0,
            memory_size,
            userspace_addr: range.host,
        };
        // SAFETY: `HostRange`s are made by `memory.rs` only, of mappings that outlive the VM; the guest may change their content,
        // and the monitor accesses it by volatile means only.
        unsafe { self.vm.set_user_memory_region(region) }.map_err(KvmError::of("KVM_SET_USER_MEMORY_REGION"))
    }

    fn used(&self) -> MutexGuard<'_, BTreeMap<u32, HostRange>> {
        // Changes are single inserts and removals: a panic elsewhere can't leave the table half changed.
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl MemorySlots for KvmSlots {
    fn show(&self, range: HostRange, access: Access) -> io::Result<SlotId> {
        self.add(range, access).map_err(|error| error.source)
    }

    fn hide(&self, SlotId(number): SlotId) -> io::Result<()> {
        let mut used = self.used();
        let range = *used.get(&number).ok_or(io::ErrorKind::NotFound)?;
        // A size of 0 deletes the slot (Documentation/virt/kvm/api.rst, section 4.35).
        self.set(number, range, 0, 0).map_err(|error| error.source)?;
        used.remove(&number);
        Ok(())
    }
}
