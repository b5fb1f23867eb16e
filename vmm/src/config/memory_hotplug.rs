//! Memory that can be plugged while the VM runs.

use serde::{Deserialize, Serialize};

use super::{ConfigError, HugePages, MachineConfig, check};

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
