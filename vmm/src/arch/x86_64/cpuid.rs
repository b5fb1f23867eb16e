//! What the guest's processors say of themselves: what KVM supports on this host, with the VM's topology, and without what would
//! cost exits or widen the host's attack surface for nothing.

use kvm_bindings::{CpuId, kvm_cpuid_entry2};
use thiserror::Error;

use super::vendor::Vendor;

/// Place of a vCPU among its VM's: one package, one thread a core.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Topology {
    /// This vCPU's number, which is its APIC ID.
    pub id: u32,
    /// Number of vCPUs, at least 1.
    pub count: u32,
}

impl Topology {
    /// Bits of an APIC ID that number the cores.
    pub fn id_bits(self) -> u32 {
        self.count.next_power_of_two().trailing_zeros()
    }
}

/// Too many leaves.
#[derive(Debug, Error)]
#[error("The host's CPUID has too many leaves")]
pub struct CpuidError;

/// Makes the CPUID of one vCPU out of what KVM supports.
pub fn for_vcpu(supported: &CpuId, topology: Topology, tsc_deadline: bool) -> Result<CpuId, CpuidError> {
    let vendor = Vendor::of(supported.as_slice());
    let mut entries: Vec<_> = supported.as_slice().to_vec();
    entries.retain(|entry| !matches!(entry.function, 0xb | 0x1f));
    for entry in &mut entries {
        adapt(entry, topology, tsc_deadline);
        vendor.adapt(entry, topology);
    }
    let highest = supported.as_slice().iter().find(|entry| entry.function == 0).map_or(0, |entry| entry.eax);
    // Linux takes the extended topology from leaf 0x1f if it is there, else from 0xb.
    for leaf in [0xb, 0x1f] {
        if leaf <= highest {
            entries.extend(extended_topology(leaf, topology));
        }
    }
    CpuId::from_entries(&entries).map_err(|_| CpuidError)
}

/// Extended processor states that a CPUID offers: the value of XCR0 with all of them; 0 without XSAVE.
pub fn extended_states(cpuid: &CpuId) -> u64 {
    cpuid
        .as_slice()
        .iter()
        .find(|entry| entry.function == 0xd && entry.index == 0)
        .map_or(0, |entry| u64::from(entry.edx) << 32 | u64::from(entry.eax))
}

/// Leaves that all vendors share.
fn adapt(entry: &mut kvm_cpuid_entry2, topology: Topology, tsc_deadline: bool) {
    match entry.function {
        0x1 => features(entry, topology, tsc_deadline),
        // Power management: only "the APIC timer always runs" is of use. The rest would be MSRs that trap.
        0x6 => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (entry.eax & 1 << 2, 0, 0, 0),
        0x7 if entry.index == 0 => {
            const SGX: u32 = 1 << 2;
            const PROCESSOR_TRACE: u32 = 1 << 25;
            const SGX_LAUNCH_CONTROL: u32 = 1 << 30;
            const HYBRID: u32 = 1 << 15;
            const PCONFIG: u32 = 1 << 18;
            const ARCH_LBR: u32 = 1 << 19;
            entry.ebx &= !(SGX | PROCESSOR_TRACE);
            entry.ecx &= !SGX_LAUNCH_CONTROL;
            entry.edx &= !(HYBRID | PCONFIG | ARCH_LBR);
        }
        // Performance monitoring, SGX, processor trace, hybrid information, last branch records.
        0xa | 0x12 | 0x14 | 0x1a | 0x1c | 0x23 => {
            (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0);
        }
        _ => {}
    }
}

/// Leaf 1: identity and features.
fn features(entry: &mut kvm_cpuid_entry2, topology: Topology, tsc_deadline: bool) {
    // ECX
    const DTES64_MONITOR_DSCPL: u32 = 0b1_1100;
    const VMX_SMX: u32 = 0b110_0000;
    const EIST_TM2: u32 = 0b1_1000_0000;
    const PDCM: u32 = 1 << 15;
    const X2APIC: u32 = 1 << 21;
    const TSC_DEADLINE: u32 = 1 << 24;
    const HYPERVISOR: u32 = 1 << 31;
    // EDX
    const DS: u32 = 1 << 21;
    const ACPI_THERMAL: u32 = 1 << 22;
    const HTT: u32 = 1 << 28;

    entry.ecx &= !(DTES64_MONITOR_DSCPL | VMX_SMX | EIST_TM2 | PDCM | TSC_DEADLINE);
    entry.ecx |= X2APIC | HYPERVISOR;
    if tsc_deadline {
        entry.ecx |= TSC_DEADLINE;
    }
    entry.edx &= !(DS | ACPI_THERMAL | HTT);
    if topology.count > 1 {
        entry.edx |= HTT;
    }
    let addressable = 1u32 << topology.id_bits();
    entry.ebx = entry.ebx & 0xffff | addressable << 16 | topology.id << 24;
}

