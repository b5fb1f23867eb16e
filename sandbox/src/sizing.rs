//! How large a VM is.

use std::num::NonZeroU8;
use std::thread::available_parallelism;

use hull_vmm::config::MachineConfig;

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

/// Memory of a VM whose container has no limit, in MiB.
pub const DEFAULT_MEMORY_MIB: u32 = 512;

/// Memory of the VM in MiB: what was asked for, else the container's limit plus what the VM itself needs, else
/// [`DEFAULT_MEMORY_MIB`].
pub fn memory_mib(asked: Option<MemorySize>, limit: Option<MemorySize>) -> u32 {
    match (asked, limit) {
        (Some(asked), _) => asked.mib_rounded_up(),
        (None, Some(limit)) => with_overhead(limit.mib_rounded_up()),
        (None, None) => DEFAULT_MEMORY_MIB,
    }
    .min(MachineConfig::MAX_MEM_SIZE_MIB)
}

fn with_overhead(limit_mib: u32) -> u32 {
    limit_mib.saturating_add(limit_mib / PAGES_PER_MAP_PAGE).saturating_add(OVERHEAD_MIB)
}

/// Processors of the VM: what was asked for, else enough for `cpus` (at most as many as the host has), else one.
pub fn vcpus(asked: Option<NonZeroU8>, cpus: Option<Cpus>) -> u8 {
    if let Some(asked) = asked {
        return asked.get();
    }
    cpus.map_or(1, Cpus::rounded_up).clamp(1, max_cpus())
}

/// Most processors that a container can use: as many as the host has, and no more than a VM can have.
pub fn max_cpus() -> u8 {
    let host = available_parallelism().map_or(1, usize::from);
    u8::try_from(host).unwrap_or(MachineConfig::MAX_VCPUS).min(MachineConfig::MAX_VCPUS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_follows_the_limit_unless_asked_otherwise() {
        let size = |text: &str| Some(text.parse::<MemorySize>().unwrap());
        assert_eq!(memory_mib(None, None), DEFAULT_MEMORY_MIB);
        assert_eq!(memory_mib(None, size("50m")), 114);
        assert_eq!(memory_mib(None, size("64g")), 65 * 1024 + 64);
        assert_eq!(memory_mib(size("64m"), size("50m")), 64);
    }

    #[test]
    fn the_largest_limit_is_one_that_fits_into_the_largest_vm() {
        assert!(with_overhead(MAX_LIMIT_MIB) <= MachineConfig::MAX_MEM_SIZE_MIB);
        assert!(with_overhead(MAX_LIMIT_MIB + 2 * PAGES_PER_MAP_PAGE) > MachineConfig::MAX_MEM_SIZE_MIB);
    }

    #[test]
    fn processors_are_those_asked_for_or_enough_for_the_limit() {
        assert_eq!(vcpus(NonZeroU8::new(8), None), 8);
        assert_eq!(vcpus(None, Some("0.5".parse().unwrap())), 1);
        assert_eq!(vcpus(None, None), 1);
        let host = available_parallelism().unwrap().get();
        assert!(usize::from(vcpus(None, Some("60".parse().unwrap()))) <= host);
    }
}
