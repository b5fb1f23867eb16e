//! VM exits by reason, from the kernel's tracepoints.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result};
use serde::Serialize;

const EVENTS: &str = "/sys/kernel/tracing/events/kvm";
/// Tracepoint and the key by which it is counted.
const KEYS: [(&str, &str); 5] = [
    ("kvm_exit", "exit_reason"),
    ("kvm_cpuid", "function"),
    ("kvm_msr", "ecx"),
    ("kvm_pio", "port"),
    ("kvm_mmio", "gpa"),
];
const MSR_TSC_DEADLINE: u64 = 0x6e0;

/// Ranges of SVM exit codes (AMD64 Architecture Programmer's Manual volume 2, appendix C).
const SVM_NAMES: [(std::ops::RangeInclusive<u64>, &str); 13] = [
    (0x00..=0x1f, "control register"),
    (0x20..=0x3f, "debug register"),
    (0x40..=0x5f, "exception"),
    (0x60..=0x60, "external interrupt"),
    (0x64..=0x64, "interrupt window"),
    (0x65..=0x65, "control register"),
    (0x72..=0x72, "cpuid"),
    (0x78..=0x78, "hlt"),
    (0x7b..=0x7b, "port"),
    (0x7c..=0x7c, "msr"),
    (0x81..=0x81, "vmmcall"),
    (0x89..=0x8d, "other instruction"),
    (0x400..=0x400, "nested page fault"),
];

/// Exits between [`Tracer::start`] and [`Tracer::finish`].
#[derive(Serialize)]
pub struct Counts {
    /// All exits.
    pub total: u64,
    /// Without external interrupts, interrupt windows and TSC-deadline writes, which grow with time under emulation.
    pub counted: u64,
    /// By reason.
    pub by_reason: BTreeMap<String, u64>,
    /// CPUID exits by leaf, MSR exits by register, port exits by port, MMIO exits by 4 KiB page; in hexadecimal.
    pub detail: BTreeMap<&'static str, BTreeMap<String, u64>>,
}

/// Counts while it lives.
pub struct Tracer(());

impl Tracer {
    /// Sets all counters to zero and starts them.
    pub fn start() -> Result<Self> {
        let tracer = Self(());
        for (event, key) in KEYS {
            let path = format!("{EVENTS}/{event}/trigger");
            // The trigger may be absent.
            let _ = fs::write(&path, format!("!hist:keys={key}:size=4096"));
            fs::write(&path, format!("hist:keys={key}:size=4096"))
                .with_context(|| format!("Can't count {event}: root and tracefs are needed"))?;
        }
        Ok(tracer)
    }

    /// Reads the counters.
    pub fn finish(self) -> Result<Counts> {
        let exits = histogram("kvm_exit")?;
        let msrs = histogram("kvm_msr")?;
        let total = exits.values().sum();
        let mut by_reason = BTreeMap::new();
        for (code, count) in &exits {
            *by_reason.entry(reason(*code)).or_insert(0) += count;
        }
        let ignored: u64 =
            ["external interrupt", "interrupt window"].iter().filter_map(|name| by_reason.get(*name)).sum::<u64>()
                + msrs.get(&MSR_TSC_DEADLINE).unwrap_or(&0);
        let mut detail = BTreeMap::new();
        for (event, _) in KEYS.iter().skip(1) {
            detail.insert(*event, pages(event, &histogram(event)?));
        }
        Ok(Counts { total, counted: total.saturating_sub(ignored), by_reason, detail })
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        for (event, key) in KEYS {
            let _ = fs::write(format!("{EVENTS}/{event}/trigger"), format!("!hist:keys={key}:size=4096"));
        }
    }
}

fn reason(code: u64) -> String {
    let known = SVM_NAMES.iter().find(|(codes, _)| codes.contains(&code));
    known.map_or_else(|| format!("{code:#x}"), |(_, name)| (*name).to_owned())
}

fn pages(event: &str, counts: &BTreeMap<u64, u64>) -> BTreeMap<String, u64> {
    let mut merged = BTreeMap::new();
    for (key, count) in counts {
        let key = if event == "kvm_mmio" { key & !0xfff } else { *key };
        *merged.entry(format!("{key:#x}")).or_insert(0) += count;
    }
    merged
}

/// Lines such as `{ exit_reason:        114 } hitcount:        230`.
fn histogram(event: &str) -> Result<BTreeMap<u64, u64>> {
    let path = format!("{EVENTS}/{event}/hist");
    let text = fs::read_to_string(&path).with_context(|| format!("Can't read {path}"))?;
    Ok(text.lines().filter_map(entry).collect())
}

fn entry(line: &str) -> Option<(u64, u64)> {
    let (key, count) = line.strip_prefix('{')?.split_once('}')?;
    let key = key.split_once(':')?.1.trim().parse().ok()?;
    let count = count.split_once("hitcount:")?.1.trim().parse().ok()?;
    Some((key, count))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_line_is_a_key_and_a_count() {
        let line = "{ exit_reason:        114 } hitcount:        230";
        assert_eq!(entry(line), Some((114, 230)));
        assert_eq!(entry("Totals:"), None);
    }
}
