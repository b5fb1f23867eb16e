//! Can this host run VMs? The question of `hull doctor` and of the test harness.
//!
//! A KVM without hardware behind it may offer every capability and still not run a kernel, so the probe runs a few instructions in
//! kernel mode, and measures how fast they are.

use std::fs;
use std::time::Duration;

use kvm_bindings::CpuId;
use serde::{Deserialize, Serialize};

use crate::kvm::{OpenError, System};
use crate::tiny_guest::{RunEnd, TinyGuest};

/// One question and its answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeCheck {
    /// Short name.
    pub name: String,
    /// Whether the answer is good.
    pub ok: bool,
    /// What was found.
    pub detail: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// All answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeReport {
    /// In the order in which they were asked; later ones are missing when an earlier one makes them pointless.
    pub checks: Vec<ProbeCheck>,
    /// Whether VMs can run here.
    pub can_run_guests: bool,
}

const INTERPRETED_HINT: &str = "KVM on this host interprets kernel code, so VMs can't boot; use a host with VT-x or AMD-V, or a cloud \
machine with nested virtualization";
/// Iterations of the timed loop, two instructions each.
const LOOPS: u32 = 50_000;
/// Hardware does more than a billion instructions per second, and hundreds of millions even under emulation; an interpreter two.
const MIN_INSTRUCTIONS_PER_SECOND: u64 = 20_000_000;
/// A busy host may interrupt a measurement: the best of some counts.
const MEASUREMENTS: usize = 3;
const TIME_LIMIT: Duration = Duration::from_millis(400);

/// Asks all questions; takes less than two seconds.
pub fn probe() -> ProbeReport {
    let mut checks = vec![virtualization()];
    let system = open(&mut checks);
    let can_run_guests = system.is_some_and(|system| run_guests(&system, &mut checks));
    ProbeReport { checks, can_run_guests }
}

impl ProbeReport {
    /// Lines for people.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        for check in &self.checks {
            let mark = if check.ok { "ok  " } else { "FAIL" };
            text.push_str(&format!("{mark}  {}: {}\n", check.name, check.detail));
            if let Some(hint) = &check.hint {
                text.push_str(&format!("      {hint}\n"));
            }
        }
        text.push_str(if self.can_run_guests { "VMs can run on this host\n" } else { "VMs can't run on this host\n" });
        text
    }
}

fn good(name: &str, detail: impl Into<String>) -> ProbeCheck {
    ProbeCheck { name: name.to_owned(), ok: true, detail: detail.into(), hint: None }
}

fn bad(name: &str, detail: impl Into<String>, hint: &str) -> ProbeCheck {
    ProbeCheck { name: name.to_owned(), ok: false, detail: detail.into(), hint: Some(hint.to_owned()) }
}

/// What the processor and its modules say. A hint only: the guests decide.
fn virtualization() -> ProbeCheck {
    const NAME: &str = "virtualization";
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    let has = |flag: &str| flags.split_whitespace().any(|word| word == flag);
    let place = if has("hypervisor") { "inside a virtual machine" } else { "on the bare machine" };
    let nested = ["kvm_intel", "kvm_amd"].iter().find_map(|module| {
        let value = fs::read_to_string(format!("/sys/module/{module}/parameters/nested")).ok()?;
        Some(format!(", {module} nested={}", value.trim()))
    });
    let nested = nested.unwrap_or_default();
    match (has("vmx"), has("svm")) {
        (true, _) => good(NAME, format!("VT-x {place}{nested}")),
        (_, true) => good(NAME, format!("AMD-V {place}{nested}")),
        _ if has("hypervisor") => bad(
            NAME,
            format!("neither VT-x nor AMD-V, {place}"),
            "enable nested virtualization for this machine on its host",
        ),
        _ => bad(NAME, format!("neither VT-x nor AMD-V, {place}"), "enable virtualization in the firmware"),
    }
}

fn open(checks: &mut Vec<ProbeCheck>) -> Option<System> {
    const DEVICE: &str = "kvm device";
    let system = match System::open() {
        Ok(system) => system,
        Err(error) => {
            let hint = match &error {
                OpenError::Missing => "load kvm_intel or kvm_amd; in a container, pass --device /dev/kvm",
                OpenError::Permission => "add yourself to group kvm and log in again: sudo usermod -aG kvm $USER",
                OpenError::ApiVersion(_) => "this kernel's KVM is older than 2007",
                _ => "see dmesg",
            };
            let source = std::error::Error::source(&error).map(|e| format!(": {e}")).unwrap_or_default();
            // The error's own advice is for one line; here is the hint.
            let text = error.to_string();
            let what = text.split_once("; ").map_or(text.as_str(), |(what, _)| what);
            checks.push(bad(DEVICE, format!("{what}{source}"), hint));
            return None;
        }
    };
    checks.push(good(DEVICE, "/dev/kvm opens, API version 12"));
    let missing = system.missing_capabilities();
    if !missing.is_empty() {
        checks.push(bad("capabilities", format!("missing: {}", missing.join(", ")), "use a newer host kernel"));
        return None;
    }
    checks.push(good("capabilities", "all present"));
    Some(system)
}

