//! Resident memory of a monitor beyond what the guest touched.

use anyhow::{Context, Result};
use serde::Serialize;

/// Resident memory in KiB, from `/proc/PID/smaps`.
#[derive(Clone, Copy, Default, Serialize)]
pub struct Memory {
    /// Of the whole process.
    pub total_kib: u64,
    /// Of the mapping that is the guest's memory.
    pub guest_kib: u64,
}

impl Memory {
    /// What the monitor needs for itself.
    pub fn overhead_kib(&self) -> u64 {
        self.total_kib - self.guest_kib
    }
}

/// Adds up the mappings of process `pid`. Those as large as the guest's memory are the guest's memory.
pub fn of(pid: u32, guest_mib: u32) -> Result<Memory> {
    let path = format!("/proc/{pid}/smaps");
    let text = std::fs::read_to_string(&path).with_context(|| format!("Can't read {path}"))?;
    let mut memory = Memory::default();
    let mut size_kib = 0;
    for line in text.lines() {
        if let Some(value) = kib(line, "Size:") {
            size_kib = value;
        } else if let Some(value) = kib(line, "Rss:") {
            memory.total_kib += value;
            if size_kib >= u64::from(guest_mib) * 1024 {
                memory.guest_kib += value;
            }
        }
    }
    Ok(memory)
}

fn kib(line: &str, key: &str) -> Option<u64> {
    line.strip_prefix(key)?.trim().strip_suffix(" kB")?.parse().ok()
}
