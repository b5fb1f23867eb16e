//! Memory statistics of the guest (virtio 1.2, section 5.5.6.3).

use serde::{Deserialize, Serialize};

use crate::virtio::buffers::Reader;

/// Most entries of one buffer; Linux 6.12 sends 16.
const MAX_ENTRIES: usize = 64;
/// A tag and a value.
const ENTRY_BYTES: usize = 10;

/// What the guest says about its memory. A value that it doesn't report is absent. Sizes are in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Statistics {
    /// Read from swap.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swap_in: Option<u64>,
    /// Written to swap.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swap_out: Option<u64>,
    /// Page faults that needed a disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub major_faults: Option<u64>,
    /// Other page faults.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub minor_faults: Option<u64>,
    /// Memory that is not in use at all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub free_memory: Option<u64>,
    /// All memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_memory: Option<u64>,
    /// Memory that programs can get without swapping.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub available_memory: Option<u64>,
    /// Page cache.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_caches: Option<u64>,
    /// Huge pages allocated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hugetlb_allocations: Option<u64>,
    /// Huge pages that could not be had.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hugetlb_failures: Option<u64>,
    /// Processes killed for want of memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oom_kill: Option<u64>,
    /// Allocations that had to wait.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alloc_stall: Option<u64>,
    /// Pages scanned in the background.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub async_scan: Option<u64>,
    /// Pages scanned by who needed memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub direct_scan: Option<u64>,
    /// Pages reclaimed in the background.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub async_reclaim: Option<u64>,
    /// Pages reclaimed by who needed memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub direct_reclaim: Option<u64>,
}

impl Statistics {
    /// Reads a buffer of the statistics queue; tags that are not known are skipped, as the specification asks.
    pub fn read(reader: &mut Reader<'_>) -> Self {
        let mut statistics = Self::default();
        let mut entry = [0; ENTRY_BYTES];
        for _ in 0..MAX_ENTRIES {
            if reader.read(&mut entry) != ENTRY_BYTES {
                break;
            }
            let [a, b, value @ ..] = entry;
            if let Some(field) = statistics.field(u16::from_le_bytes([a, b])) {
                *field = Some(u64::from_le_bytes(value));
            }
        }
        statistics
    }

    /// Tags up to 9 are the specification's, the others Linux's.
    fn field(&mut self, tag: u16) -> Option<&mut Option<u64>> {
        Some(match tag {
            0 => &mut self.swap_in,
            1 => &mut self.swap_out,
            2 => &mut self.major_faults,
            3 => &mut self.minor_faults,
            4 => &mut self.free_memory,
            5 => &mut self.total_memory,
            6 => &mut self.available_memory,
            7 => &mut self.disk_caches,
            8 => &mut self.hugetlb_allocations,
            9 => &mut self.hugetlb_failures,
            10 => &mut self.oom_kill,
            11 => &mut self.alloc_stall,
            12 => &mut self.async_scan,
            13 => &mut self.direct_scan,
            14 => &mut self.async_reclaim,
            15 => &mut self.direct_reclaim,
            _ => return None,
        })
    }
}
