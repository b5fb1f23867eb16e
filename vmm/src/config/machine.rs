//! Processors and memory.

use serde::{Deserialize, Serialize};

use super::{ConfigError, check};

/// Processors and memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MachineConfig {
    /// Number of virtual processors, 1 to [`MachineConfig::MAX_VCPUS`].
    pub vcpu_count: u8,
    /// Virtual processors that the VM can have in use while it runs, `vcpu_count` to [`MachineConfig::MAX_VCPUS`]; default:
    /// `vcpu_count`. Those beyond it exist from the start, at the price of a thread and some guest memory each; the guest's
    /// kernel doesn't start them by itself (`maxcpus=`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_vcpu_count: Option<u8>,
    /// Guest memory in MiB, at least [`MachineConfig::MIN_MEM_SIZE_MIB`].
    pub mem_size_mib: u32,
    /// Pages behind the guest's memory.
    pub huge_pages: HugePages,
    /// Threads that share a core: only false, for Firecracker's clients, which say so explicitly.
    #[serde(skip_serializing_if = "is_false")]
    pub smt: bool,
    /// Record of changed pages: only false, like `smt`.
    #[serde(skip_serializing_if = "is_false")]
    pub track_dirty_pages: bool,
    /// Set of features that the guest's processors have: only `None`, all that the host has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_template: Option<CpuTemplate>,
}

/// Set of processor features.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum CpuTemplate {
    /// All that the host has.
    None,
}

fn is_false(value: &bool) -> bool {
    !value
}

impl MachineConfig {
    /// Most virtual processors of one VM.
    pub const MAX_VCPUS: u8 = 64;
    /// Smallest guest memory in MiB.
    pub const MIN_MEM_SIZE_MIB: u32 = 32;
    /// Largest guest memory in MiB: 1 TiB.
    pub const MAX_MEM_SIZE_MIB: u32 = 1 << 20;
}

impl Default for MachineConfig {
    fn default() -> Self {
        Self {
            vcpu_count: 1,
            max_vcpu_count: None,
            mem_size_mib: 128,
            huge_pages: HugePages::default(),
            smt: false,
            track_dirty_pages: false,
            cpu_template: None,
        }
    }
}

/// Pages behind the guest's memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum HugePages {
    /// The host's kernel merges pages where it can (transparent huge pages).
    #[default]
    Transparent,
    /// Small pages only.
    None,
    /// 2 MiB pages of the host's hugetlbfs pool, all taken at start.
    #[serde(rename = "2M")]
    Hugetlb2M,
}

impl MachineConfig {
    /// Virtual processors that exist, in use or not.
    pub fn all_vcpus(&self) -> u8 {
        self.max_vcpu_count.unwrap_or(self.vcpu_count)
    }

    /// What the guest's kernel has to be told on its command line.
    pub(crate) fn kernel_words(&self) -> Option<String> {
        (self.all_vcpus() > self.vcpu_count).then(|| format!("maxcpus={}", self.vcpu_count))
    }

    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        check(!self.smt, "machine-config.smt", "must be false: each vCPU is a core of its own")?;
        check(!self.track_dirty_pages, "machine-config.track_dirty_pages", "must be false: there are no snapshots")?;
        let vcpus = 1..=Self::MAX_VCPUS;
        check(
            vcpus.contains(&self.vcpu_count),
            "machine-config.vcpu_count",
            &format!("must be {} to {}, not {}", vcpus.start(), vcpus.end(), self.vcpu_count),
        )?;
        let all = self.vcpu_count..=Self::MAX_VCPUS;
        check(
            all.contains(&self.all_vcpus()),
            "machine-config.max_vcpu_count",
            &format!("must be {} (vcpu_count) to {}, not {}", all.start(), all.end(), self.all_vcpus()),
        )?;
        let sizes = Self::MIN_MEM_SIZE_MIB..=Self::MAX_MEM_SIZE_MIB;
        check(
            sizes.contains(&self.mem_size_mib),
            "machine-config.mem_size_mib",
            &format!("must be {} to {}, not {}", sizes.start(), sizes.end(), self.mem_size_mib),
        )?;
        let whole = self.huge_pages != HugePages::Hugetlb2M || self.mem_size_mib.is_multiple_of(2);
        check(whole, "machine-config.mem_size_mib", "must be a multiple of 2 with 2M huge pages")
    }
}
