//! How large a VM is.

use std::num::NonZeroU8;
use std::thread::available_parallelism;

use hull_vmm::config::MachineConfig;
use nix::unistd::{SysconfVar, sysconf};

use crate::parse::{Cpus, MemorySize};

/// What a VM needs beside its container, in MiB, besides the kernel's map of all memory. Measured: 17 for the kernel's image
/// and tables, 5 for the initramfs, 4 for the agent; a VM of 40 MiB runs a shell. The rest is reserve, so that a
/// container meets its own limit before the VM's.
const OVERHEAD_MIB: u32 = 64;

/// One page in 64 holds the kernel's map of all pages (`struct page`).
const PAGES_PER_MAP_PAGE: u32 = 64;

/// Smallest VM in which a container starts, in MiB.
pub const MIN_MEMORY_MIB: u32 = 40;

/// Smallest memory limit of a container, in MiB: Docker's.
pub const MIN_LIMIT_MIB: u32 = 6;

/// Largest memory limit of a container, in MiB: the largest VM less what it needs itself.
pub const MAX_LIMIT_MIB: u32 =
    (MachineConfig::MAX_MEM_SIZE_MIB - OVERHEAD_MIB) / (PAGES_PER_MAP_PAGE + 1) * PAGES_PER_MAP_PAGE;

/// Largest VM, in MiB.
pub const MAX_MEMORY_MIB: u32 = MachineConfig::MAX_MEM_SIZE_MIB;

/// Memory of a VM whose container has no limit, in MiB, unless the host's administrator wants it otherwise.
pub const DEFAULT_MEMORY_MIB: u32 = 512;

/// Most processors of a VM.
pub const MAX_VCPUS: u8 = MachineConfig::MAX_VCPUS;

/// What counts for VMs where nothing else is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Defaults {
    /// Processors of a VM whose container has no limit.
    pub vcpus: u8,
    /// Memory of a VM whose container has no limit, in MiB.
    pub memory_mib: u32,
    /// What a VM gets beside its container's limit and the kernel's map of it, in MiB.
    pub overhead_mib: u32,
}

impl Default for Defaults {
    fn default() -> Self {
        Self { vcpus: 1, memory_mib: DEFAULT_MEMORY_MIB, overhead_mib: OVERHEAD_MIB }
    }
}

impl Defaults {
    /// Memory of the VM in MiB: what was asked for, else the container's limit plus what the VM itself needs, else the
    /// default.
    pub fn memory_mib(&self, asked: Option<MemorySize>, limit: Option<MemorySize>) -> u32 {
        match (asked, limit) {
            (Some(asked), _) => asked.mib_rounded_up(),
            (None, Some(limit)) => self.with_overhead(limit.mib_rounded_up()),
            (None, None) => self.memory_mib,
        }
        .min(MAX_MEMORY_MIB)
    }

    /// Processors of the VM: what was asked for, else enough for `cpus`, else the default; both at most as many as the host
    /// has.
    pub fn vcpus(&self, asked: Option<NonZeroU8>, cpus: Option<Cpus>) -> u8 {
        if let Some(asked) = asked {
            return asked.get();
        }
        cpus.map_or(self.vcpus, Cpus::rounded_up).clamp(1, max_cpus())
    }

    /// Memory of a VM whose containers may use `limit_mib` together, in MiB.
    pub fn memory_for_mib(&self, limit_mib: u32) -> u32 {
        self.with_overhead(limit_mib).min(MAX_MEMORY_MIB)
    }

    fn with_overhead(&self, limit_mib: u32) -> u32 {
        limit_mib.saturating_add(limit_mib / PAGES_PER_MAP_PAGE).saturating_add(self.overhead_mib)
    }
}

/// Most processors that a container can use: as many as the host has, and no more than a VM can have.
pub fn max_cpus() -> u8 {
    let host = available_parallelism().map_or(1, usize::from);
    u8::try_from(host).unwrap_or(MAX_VCPUS).min(MAX_VCPUS)
}

/// The host's memory in MiB, but not more than a VM can have, which it also is if it can't be known.
pub fn host_memory_mib() -> u32 {
    let pages = setting(SysconfVar::_PHYS_PAGES).zip(setting(SysconfVar::PAGE_SIZE));
    let mib = pages.map(|(pages, bytes)| pages.saturating_mul(bytes) >> 20);
    mib.and_then(|mib| u32::try_from(mib).ok()).map_or(MAX_MEMORY_MIB, |mib| mib.min(MAX_MEMORY_MIB))
}

fn setting(name: SysconfVar) -> Option<u64> {
    sysconf(name).ok().flatten().and_then(|value| u64::try_from(value).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_follows_the_limit_unless_asked_otherwise() {
        let size = |text: &str| Some(text.parse::<MemorySize>().unwrap());
        assert_eq!(Defaults::default().memory_mib(None, None), DEFAULT_MEMORY_MIB);
        assert_eq!(Defaults::default().memory_mib(None, size("50m")), 114);
        assert_eq!(Defaults::default().memory_mib(None, size("64g")), 65 * 1024 + 64);
        assert_eq!(Defaults::default().memory_mib(size("64m"), size("50m")), 64);
    }

    #[test]
    fn an_administrator_s_wishes_count_where_nothing_else_is_said() {
        let wishes = Defaults { vcpus: 2, memory_mib: 1024, overhead_mib: 100 };
        assert_eq!(wishes.memory_mib(None, None), 1024);
        assert_eq!(wishes.memory_mib(None, "64m".parse().ok()), 64 + 1 + 100);
        assert_eq!(wishes.vcpus(None, None), 2.min(max_cpus()));
        assert_eq!(wishes.vcpus(None, "1".parse().ok()), 1);
    }

    #[test]
    fn the_largest_limit_is_one_that_fits_into_the_largest_vm() {
        assert!(Defaults::default().with_overhead(MAX_LIMIT_MIB) <= MachineConfig::MAX_MEM_SIZE_MIB);
        assert!(
            Defaults::default().with_overhead(MAX_LIMIT_MIB + 2 * PAGES_PER_MAP_PAGE) > MachineConfig::MAX_MEM_SIZE_MIB
        );
    }

    #[test]
    fn processors_are_those_asked_for_or_enough_for_the_limit() {
        assert_eq!(Defaults::default().vcpus(NonZeroU8::new(8), None), 8);
        assert_eq!(Defaults::default().vcpus(None, Some("0.5".parse().unwrap())), 1);
        assert_eq!(Defaults::default().vcpus(None, None), 1);
        let host = available_parallelism().unwrap().get();
        assert!(usize::from(Defaults::default().vcpus(None, Some("60".parse().unwrap()))) <= host);
    }
}
