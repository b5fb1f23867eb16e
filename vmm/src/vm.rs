//! A virtual machine that is built: created, then running or paused, then stopped.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use thiserror::Error;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::console::ConsoleLog;
use crate::devices::Devices;
use crate::kvm::KvmVm;
use crate::report::{ExitCause, ExitReport};
use crate::resident::{MemoryStats, ResidentMemory};
use crate::vcpu::{ExitCounts, Turn, VcpuContext, VcpuThread};

/// A vCPU leaves the guest within microseconds, except when its thread is in a device or the host is overloaded.
const PAUSE_TIMEOUT: Duration = Duration::from_secs(2);
const STOP_TIMEOUT: Duration = Duration::from_secs(2);

/// Where a VM is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum VmState {
    /// Built, no instruction executed.
    #[serde(rename = "Not started")]
    Created,
    /// vCPUs run.
    Running,
    /// vCPUs and devices are held.
    Paused,
    /// Over.
    Stopped,
}

/// A change of state that isn't possible.
#[derive(Debug, Error)]
pub enum StateError {
    /// Not from here.
    #[error("Can't {action} a VM that is {state:?}")]
    Refused {
        /// What was asked for.
        action: &'static str,
        /// State of the VM.
        state: VmState,
    },
    /// A vCPU did not leave the guest in time.
    #[error("Not all vCPUs stopped within {} s", PAUSE_TIMEOUT.as_secs())]
    Timeout,
}

/// How a guest ended, from whoever noticed first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ending {
    /// Kind.
    pub cause: ExitCause,
    /// One line.
    pub message: String,
}

/// Carries the end of the VM from any thread to the main thread; the first report counts.
pub struct EndSignal {
    ending: Mutex<Option<Ending>>,
    event: EventFd,
}

impl EndSignal {
    /// A signal that isn't set.
    pub fn new() -> io::Result<Self> {
        Ok(Self { ending: Mutex::default(), event: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)? })
    }

    /// Reports the end.
    pub fn report(&self, cause: ExitCause, message: &str) {
        let mut ending = self.ending.lock().unwrap_or_else(PoisonError::into_inner);
        if ending.is_none() {
            *ending = Some(Ending { cause, message: message.to_owned() });
            // Can only fail when the counter is full, and then it is readable anyway.
            let _ = self.event.write(1);
        }
    }

    /// Whether the end was reported.
    pub fn is_set(&self) -> bool {
        self.ending().is_some()
    }

    /// The end, if there is one.
    pub fn ending(&self) -> Option<Ending> {
        self.ending.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Readable when the end was reported.
    pub fn event(&self) -> &EventFd {
        &self.event
    }

    /// For tests, which have no use for an error.
    #[cfg(any(test, feature = "testing"))]
    #[allow(clippy::expect_used, reason = "only for tests")]
    pub fn for_tests() -> Self {
        Self::new().expect("an eventfd")
    }
}

/// Numbers of one vCPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VcpuStats {
    /// Exits to the monitor by reason.
    pub monitor_exits: ExitCounts,
    /// KVM's counters; `exits` counts all exits, including those that KVM handles itself. Empty on kernels before 5.15.
    pub kvm: std::collections::BTreeMap<String, u64>,
}

/// A built VM. Dropping it without [`Vm::shut_down`] leaves its threads waiting.
pub struct Vm {
    state: VmState,
    context: Arc<VcpuContext>,
    vcpus: Vec<VcpuThread>,
    devices: Devices,
    mem_size_mib: u32,
    resident: ResidentMemory,
    /// Closed last.
    _kvm: KvmVm,
}

impl Vm {
    /// Puts the parts together; the vCPU threads wait at their gate.
    pub(crate) fn new(
        kvm: KvmVm,
        context: Arc<VcpuContext>,
        vcpus: Vec<VcpuThread>,
        devices: Devices,
        mem_size_mib: u32,
        resident: ResidentMemory,
    ) -> Self {
        Self { state: VmState::Created, context, vcpus, devices, mem_size_mib, resident, _kvm: kvm }
    }

    /// Where the VM is in its life.
    pub fn state(&self) -> VmState {
        self.state
    }

