//! Memory that can be plugged while the VM runs.

use serde::{Deserialize, Serialize};

use super::{ConfigError, HugePages, MachineConfig, check};
use crate::arch::layout;

/// Smallest block: a huge page.
const MIN_BLOCK_SIZE_MIB: u32 = 2;
/// Smallest slot: the unit in which Linux takes memory on.
const MIN_SLOT_SIZE_MIB: u32 = 128;
/// More slots than this would make each change slow.
const MAX_SLOTS: u32 = 8192;

/// virtio memory device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryHotplug {
    /// Memory in MiB that can be plugged at most, beside the VM's own; a multiple of the slot size.
    pub total_size_mib: u32,
    /// Unit in MiB in which the guest plugs and unplugs: a power of two, at least 2.
    #[serde(default = "default_block_size_mib")]
    pub block_size_mib: u32,
    /// Unit in MiB in which memory without a plugged block is out of the guest's reach: at least 128, and a multiple of the block size.
    #[serde(default = "default_slot_size_mib")]
    pub slot_size_mib: u32,
}

fn default_block_size_mib() -> u32 {
    MIN_BLOCK_SIZE_MIB
}

fn default_slot_size_mib() -> u32 {
    MIN_SLOT_SIZE_MIB
}

impl MemoryHotplug {
    /// What a VM that starts with `mem_size_mib` needs to have `max_size_mib` at last, rounded up to the unit in which its kernel takes
    /// memory on; `None` if it has that from the start.
    pub fn up_to(max_size_mib: u32, mem_size_mib: u32) -> Option<Self> {
        let more = max_size_mib.checked_sub(mem_size_mib).filter(|more| *more > 0)?;
        let unit = layout::memory_block_bytes(u64::from(mem_size_mib) << 20) >> 20;
        let slot_size_mib = u32::try_from(unit).ok()?;
        let total_size_mib = more.checked_next_multiple_of(slot_size_mib)?;
        Some(Self { total_size_mib, block_size_mib: MIN_BLOCK_SIZE_MIB, slot_size_mib })
    }

    pub(super) fn validate(&self, machine: &MachineConfig) -> Result<(), ConfigError> {
        let Self { total_size_mib: total, block_size_mib: block, slot_size_mib: slot } = *self;
        let field = |name: &str| format!("memory-hotplug.{name}");
        let valid = block >= MIN_BLOCK_SIZE_MIB && block.is_power_of_two();
        let problem = format!("must be a power of two and at least {MIN_BLOCK_SIZE_MIB}, not {block}");
        check(valid, &field("block_size_mib"), &problem)?;
        let valid = slot >= MIN_SLOT_SIZE_MIB && slot.is_multiple_of(block) && slot.is_multiple_of(MIN_SLOT_SIZE_MIB);
        let problem = format!("must be a multiple of {MIN_SLOT_SIZE_MIB} and of the block size {block}, not {slot}");
        check(valid, &field("slot_size_mib"), &problem)?;
        let valid = (slot..=MachineConfig::MAX_MEM_SIZE_MIB).contains(&total) && total.is_multiple_of(slot);
        let max = MachineConfig::MAX_MEM_SIZE_MIB;
        let problem = format!("must be a multiple of the slot size {slot} and at most {max}, not {total}");
        check(valid, &field("total_size_mib"), &problem)?;
        let problem = format!("makes more than {MAX_SLOTS} slots of {slot} MiB; make slot_size_mib larger");
        check(total / slot <= MAX_SLOTS, &field("total_size_mib"), &problem)?;
        let possible = machine.huge_pages != HugePages::Hugetlb2M;
        check(possible, "memory-hotplug", "isn't possible with 2M huge pages, which are all taken at the start")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn what_a_vm_needs_to_grow_is_valid_and_enough() {
        for (max, start, total) in
            [(1024, 114, 1024), (129, 128, 128), (1 << 20, 40, 1 << 20), (66 << 10, 65 << 10, 2048)]
        {
            let hotplug = MemoryHotplug::up_to(max, start).unwrap();
            assert_eq!(hotplug.total_size_mib, total, "{start} to {max}");
            hotplug.validate(&MachineConfig { mem_size_mib: start, ..MachineConfig::default() }).unwrap();
        }
        assert_eq!((MemoryHotplug::up_to(128, 128), MemoryHotplug::up_to(64, 128)), (None, None));
    }
}