/// Leaves 0xb and 0x1f: one thread a core, `count` cores.
fn extended_topology(leaf: u32, topology: Topology) -> [kvm_cpuid_entry2; 3] {
    const SMT: u32 = 1;
    const CORE: u32 = 2;
    const SIGNIFICANT_INDEX: u32 = 1;
    let level = |index: u32, kind: u32, shift: u32, processors: u32| kvm_cpuid_entry2 {
        function: leaf,
        index,
        flags: SIGNIFICANT_INDEX,
        eax: shift,
        ebx: processors,
        ecx: kind << 8 | index,
        edx: topology.id,
        ..Default::default()
    };
    [level(0, SMT, 0, 1), level(1, CORE, topology.id_bits(), topology.count), level(2, 0, 0, 0)]
}

/// Width of a guest's physical addresses (leaf 0x80000008); 36 where the processor doesn't tell.
pub fn physical_address_bits(supported: &CpuId) -> u32 {
    let leaf = supported.as_slice().iter().find(|entry| entry.function == 0x8000_0008);
    let Some(eax) = leaf.map(|leaf| leaf.eax) else { return 36 };
    // The second field is the limit of nested paging, where it is lower.
    match (eax & 0xff, eax >> 16 & 0xff) {
        (bits, 0) => bits,
        (bits, guest_bits) => bits.min(guest_bits),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests stop at the first surprise")]

    use super::*;

    fn entry(function: u32, regs: [u32; 4]) -> kvm_cpuid_entry2 {
        let [eax, ebx, ecx, edx] = regs;
        kvm_cpuid_entry2 { function, eax, ebx, ecx, edx, ..Default::default() }
    }

    fn amd_host() -> CpuId {
        let ones = u32::MAX;
        CpuId::from_entries(&[
            entry(0, [0x10, 0x6874_7541, 0x444d_4163, 0x6974_6e65]),
            entry(1, [0, ones, ones, ones]),
            entry(0xa, [ones; 4]),
            entry(0xb, [ones; 4]),
            entry(0x8000_0001, [0, 0, ones, ones]),
            entry(0x8000_0008, [0x3030, 0, ones, 0]),
            entry(0x8000_001e, [ones; 4]),
        ])
        .unwrap()
    }

    fn find(cpuid: &CpuId, function: u32, index: u32) -> kvm_cpuid_entry2 {
        *cpuid.as_slice().iter().find(|e| e.function == function && e.index == index).unwrap()
    }

    #[test]
    fn topology_is_the_same_in_all_leaves() {
        let cpuid = for_vcpu(&amd_host(), Topology { id: 4, count: 5 }, true).unwrap();
        assert_eq!(find(&cpuid, 1, 0).ebx >> 24, 4);
        assert_eq!(find(&cpuid, 1, 0).ebx >> 16 & 0xff, 8);
        let cores = find(&cpuid, 0xb, 1);
        assert_eq!((cores.eax, cores.ebx, cores.ecx, cores.edx), (3, 5, 0x201, 4));
        assert_eq!(find(&cpuid, 0x8000_0008, 0).ecx, 3 << 12 | 4);
        assert_eq!(find(&cpuid, 0x8000_001e, 0).eax, 4);
    }

    #[test]
    fn one_processor_has_no_multithreading() {
        let cpuid = for_vcpu(&amd_host(), Topology { id: 0, count: 1 }, true).unwrap();
        assert_eq!(find(&cpuid, 1, 0).edx & 1 << 28, 0);
        assert_eq!(find(&cpuid, 0xb, 1).eax, 0);
        assert_eq!(find(&cpuid, 0x8000_0001, 0).ecx & 2, 0);
    }

    #[test]
    fn what_traps_or_nests_is_hidden() {
        let cpuid = for_vcpu(&amd_host(), Topology { id: 0, count: 1 }, false).unwrap();
        let one = find(&cpuid, 1, 0);
        assert_eq!(one.ecx & (1 << 5 | 1 << 3 | 1 << 15 | 1 << 24), 0, "VMX, MONITOR, PDCM, TSC deadline");
        assert_ne!(one.ecx & 1 << 31, 0, "hypervisor");
        assert_eq!(find(&cpuid, 0x8000_0001, 0).ecx & 1 << 2, 0, "SVM");
        assert_eq!(find(&cpuid, 0xa, 0).eax, 0);
    }

    #[test]
    fn the_vendor_is_recognized() {
        assert_eq!(Vendor::of(amd_host().as_slice()), Vendor::Amd);
        assert_eq!(Vendor::of(&[]), Vendor::Other);
    }
}