    /// Number of vCPUs.
    pub fn vcpu_count(&self) -> usize {
        self.vcpus.len()
    }

    /// Guest memory in MiB.
    pub fn mem_size_mib(&self) -> u32 {
        self.mem_size_mib
    }

    /// The devices.
    pub fn devices(&self) -> &Devices {
        &self.devices
    }

    /// The devices, to plug, change and unplug them.
    pub fn devices_mut(&mut self) -> &mut Devices {
        &mut self.devices
    }

    /// The guest's console output.
    pub fn console(&self) -> &ConsoleLog {
        &self.context.console
    }

    /// Signals the end of the guest.
    pub fn end_signal(&self) -> &Arc<EndSignal> {
        &self.context.end
    }

    /// Lets the guest execute its first instruction.
    pub fn start(&mut self) -> Result<(), StateError> {
        self.require("start", VmState::Created)?;
        self.context.gate.set(Turn::Run);
        self.state = VmState::Running;
        Ok(())
    }

    /// Holds vCPUs, then devices. A paused VM may be paused again.
    pub fn pause(&mut self) -> Result<(), StateError> {
        if self.state == VmState::Paused {
            return Ok(());
        }
        self.require("pause", VmState::Running)?;
        self.context.gate.set(Turn::Hold);
        self.kick_all();
        if !self.context.gate.wait_out(self.vcpus.len(), PAUSE_TIMEOUT, || self.kick_all()) {
            self.context.gate.set(Turn::Run);
            return Err(StateError::Timeout);
        }
        self.devices.root().pause_devices();
        self.state = VmState::Paused;
        Ok(())
    }

    /// Lets devices, then vCPUs go on. A running VM may be resumed.
    pub fn resume(&mut self) -> Result<(), StateError> {
        if self.state == VmState::Running {
            return Ok(());
        }
        self.require("resume", VmState::Paused)?;
        self.devices.root().resume_devices();
        self.context.gate.set(Turn::Run);
        self.state = VmState::Running;
        Ok(())
    }

    /// Ends all vCPU threads and devices. True when every thread ended in time; otherwise end the process.
    pub fn shut_down(mut self) -> bool {
        self.context.gate.set(Turn::Stop);
        let deadline = Instant::now() + STOP_TIMEOUT;
        self.kick_all();
        let vcpus = std::mem::take(&mut self.vcpus);
        let stuck = vcpus.into_iter().filter_map(|vcpu| (!vcpu.join(deadline)).then_some(())).count();
        self.devices.root().shutdown();
        self.state = VmState::Stopped;
        stuck == 0
    }

    /// Numbers of each vCPU.
    pub fn vcpu_stats(&self) -> Vec<VcpuStats> {
        self.vcpus
            .iter()
            .map(|vcpu| VcpuStats {
                monitor_exits: vcpu.exits(),
                kvm: vcpu.kvm_statistics().into_iter().filter(|(_, value)| *value > 0).collect(),
            })
            .collect()
    }

    /// Resident memory of the process.
    pub fn memory_stats(&self) -> MemoryStats {
        self.resident.read().unwrap_or_default()
    }

    /// The report for the front door: the console's tail belongs to it when the guest did not end on its own accord.
    pub fn report(&self, ending: Ending) -> ExitReport {
        let console_tail = match ending.cause {
            ExitCause::PowerOff | ExitCause::Stopped => String::new(),
            _ => self.context.console.tail(),
        };
        ExitReport { cause: ending.cause, message: ending.message, console_tail }
    }

    /// To be called when the alarm has rung: looks whether the guest has been silent for too long.
    pub fn check_watchdog(&self) {
        if let Some(watchdog) = self.devices.watchdog() {
            watchdog.check(Instant::now(), &self.context.end);
        }
    }

    fn kick_all(&self) {
        self.vcpus.iter().for_each(VcpuThread::kick);
    }

    fn require(&self, action: &'static str, state: VmState) -> Result<(), StateError> {
        if self.state == state { Ok(()) } else { Err(StateError::Refused { action, state: self.state }) }
    }
}
