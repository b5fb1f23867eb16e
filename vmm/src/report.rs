//! What the monitor tells the front door about its VM, one JSON object a line on the event stream.

use serde::{Deserialize, Serialize};

/// A line of the event stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum VmEvent {
    /// A boot phase was reached.
    Phase {
        /// Which one.
        phase: BootPhase,
        /// CLOCK_MONOTONIC in nanoseconds.
        at_ns: u64,
    },
    /// The VM has ended. The last line.
    Exited(ExitReport),
}

/// Points on the way from process start to a running guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BootPhase {
    /// `main` of the monitor.
    MonitorStarted,
    /// Guest memory is mapped.
    MemoryReady,
    /// Kernel, initramfs and tables are in guest memory.
    KernelLoaded,
    /// Devices are on the bus.
    DevicesReady,
    /// The first vCPU enters the guest.
    GuestEntered,
}

/// How and why a VM ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitReport {
    /// Kind of end.
    pub cause: ExitCause,
    /// One line for people.
    pub message: String,
    /// Last lines of the guest's console, when they help; at most 4 KiB.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub console_tail: String,
}

/// Kind of end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitCause {
    /// The guest powered off.
    PowerOff,
    /// The guest asked for a reset.
    Reset,
    /// The guest's kernel panicked.
    Panic,
    /// A processor shut down without a panic message (triple fault).
    TripleFault,
    /// The guest's watchdog expired: it hangs.
    Watchdog,
    /// Stopped through the control socket, by a signal, or because the front door went away.
    Stopped,
    /// The VM could not be built.
    StartFailed,
    /// KVM or the monitor failed while the VM ran.
    MonitorFailed,
}
