#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests stop at the first surprise")]

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::device::watchdog::WatchdogCounters;
use crate::devices::Kind;
use crate::metrics::{DeviceStats, PhaseTime};
use crate::report::BootPhase;
use crate::resident::MemoryStats;
use crate::vcpu::ExitCounts;
use crate::vm::VcpuStats;

/// A sample: name, labels, value.
type Sample = (String, BTreeMap<String, String>, String);

/// A strict reader of the format. Returns the samples of each family.
fn parse(text: &str) -> BTreeMap<String, Vec<Sample>> {
    let body = text.strip_suffix("# EOF\n").unwrap_or_else(|| panic!("no end mark"));
    let mut families: BTreeMap<String, (String, Vec<Sample>)> = BTreeMap::new();
    let mut current = String::new();
    let mut seen = BTreeSet::new();
    for line in body.split_terminator('\n') {
        if let Some(comment) = line.strip_prefix("# ") {
            let (word, rest) = comment.split_once(' ').unwrap();
            let (name, value) = rest.split_once(' ').unwrap();
            match word {
                "TYPE" => {
                    assert!(families.insert(name.to_owned(), (value.to_owned(), vec![])).is_none(), "{name} twice");
                    current = name.to_owned();
                }
                "UNIT" => assert!(name == current && name.ends_with(&format!("_{value}")), "{line}"),
                "HELP" => assert_eq!(name, current),
                _ => panic!("{line}"),
            }
            continue;
        }
        let sample = parse_sample(line);
        let (kind, samples) = families.get_mut(&current).unwrap();
        let suffix = sample.0.strip_prefix(&current).unwrap_or_else(|| panic!("{line} is not of {current}"));
        let expected = match kind.as_str() {
            "counter" => "_total",
            "info" => "_info",
            "gauge" | "stateset" | "unknown" => "",
            _ => panic!("type {kind}"),
        };
        assert_eq!(suffix, expected, "{line}");
        assert!(sample.2.parse::<f64>().unwrap() >= 0.0, "{line}");
        assert!(seen.insert((sample.0.clone(), sample.1.clone())), "{line} twice");
        samples.push(sample);
    }
    families.into_iter().map(|(name, (_, samples))| (name, samples)).collect()
}

fn parse_sample(line: &str) -> Sample {
    let name_end = line.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap();
    let (name, rest) = line.split_at(name_end);
    let mut labels = BTreeMap::new();
    let Some(mut rest) = rest.strip_prefix('{') else {
        return (name.to_owned(), labels, rest.strip_prefix(' ').unwrap().to_owned());
    };
    loop {
        let (label, after) = rest.split_once("=\"").unwrap();
        let mut value = String::new();
        let mut chars = after.char_indices();
        let end = loop {
            match chars.next().unwrap() {
                (_, '\\') => value.push(match chars.next().unwrap().1 {
                    'n' => '\n',
                    c @ ('\\' | '"') => c,
                    c => panic!("escape {c}"),
                }),
                (at, '"') => break at,
                (_, c) => value.push(c),
            }
        };
        assert!(labels.insert(label.to_owned(), value).is_none(), "{line}");
        rest = &after[end + 1..];
        match rest.strip_prefix(',') {
            Some(more) => rest = more,
            None => return (name.to_owned(), labels, rest.strip_prefix("} ").unwrap().to_owned()),
        }
    }
}

fn snapshot() -> Snapshot {
    let device = |kind, id: &str, requests| DeviceStats {
        kind,
        id: id.to_owned(),
        pci_address: "0000:00:01.0".to_owned(),
        counters: [("requests".to_owned(), requests), ("errors".to_owned(), 0)].into(),
        engine: None,
    };
    let vcpu = |port| VcpuStats {
        monitor_exits: ExitCounts { port, ..ExitCounts::default() },
        kvm: [("exits".to_owned(), 10)].into(),
    };
    Snapshot {
        id: "a\"b\\c".to_owned(),
        state: VmState::Running,
        mem_size_mib: 64,
        vcpus: vec![vcpu(3), vcpu(4)],
        memory: MemoryStats { resident_kib: 30, guest_resident_kib: 20, overhead_kib: 10 },
        devices: vec![
            device(Kind::Drive, "root", 7),
            device(Kind::Drive, "data", 8),
            device(Kind::Entropy, "entropy", 9),
        ],
        watchdog: Some(WatchdogCounters { reloads: 12, expirations: 1 }),
        phases: vec![
            PhaseTime { phase: BootPhase::MonitorStarted, at_ns: 5_000_000_000 },
            PhaseTime { phase: BootPhase::GuestEntered, at_ns: 6_000_000_042 },
        ],
    }
}

fn value(families: &BTreeMap<String, Vec<Sample>>, family: &str, labels: &[(&str, &str)]) -> String {
    let fits = |sample: &&Sample| labels.iter().all(|(name, value)| sample.1.get(*name).is_some_and(|v| v == value));
    let found: Vec<_> = families[family].iter().filter(fits).collect();
    assert_eq!(found.len(), 1, "{family} {labels:?}");
    found[0].2.clone()
}

#[test]
fn the_text_is_well_formed_and_says_what_the_snapshot_says() {
    let families = parse(&render(&snapshot()));
    assert_eq!(value(&families, "hull_vm", &[("id", "a\"b\\c")]), "1");
    assert_eq!(value(&families, "hull_vm_state", &[("hull_vm_state", "Running")]), "1");
    assert_eq!(value(&families, "hull_vm_state", &[("hull_vm_state", "Not started")]), "0");
    assert_eq!(value(&families, "hull_vcpus", &[]), "2");
    assert_eq!(value(&families, "hull_guest_memory_bytes", &[]), (64 << 20).to_string());
    assert_eq!(value(&families, "hull_resident_memory_bytes", &[("part", "monitor")]), "10240");
    assert_eq!(value(&families, "hull_vcpu_monitor_exits", &[("vcpu", "1"), ("reason", "port")]), "4");
    assert_eq!(value(&families, "hull_vcpu_kvm", &[("vcpu", "0"), ("stat", "exits")]), "10");
    assert_eq!(value(&families, "hull_device_requests", &[("kind", "drive"), ("id", "data")]), "8");
    assert_eq!(value(&families, "hull_watchdog_reloads", &[]), "12");
    assert_eq!(value(&families, "hull_watchdog_expirations", &[]), "1");
    assert_eq!(value(&families, "hull_boot_phase_seconds", &[("phase", "guest_entered")]), "1.000000042");
}

#[test]
fn a_vm_that_is_not_started_has_metrics_too() {
    let empty = Snapshot {
        vcpus: vec![],
        devices: vec![],
        watchdog: None,
        phases: vec![],
        state: VmState::Created,
        ..snapshot()
    };
    let families = parse(&render(&empty));
    assert_eq!(value(&families, "hull_vm_state", &[("hull_vm_state", "Not started")]), "1");
    assert_eq!(value(&families, "hull_vcpus", &[]), "0");
}
