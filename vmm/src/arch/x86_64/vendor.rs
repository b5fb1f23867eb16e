//! Differences between processor vendors, all in one place.
//!
//! Bits by Intel SDM volume 2 (CPUID) and AMD APM volume 3, appendix E.

use kvm_bindings::kvm_cpuid_entry2;

use super::cpuid::Topology;

/// Who made the processor, by CPUID leaf 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Vendor {
    /// "GenuineIntel".
    Intel,
    /// "AuthenticAMD" and "HygonGenuine".
    Amd,
    /// Another one.
    Other,
}

impl Vendor {
    /// Reads the vendor out of leaf 0.
    pub fn of(entries: &[kvm_cpuid_entry2]) -> Self {
        let Some(leaf) = entries.iter().find(|entry| entry.function == 0) else { return Self::Other };
        match [leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes).concat().as_slice() {
            b"GenuineIntel" => Self::Intel,
            b"AuthenticAMD" | b"HygonGenuine" => Self::Amd,
            _ => Self::Other,
        }
    }

    /// Adapts a leaf that only this vendor has, or has in its own way.
    pub fn adapt(self, entry: &mut kvm_cpuid_entry2, topology: Topology) {
        match self {
            Self::Intel => intel(entry, topology),
            Self::Amd => amd(entry, topology),
            Self::Other => {}
        }
    }
}

fn intel(entry: &mut kvm_cpuid_entry2, topology: Topology) {
    match entry.function {
        // Cache parameters: all processors of the package are cores; the last level is shared by all, the others by none.
        4 if entry.eax & 0x1f != 0 => {
            let level = entry.eax >> 5 & 7;
            let sharing = if level >= 3 { (1 << topology.id_bits()) - 1 } else { 0 };
            let cores = (1u32 << topology.id_bits()) - 1;
            entry.eax = entry.eax & 0x3fff | sharing << 14 | cores.min(0x3f) << 26;
        }
        _ => {}
    }
}

fn amd(entry: &mut kvm_cpuid_entry2, topology: Topology) {
    match entry.function {
        // CmpLegacy: more than one core. SVM and the performance counter extensions are off.
        0x8000_0001 => {
            const CMP_LEGACY: u32 = 1 << 1;
            const SVM: u32 = 1 << 2;
            const PERFORMANCE_COUNTERS: u32 = 1 << 10 | 1 << 23 | 1 << 24 | 1 << 28;
            entry.ecx &= !(SVM | PERFORMANCE_COUNTERS | CMP_LEGACY);
            if topology.count > 1 {
                entry.ecx |= CMP_LEGACY;
            }
        }
        // Core count and bits of the core's number in the APIC ID.
        0x8000_0008 => entry.ecx = topology.id_bits() << 12 | (topology.count - 1),
        // Nested virtualization, instruction-based sampling, lightweight profiling, performance monitoring version 2, encryption.
        0x8000_000a | 0x8000_001b | 0x8000_001c | 0x8000_001f | 0x8000_0022 => clear(entry),
        // Cache topology: as leaf 4 of Intel.
        0x8000_001d if entry.eax & 0x1f != 0 => {
            let level = entry.eax >> 5 & 7;
            let sharing = if level >= 3 { topology.count - 1 } else { 0 };
            entry.eax = entry.eax & 0x3fff | sharing << 14;
        }
        // Extended APIC ID, core (one thread each), one node.
        0x8000_001e => {
            entry.eax = topology.id;
            entry.ebx = topology.id;
            entry.ecx = 0;
        }
        _ => {}
    }
}

fn clear(entry: &mut kvm_cpuid_entry2) {
    (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0);
}
