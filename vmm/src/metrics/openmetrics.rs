//! A snapshot as OpenMetrics text 1.0 (<https://prometheus.io/docs/specs/om/open_metrics_spec/>), as Prometheus collects it.

use std::fmt::{Display, Write};

use serde::Serialize;
use serde_json::Value;

use super::{Snapshot, numbers};
use crate::vm::VmState;

/// Content type of the text.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// States of a VM that can be asked for; a stopped one can't.
const STATES: &[VmState] = &[VmState::Created, VmState::Running, VmState::Paused];

/// The whole text, with its end mark.
pub fn render(snapshot: &Snapshot) -> String {
    let mut text = Text(String::new());
    about(&mut text, snapshot);
    memory(&mut text, snapshot);
    vcpus(&mut text, snapshot);
    devices(&mut text, snapshot);
    watchdog(&mut text, snapshot);
    phases(&mut text, snapshot);
    text.0.push_str("# EOF\n");
    text.0
}

fn about(text: &mut Text, snapshot: &Snapshot) {
    text.family("hull_build", "info", "", "Version of the monitor.");
    text.sample("hull_build_info", &[("version", env!("CARGO_PKG_VERSION")), ("arch", std::env::consts::ARCH)], 1);
    text.family("hull_vm", "info", "", "Name of the VM.");
    text.sample("hull_vm_info", &[("id", &snapshot.id)], 1);
    text.family("hull_vm_state", "stateset", "", "Where the VM is in its life.");
    for state in STATES {
        text.sample("hull_vm_state", &[("hull_vm_state", &word(state))], u8::from(*state == snapshot.state));
    }
    text.family("hull_vcpus", "gauge", "", "Virtual processors.");
    text.sample("hull_vcpus", &[], snapshot.vcpus.len());
}

fn memory(text: &mut Text, snapshot: &Snapshot) {
    text.family("hull_guest_memory_bytes", "gauge", "bytes", "Memory that the guest was given.");
    text.sample("hull_guest_memory_bytes", &[], u64::from(snapshot.mem_size_mib) << 20);
    text.family(
        "hull_resident_memory_bytes",
        "gauge",
        "bytes",
        "Memory of the host that is in use, by what it is for.",
    );
    let parts = [("guest", snapshot.memory.guest_resident_kib), ("monitor", snapshot.memory.overhead_kib)];
    for (part, kib) in parts {
        text.sample("hull_resident_memory_bytes", &[("part", part)], kib << 10);
    }
}

fn vcpus(text: &mut Text, snapshot: &Snapshot) {
    let numbered = || snapshot.vcpus.iter().enumerate().map(|(index, vcpu)| (index.to_string(), vcpu));
    text.family("hull_vcpu_monitor_exits", "counter", "", "Exits from the guest to the monitor, by reason.");
    for (vcpu, stats) in numbered() {
        for (reason, count) in numbers(&stats.monitor_exits) {
            text.sample("hull_vcpu_monitor_exits_total", &[("vcpu", &vcpu), ("reason", &reason)], count);
        }
    }
    // KVM gives sums and momentary values under names of its own, without a promise to keep them.
    text.family("hull_vcpu_kvm", "unknown", "", "Statistics of the host's KVM, by the names that it gives them.");
    for (vcpu, stats) in numbered() {
        for (name, value) in &stats.kvm {
            text.sample("hull_vcpu_kvm", &[("vcpu", &vcpu), ("stat", name)], value);
        }
    }
}

fn devices(text: &mut Text, snapshot: &Snapshot) {
    // One family after the other, each with all devices: the format demands it.
    let mut names: Vec<_> = snapshot.devices.iter().flat_map(|device| device.counters.keys()).collect();
    names.sort();
    names.dedup();
    for name in names {
        let family = format!("hull_device_{name}");
        text.family(&family, "counter", "", &format!("Sum of {} of a device.", name.replace('_', " ")));
        for device in &snapshot.devices {
            if let Some(value) = device.counters.get(name) {
                let labels = [("kind", &*device.kind.to_string()), ("id", &*device.id)];
                text.sample(&format!("{family}_total"), &labels, value);
            }
        }
    }
}

fn watchdog(text: &mut Text, snapshot: &Snapshot) {
    let Some(counters) = snapshot.watchdog else { return };
    text.family("hull_watchdog_reloads", "counter", "", "Times that the guest has reset its watchdog.");
    text.sample("hull_watchdog_reloads_total", &[], counters.reloads);
    text.family("hull_watchdog_expirations", "counter", "", "Times that the guest's watchdog has expired.");
    text.sample("hull_watchdog_expirations_total", &[], counters.expirations);
}

fn phases(text: &mut Text, snapshot: &Snapshot) {
    let Some(first) = snapshot.phases.first() else { return };
    let help = "Time from the start of the monitor to each phase of the boot.";
    text.family("hull_boot_phase_seconds", "gauge", "seconds", help);
    for phase in &snapshot.phases {
        let ns = phase.at_ns.saturating_sub(first.at_ns);
        let seconds = format!("{}.{:09}", ns / 1_000_000_000, ns % 1_000_000_000);
        text.sample("hull_boot_phase_seconds", &[("phase", &word(&phase.phase))], seconds);
    }
}

/// A value whose JSON is a string.
fn word(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(Value::String(word)) => word,
        _ => String::new(),
    }
}

struct Text(String);

// Writing into a string doesn't fail.
impl Text {
    fn family(&mut self, name: &str, kind: &str, unit: &str, help: &str) {
        let _ = writeln!(self.0, "# TYPE {name} {kind}");
        if !unit.is_empty() {
            let _ = writeln!(self.0, "# UNIT {name} {unit}");
        }
        let _ = writeln!(self.0, "# HELP {name} {help}");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        self.0.push_str(name);
        for (index, (label, content)) in labels.iter().enumerate() {
            let start = if index == 0 { '{' } else { ',' };
            let content = content.replace('\\', r"\\").replace('"', r#"\""#).replace('\n', r"\n");
            let _ = write!(self.0, "{start}{label}=\"{content}\"");
        }
        let end = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.0, "{end} {value}");
    }
}

#[cfg(test)]
#[path = "openmetrics_test.rs"]
mod tests;
