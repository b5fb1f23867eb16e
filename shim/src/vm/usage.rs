//! What a VM costs the host.

use std::fs;
use std::io;

use nix::unistd::{SysconfVar, sysconf};

/// What a process uses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Processor time in user mode, and so the guest's, in microseconds.
    pub user_us: u64,
    /// Processor time in the host's kernel, in microseconds.
    pub system_us: u64,
    /// Memory that is in use.
    pub resident_bytes: u64,
    /// Threads.
    pub threads: u64,
}

/// What the process `pid` uses (proc_pid_stat(5)).
pub fn usage(pid: u32) -> io::Result<Usage> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let setting = |name| sysconf(name).ok().flatten().and_then(|value| u64::try_from(value).ok());
    let ticks = setting(SysconfVar::CLK_TCK).filter(|ticks| *ticks > 0).unwrap_or(100);
    let page = setting(SysconfVar::PAGE_SIZE).unwrap_or(4096);
    parse(&text, ticks, page).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
}

fn parse(stat: &str, ticks_per_s: u64, page_bytes: u64) -> Option<Usage> {
    // The name in parentheses may contain anything; the fields behind it are numbered from 3.
    let fields: Vec<_> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    let us = |ticks: u64| ticks.saturating_mul(1_000_000) / ticks_per_s;
    Some(Usage {
        user_us: us(field(14)?),
        system_us: us(field(15)?),
        threads: field(20)?,
        resident_bytes: field(24)?.saturating_mul(page_bytes),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_counted_behind_a_name_that_looks_like_fields() {
        let stat = "7 (a) 1 (b) S 1 7 7 0 -1 4194560 9 0 0 0 250 50 0 0 20 0 3 0 100 4096 12 18446744073709551615";
        let usage = parse(stat, 100, 4096).unwrap();
        assert_eq!(usage, Usage { user_us: 2_500_000, system_us: 500_000, threads: 3, resident_bytes: 12 * 4096 });
        assert_eq!(parse("7 (x) S 1", 100, 4096), None);
    }

    #[test]
    fn this_process_uses_memory() {
        assert!(usage(std::process::id()).unwrap().resident_bytes > 0);
    }
}
