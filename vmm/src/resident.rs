//! How much memory of the host a VM takes, and how much of it is the monitor's own.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use serde::{Deserialize, Serialize};

use crate::memory::HostRange;

/// A monitor has about a hundred mappings of 700 bytes each in this file.
const MAX_SMAPS_BYTES: usize = 1 << 20;

/// Resident memory in KiB.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryStats {
    /// All of the process.
    pub resident_kib: u64,
    /// Guest memory that was touched.
    pub guest_resident_kib: u64,
    /// The rest: the price of the monitor.
    pub overhead_kib: u64,
}

/// Reads the numbers of this process. Holds the file, so that it works without access to `/proc` later.
pub struct ResidentMemory {
    smaps: File,
    guest: Vec<HostRange>,
}

impl ResidentMemory {
    /// `guest` is where guest memory is mapped.
    pub fn new(guest: Vec<HostRange>) -> io::Result<Self> {
        Ok(Self { smaps: File::open("/proc/self/smaps")?, guest })
    }

    /// The numbers now.
    pub fn read(&self) -> io::Result<MemoryStats> {
        let mut text = Vec::new();
        let mut chunk = [0; 16 << 10];
        while text.len() < MAX_SMAPS_BYTES {
            match self.smaps.read_at(&mut chunk, text.len() as u64)? {
                0 => break,
                count => text.extend_from_slice(chunk.get(..count).unwrap_or_default()),
            }
        }
        Ok(sum(&String::from_utf8_lossy(&text), &self.guest))
    }
}

/// Adds up the `Rss` of all mappings in the text of an smaps file.
fn sum(smaps: &str, guest: &[HostRange]) -> MemoryStats {
    let mut stats = MemoryStats::default();
    let mut in_guest = false;
    for line in smaps.lines() {
        if let Some(start) = mapping_start(line) {
            in_guest = guest.iter().any(|range| (range.host..range.host + range.size).contains(&start));
        } else if let Some(kib) = line.strip_prefix("Rss:").and_then(|rest| rest.trim().strip_suffix(" kB")) {
            let kib: u64 = kib.trim().parse().unwrap_or(0);
            stats.resident_kib += kib;
            stats.guest_resident_kib += if in_guest { kib } else { 0 };
        }
    }
    stats.overhead_kib = stats.resident_kib - stats.guest_resident_kib;
    stats
}

/// The start address, if the line is the first of a mapping: `7f00-7f10 rw-p ...`.
fn mapping_start(line: &str) -> Option<u64> {
    let (start, rest) = line.split_once('-')?;
    let (end, _) = rest.split_once(' ')?;
    u64::from_str_radix(end, 16).ok()?;
    u64::from_str_radix(start, 16).ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests stop at the first surprise")]

    use vm_memory::GuestAddress;

    use super::*;

    #[test]
    fn guest_memory_is_told_from_the_rest() {
        let text = "1000-2000 rw-p 00000000 00:00 0 [heap]\nSize: 4 kB\nRss:   4 kB\n\
                    7f0000000000-7f0008000000 rw-p 0 00:00 0\nRss: 2048 kB\nPss: 2048 kB\nVmFlags: rd wr\n";
        let guest = [HostRange { guest: GuestAddress(0), host: 0x7f00_0000_0000, size: 128 << 20 }];
        let expected = MemoryStats { resident_kib: 2052, guest_resident_kib: 2048, overhead_kib: 4 };
        assert_eq!(sum(text, &guest), expected);
    }

    #[test]
    fn this_process_has_resident_memory() {
        let stats = ResidentMemory::new(vec![]).unwrap().read().unwrap();
        assert!(stats.resident_kib > 0 && stats.guest_resident_kib == 0);
    }
}
