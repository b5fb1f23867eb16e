//! x86-64: address map, processor state at entry, CPUID, MSRs and ACPI tables.

pub mod layout;
