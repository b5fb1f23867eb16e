//! Memory balloon.

use serde::{Deserialize, Serialize};

use super::{ConfigError, check};

/// virtio balloon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Balloon {
    /// Memory in MiB that the guest shall give back, at most all of it.
    pub amount_mib: u32,
    /// The guest may take pages out of the balloon when it has no others left.
    pub deflate_on_oom: bool,
    /// How often in seconds the guest is asked for statistics of its memory; 0 for never.
    pub stats_polling_interval_s: u16,
    /// The guest gives back free memory on its own.
    pub free_page_reporting: bool,
}

impl Default for Balloon {
    fn default() -> Self {
        Self { amount_mib: 0, deflate_on_oom: false, stats_polling_interval_s: 0, free_page_reporting: true }
    }
}

impl Balloon {
    pub(super) fn validate(&self, mem_size_mib: u32) -> Result<(), ConfigError> {
        let fits = self.amount_mib <= mem_size_mib;
        let problem = format!("must be at most the VM's {mem_size_mib} MiB, not {}", self.amount_mib);
        check(fits, "balloon.amount_mib", &problem)
    }
}
