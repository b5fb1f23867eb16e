//! The `linux` object: namespaces, cgroup, devices, paths that are hidden.

use serde_json::{Map, Value, json};

use super::{ContainerOptions, seccomp};

const NAMESPACES: [&str; 6] = ["pid", "mount", "uts", "ipc", "network", "cgroup"];

const MASKED_PATHS: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

const READ_ONLY_PATHS: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Devices that a container may read and write: null, zero, full, random, urandom, tty, console, ptmx, pseudo-terminals.
/// Other nodes can be made (`m`) but not opened, the VM's own disk among them.
const DEVICES: [(u32, Option<u32>); 9] = [
    (1, Some(3)),
    (1, Some(5)),
    (1, Some(7)),
    (1, Some(8)),
    (1, Some(9)),
    (5, Some(0)),
    (5, Some(1)),
    (5, Some(2)),
    (136, None),
];

pub(super) fn linux(options: &ContainerOptions) -> Value {
    let mut linux = json!({
        "namespaces": NAMESPACES.map(|kind| json!({ "type": kind })),
        "cgroupsPath": format!("/hull/{}", options.id),
        "resources": resources(options),
        "sysctl": sysctls(options),
        "maskedPaths": MASKED_PATHS,
        "readonlyPaths": READ_ONLY_PATHS,
    });
    if let (false, Some(linux)) = (options.seccomp_unconfined, linux.as_object_mut()) {
        linux.insert("seccomp".into(), seccomp::profile(&options.capabilities));
    }
    linux
}

/// The VM has no swap, so that a memory limit needs no second number for it.
fn resources(options: &ContainerOptions) -> Value {
    let mut resources = Map::new();
    resources.insert("devices".into(), device_rules().into());
    if let Some(limit) = options.memory {
        resources.insert("memory".into(), json!({ "limit": limit.bytes() }));
    }
    if let Some(cpus) = options.cpus {
        resources.insert("cpu".into(), json!({ "quota": cpus.quota_us(), "period": cpus.period_us() }));
    }
    if let Some(limit) = options.pids_limit {
        resources.insert("pids".into(), json!({ "limit": limit }));
    }
    resources.into()
}

fn device_rules() -> Vec<Value> {
    let mut rules = vec![
        json!({ "allow": false, "access": "rwm" }),
        json!({ "allow": true, "type": "c", "access": "m" }),
        json!({ "allow": true, "type": "b", "access": "m" }),
    ];
    rules.extend(DEVICES.map(|(major, minor)| match minor {
        Some(minor) => {
            json!({ "allow": true, "type": "c", "major": major, "minor": minor, "access": "rwm" })
        }
        None => json!({ "allow": true, "type": "c", "major": major, "access": "rwm" }),
    }));
    rules
}

/// Docker lets every container use low ports and unprivileged ping; the user's own values come last.
fn sysctls(options: &ContainerOptions) -> Value {
    let mut sysctls = Map::new();
    sysctls.insert("net.ipv4.ip_unprivileged_port_start".into(), "0".into());
    sysctls.insert("net.ipv4.ping_group_range".into(), "0 2147483647".into());
    for sysctl in &options.sysctls {
        sysctls.insert(sysctl.name.clone(), sysctl.value.clone().into());
    }
    sysctls.into()
}
