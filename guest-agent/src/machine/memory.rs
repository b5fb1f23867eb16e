//! How much memory the kernel has.

use std::fs;

use crate::failure::{Context, Failure};

/// All usable memory and what of it could be used without swapping, in bytes.
pub fn total_and_available() -> Result<(u64, u64), Failure> {
    let text = fs::read_to_string("/proc/meminfo").context("read /proc/meminfo")?;
    Ok((bytes(&text, "MemTotal:"), bytes(&text, "MemAvailable:")))
}

/// A line such as `MemTotal:  123 kB`.
fn bytes(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let kib = line.and_then(|line| line.split_ascii_whitespace().next()).and_then(|word| word.parse().ok());
    kib.unwrap_or(0_u64).saturating_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_the_kernel_writes_them() {
        let text = "MemTotal:        2048 kB\nMemFree: 1 kB\nMemAvailable:     512 kB\n";
        assert_eq!((bytes(text, "MemTotal:"), bytes(text, "MemAvailable:")), (2 << 20, 512 << 10));
        assert_eq!(bytes("MemTotal: much", "MemTotal:"), 0);
    }
}
