//! Model-specific registers at start. KVM's reset values are right for most.

/// Architectural MSRs by the names of the Intel SDM, volume 4.
const IA32_MISC_ENABLE: u32 = 0x1a0;
const MISC_ENABLE_FAST_STRINGS: u64 = 1;

/// What is set on every vCPU, beyond KVM's reset values. A register that the host's KVM refuses is skipped: none of these is vital.
pub const START_VALUES: &[(u32, u64)] = &[(IA32_MISC_ENABLE, MISC_ENABLE_FAST_STRINGS)];
