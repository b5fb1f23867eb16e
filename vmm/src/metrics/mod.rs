//! Numbers of a VM at one moment: one snapshot for both forms in which the control API gives them.

pub mod openmetrics;

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use crate::device::watchdog::WatchdogCounters;
use crate::devices::{Devices, Kind, Plugged};
use crate::instance::Instance;
use crate::report::BootPhase;
use crate::resident::MemoryStats;
use crate::virtio::{blk, net};
use crate::vm::{VcpuStats, VmState};
use crate::watchdog::VmWatchdog;

/// All numbers. Serialized it is the answer of `GET /stats`.
#[derive(Debug, Clone, Serialize)]
pub struct Snapshot {
    /// Name of the VM.
    pub id: String,
    /// Where the VM is in its life.
    pub state: VmState,
    /// Guest memory in MiB, as configured.
    pub mem_size_mib: u32,
    /// Each processor; none before the start.
    pub vcpus: Vec<VcpuStats>,
    /// Resident memory.
    pub memory: MemoryStats,
    /// Each device, in the order of plugging.
    pub devices: Vec<DeviceStats>,
    /// What the guest's watchdog has counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub watchdog: Option<WatchdogCounters>,
    /// Boot phases that were reached.
    pub phases: Vec<PhaseTime>,
}

/// Numbers of one device.
#[derive(Debug, Clone, Serialize)]
pub struct DeviceStats {
    /// What it is.
    pub kind: Kind,
    /// Its name among those of its kind.
    pub id: String,
    /// Where the guest finds it.
    pub pci_address: String,
    /// Name of a counter and its value; see [`Counters`](crate::virtio::counters::Counters).
    pub counters: BTreeMap<String, u64>,
    /// How a drive does its requests, or who moves the frames of a network interface.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub engine: Option<Engine>,
}

/// Who does the work of a device.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(untagged)]
pub enum Engine {
    /// Of a drive.
    Drive(blk::EngineKind),
    /// Of a network interface.
    Network(net::EngineKind),
}

impl Engine {
    fn of(device: &Plugged, devices: &Devices) -> Option<Self> {
        match device.kind {
            Kind::Drive => Some(Self::Drive(devices.drive(&device.id).ok()?.engine())),
            Kind::Network => Some(Self::Network(devices.network_engine(&device.id).ok()?)),
            _ => None,
        }
    }
}

/// When a boot phase was reached.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct PhaseTime {
    /// Which one.
    pub phase: BootPhase,
    /// CLOCK_MONOTONIC in nanoseconds.
    pub at_ns: u64,
}

impl Snapshot {
    /// Reads all numbers.
    pub fn take(instance: &Instance) -> Self {
        let vm = instance.vm();
        let devices = vm.into_iter().flat_map(|vm| vm.devices().iter());
        Self {
            id: instance.id().to_owned(),
            state: instance.state(),
            mem_size_mib: vm.map_or(instance.config().machine_config.mem_size_mib, |vm| vm.mem_size_mib()),
            vcpus: vm.map(|vm| vm.vcpu_stats()).unwrap_or_default(),
            memory: instance.memory_stats(),
            devices: devices
                .map(|device| DeviceStats {
                    kind: device.kind,
                    id: device.id.clone(),
                    pci_address: device.slot.to_string(),
                    counters: numbers(&*device.counters),
                    engine: vm.and_then(|vm| Engine::of(device, vm.devices())),
                })
                .collect(),
            watchdog: vm.and_then(|vm| vm.devices().watchdog()).map(VmWatchdog::counters),
            phases: instance.events().phases().into_iter().map(|(phase, at_ns)| PhaseTime { phase, at_ns }).collect(),
        }
    }
}

/// Names and values of a type whose JSON is an object of numbers.
fn numbers(value: &impl Serialize) -> BTreeMap<String, u64> {
    match serde_json::to_value(value) {
        Ok(Value::Object(members)) => {
            members.into_iter().filter_map(|(name, value)| Some((name, value.as_u64()?))).collect()
        }
        _ => BTreeMap::new(),
    }
}
