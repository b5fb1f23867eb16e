//! x86-64: address map, processor state at entry, CPUID, MSRs and ACPI tables.

pub mod acpi;
pub mod cpuid;
pub mod entry;
pub mod layout;
pub mod msr;
pub mod vendor;