fn run_guests(system: &System, checks: &mut Vec<ProbeCheck>) -> bool {
    let cpuid = match system.supported_cpuid() {
        Ok(cpuid) => cpuid,
        Err(error) => {
            checks.push(bad("cpuid", format!("{error}: {}", error.source), "see dmesg"));
            return false;
        }
    };
    let guests = [instructions(system, &cpuid), speed(system, &cpuid)];
    let all_ok = guests.iter().all(|check| check.ok);
    checks.extend(guests);
    all_ok
}

/// Instructions that every kernel uses and that an interpreter tends to lack.
fn instructions(system: &System, cpuid: &CpuId) -> ProbeCheck {
    const NAME: &str = "kernel instructions";
    let mut failures = Vec::new();
    for (name, code) in instruction_guests(cpuid) {
        match run(system, &code, cpuid) {
            Ok(RunEnd::Port { value: DONE, .. }) => {}
            Ok(end) => failures.push(format!("{name}: {end:?}")),
            Err(error) => failures.push(format!("{name}: {error}")),
        }
    }
    if failures.is_empty() {
        return good(NAME, "run in a guest's kernel mode");
    }
    bad(NAME, failures.join("; "), INTERPRETED_HINT)
}

const DONE: u8 = 0x2a;
/// `mov al, DONE; out 0x10, al`
const FINISH: [u8; 4] = [0xb0, DONE, 0xe6, 0x10];

fn instruction_guests(cpuid: &CpuId) -> Vec<(&'static str, Vec<u8>)> {
    const POPCNT: u32 = 1 << 23;
    const CMPXCHG16B: u32 = 1 << 13;
    const SMAP: u32 = 1 << 20;
    let leaf = |function: u32| cpuid.as_slice().iter().find(|e| e.function == function && e.index == 0);
    let ecx = leaf(1).map_or(0, |e| e.ecx);
    let ebx = leaf(7).map_or(0, |e| e.ebx);
    let mut guests: Vec<(&str, &[u8])> = Vec::new();
    if ecx & POPCNT != 0 {
        guests.push(("popcnt", &[0xf3, 0x0f, 0xb8, 0xc1]));
    }
    if ecx & CMPXCHG16B != 0 {
        // mov edi, DATA_START; lock cmpxchg16b [rdi]
        guests.push(("cmpxchg16b", &[0xbf, 0x00, 0x10, 0x10, 0x00, 0xf0, 0x48, 0x0f, 0xc7, 0x0f]));
    }
    if ebx & SMAP != 0 {
        guests.push(("stac", &[0x0f, 0x01, 0xcb]));
    }
    guests.into_iter().map(|(name, code)| (name, [code, &FINISH].concat())).collect()
}

/// Times a loop.
fn speed(system: &System, cpuid: &CpuId) -> ProbeCheck {
    const NAME: &str = "kernel speed";
    // mov ecx, LOOPS; again: dec ecx; jnz again
    let [a, b, c, d] = LOOPS.to_le_bytes();
    let code = [&[0xb9, a, b, c, d, 0xff, 0xc9, 0x75, 0xfc], &FINISH[..]].concat();
    let mut best = 0;
    for _ in 0..MEASUREMENTS {
        match run(system, &code, cpuid) {
            Ok(RunEnd::Port { value: DONE, time, .. }) => {
                let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX).max(1);
                best = best.max(u64::from(LOOPS) * 2 * 1_000_000_000 / nanoseconds);
            }
            Ok(RunEnd::Timeout) => {}
            Ok(end) => return bad(NAME, format!("{end:?}"), "see dmesg"),
            Err(error) => return bad(NAME, error.to_string(), "see dmesg"),
        }
        if best >= MIN_INSTRUCTIONS_PER_SECOND {
            return good(NAME, format!("hardware: {} million instructions per second", best / 1_000_000));
        }
        // An interpreter doesn't get faster by repetition; a busy host may.
        if best < MIN_INSTRUCTIONS_PER_SECOND / 4 {
            break;
        }
    }
    let found = match best {
        0 => format!("{} instructions not done within {} ms", LOOPS * 2, TIME_LIMIT.as_millis()),
        _ => format!("{}.{} million instructions per second", best / 1_000_000, best / 100_000 % 10),
    };
    bad(NAME, format!("interpreted: {found}"), INTERPRETED_HINT)
}

fn run(system: &System, code: &[u8], cpuid: &CpuId) -> Result<RunEnd, crate::tiny_guest::TinyGuestError> {
    TinyGuest::new(system, code, cpuid)?.run(TIME_LIMIT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_ends_soon_and_its_verdict_follows_its_checks() {
        let start = std::time::Instant::now();
        let report = probe();
        assert!(start.elapsed() < Duration::from_secs(4), "{report:?}");
        let guests_ok = report.checks.iter().filter(|check| check.name != "virtualization").all(|check| check.ok);
        assert_eq!(report.can_run_guests, guests_ok, "{report:?}");
        assert!(report.checks.iter().all(|check| check.ok || check.hint.is_some()), "{report:?}");
    }

    #[test]
    fn the_report_survives_json() {
        let report = ProbeReport { checks: vec![good("a", "b"), bad("c", "d", "e")], can_run_guests: false };
        let text = serde_json::to_string(&report).unwrap_or_default();
        assert_eq!(serde_json::from_str::<ProbeReport>(&text).ok(), Some(report.clone()));
        assert!(report.to_text().contains("FAIL  c: d\n      e\n"));
    }
}
