//! One thread per virtual processor.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::bus::Bus;
use crate::console::ConsoleLog;
use crate::ending;
use crate::kvm::{self, Exit, KvmVcpu, VcpuStatistics};
use crate::report::ExitCause;
use crate::vm::EndSignal;

/// Enough for the exit path; the default of 8 MiB would count as overhead where pages get touched.
const STACK_BYTES: usize = 256 << 10;
/// KVM gets no page from the host for an address where the guest has memory.
const NO_MEMORY_THERE: &str = "the guest used memory that the host can't provide: a file behind a pmem device was cut short, or the host is out of memory";
/// How often a thread that doesn't react is kicked again.
const KICK_INTERVAL: Duration = Duration::from_millis(20);

/// What all vCPUs of a VM share.
pub struct VcpuContext {
    /// Ports.
    pub ports: Bus,
    /// Memory outside of memory slots.
    pub mmio: Bus,
    /// Told when the guest ends.
    pub end: Arc<EndSignal>,
    /// For the meaning of a triple fault.
    pub console: Arc<ConsoleLog>,
    /// Holds the vCPUs back or lets them run.
    pub gate: Gate,
}

/// Exits to the monitor by reason. KVM handles most exits itself; they are not in here.
#[derive(Debug, Default)]
pub struct ExitCounters {
    port: AtomicU64,
    mmio: AtomicU64,
    interrupted: AtomicU64,
    other: AtomicU64,
}

/// [`ExitCounters`] at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitCounts {
    /// Port accesses.
    pub port: u64,
    /// Accesses to memory without a memory slot, or writes to a read-only one.
    pub mmio: u64,
    /// Signals.
    pub interrupted: u64,
    /// Anything else.
    pub other: u64,
}

impl ExitCounters {
    fn read(&self) -> ExitCounts {
        ExitCounts {
            port: self.port.load(Ordering::Relaxed),
            mmio: self.mmio.load(Ordering::Relaxed),
            interrupted: self.interrupted.load(Ordering::Relaxed),
            other: self.other.load(Ordering::Relaxed),
        }
    }
}

/// A vCPU and its thread.
pub struct VcpuThread {
    thread: JoinHandle<()>,
    counters: Arc<ExitCounters>,
    statistics: Option<VcpuStatistics>,
}

impl VcpuThread {
    /// Starts the thread; the vCPU waits at the gate.
    pub fn spawn(id: u8, vcpu: KvmVcpu, context: Arc<VcpuContext>) -> io::Result<Self> {
        let counters = Arc::new(ExitCounters::default());
        let statistics = vcpu.statistics();
        let for_thread = counters.clone();
        let thread = thread::Builder::new()
            .name(format!("vcpu{id}"))
            .stack_size(STACK_BYTES)
            .spawn(move || run(id, vcpu, &context, &for_thread))?;
        Ok(Self { thread, counters, statistics })
    }

    /// Makes the vCPU look at the gate.
    pub fn kick(&self) {
        if !self.thread.is_finished() {
            kvm::kick(&self.thread);
        }
    }

    /// Exits to the monitor so far.
    pub fn exits(&self) -> ExitCounts {
        self.counters.read()
    }

    /// KVM's own counters, where the host's kernel has them.
    pub fn kvm_statistics(&self) -> kvm::Statistics {
        self.statistics.as_ref().map(VcpuStatistics::read).unwrap_or_default()
    }

    /// Waits for the thread until `deadline`; the gate must be closed for good before.
    pub fn join(self, deadline: Instant) -> bool {
        while !self.thread.is_finished() {
            if Instant::now() >= deadline {
                return false;
            }
            self.kick();
            thread::sleep(Duration::from_millis(1));
        }
        self.thread.join().is_ok()
    }
}

/// What vCPUs may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// Wait.
    Hold,
    /// Run.
    Run,
    /// End the thread.
    Stop,
}

/// Holds vCPU threads back or lets them run. A thread comes here when it is kicked.
pub struct Gate {
    state: Mutex<GateState>,
    changed: Condvar,
}

struct GateState {
    turn: Turn,
    /// Threads that wait or have ended.
    out: usize,
}

impl Gate {
    /// A closed gate in front of `count` threads, all of which count as running until they arrive.
    pub fn new() -> Self {
        Self { state: Mutex::new(GateState { turn: Turn::Hold, out: 0 }), changed: Condvar::new() }
    }

    /// Changes what the threads may do. Kick them afterwards, unless the turn is [`Turn::Run`].
    pub fn set(&self, turn: Turn) {
        let mut state = self.lock();
        // A stopped VM stays stopped.
        if state.turn != Turn::Stop {
            state.turn = turn;
        }
        self.changed.notify_all();
    }

    /// Waits until `count` threads are out of the guest; calls `again` from time to time. False when `timeout` is over.
    pub fn wait_out(&self, count: usize, timeout: Duration, again: impl Fn()) -> bool {
        let deadline = Instant::now() + timeout;
        let mut state = self.lock();
        while state.out < count {
            if Instant::now() >= deadline {
                return false;
            }
            state = self.changed.wait_timeout(state, KICK_INTERVAL).unwrap_or_else(PoisonError::into_inner).0;
            again();
        }
        true
    }

    /// For a thread: waits for its turn. False means that the thread has to end.
    fn pass(&self, on_hold: impl FnOnce()) -> bool {
        let mut state = self.lock();
        if state.turn == Turn::Hold {
            on_hold();
        }
        state.out += 1;
        self.changed.notify_all();
        while state.turn == Turn::Hold {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.turn == Turn::Stop {
            return false;
        }
        state.out -= 1;
        true
    }

    fn lock(&self) -> MutexGuard<'_, GateState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Gate {
    fn default() -> Self {
        Self::new()
    }
}

/// How it goes on after an exit.
enum Next {
    Enter,
    LookAtGate,
    Ended,
    Shutdown,
    Failed(String),
}

fn run(id: u8, mut vcpu: KvmVcpu, context: &VcpuContext, counters: &ExitCounters) {
    let registration = vcpu.register_for_kicks();
    while context.gate.pass(|| vcpu.note_pause()) {
        match run_until_kicked(&mut vcpu, context, counters) {
            Next::Enter | Next::LookAtGate => {}
            // Comes out when the main thread stops the VM.
            Next::Ended => context.gate.set(Turn::Hold),
            Next::Shutdown => {
                let (cause, message) = ending::of_shutdown(&context.console);
                context.end.report(cause, &message);
                context.gate.set(Turn::Hold);
            }
            Next::Failed(what) => {
                let rip = vcpu.regs().map_or_else(|_| "unknown".to_owned(), |regs| format!("{:#x}", regs.rip));
                context.end.report(ExitCause::MonitorFailed, &format!("vCPU {id} failed at rip {rip}: {what}"));
                context.gate.set(Turn::Hold);
            }
        }
    }
    drop(registration);
}

fn run_until_kicked(vcpu: &mut KvmVcpu, context: &VcpuContext, counters: &ExitCounters) -> Next {
    loop {
        let next = match vcpu.run() {
            Ok(exit) => handle(exit, context, counters),
            Err(error) if error.source.raw_os_error() == Some(libc::EFAULT) => Next::Failed(NO_MEMORY_THERE.to_owned()),
            Err(error) => Next::Failed(format!("{error}: {}", error.source)),
        };
        if !matches!(next, Next::Enter) {
            return next;
        }
    }
}

fn handle(exit: Exit<'_>, context: &VcpuContext, counters: &ExitCounters) -> Next {
    let (counter, next) = match exit {
        Exit::PortRead { port, width, data } => {
            data.chunks_mut(width).for_each(|access| context.ports.read(u64::from(port), access));
            (&counters.port, Next::Enter)
        }
        Exit::PortWrite { port, width, data } => {
            data.chunks(width).for_each(|access| context.ports.write(u64::from(port), access));
            // The write may have been the guest's last.
            (&counters.port, if context.end.is_set() { Next::Ended } else { Next::Enter })
        }
        Exit::MmioRead { address, data } => {
            context.mmio.read(address, data);
            (&counters.mmio, Next::Enter)
        }
        Exit::MmioWrite { address, data } => {
            context.mmio.write(address, data);
            (&counters.mmio, Next::Enter)
        }
        Exit::Interrupted => (&counters.interrupted, Next::LookAtGate),
        Exit::Shutdown => (&counters.other, Next::Shutdown),
        Exit::Halt => (&counters.other, Next::Failed("halt without a local APIC".to_owned())),
        Exit::FailEntry { reason } => {
            (&counters.other, Next::Failed(format!("the processor refuses to enter the guest, reason {reason:#x}")))
        }
        Exit::InternalError { suberror } => (&counters.other, Next::Failed(explain_internal_error(suberror))),
        Exit::Unexpected(what) => (&counters.other, Next::Failed(format!("unexpected exit: {what}"))),
    };
    counter.fetch_add(1, Ordering::Relaxed);
    next
}

fn explain_internal_error(suberror: u32) -> String {
    match suberror {
        1 => "KVM can't emulate an instruction (internal error, suberror 1); see hull doctor".to_owned(),
        other => format!("KVM internal error, suberror {other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gate_holds_threads_and_lets_them_go() {
        let gate = Arc::new(Gate::new());
        let passed = Arc::new(AtomicU64::new(0));
        let thread = {
            let (gate, passed) = (gate.clone(), passed.clone());
            thread::spawn(move || {
                while gate.pass(|| ()) {
                    passed.fetch_add(1, Ordering::SeqCst);
                }
            })
        };
        assert!(gate.wait_out(1, Duration::from_secs(5), || ()));
        assert_eq!(passed.load(Ordering::SeqCst), 0);
        gate.set(Turn::Run);
        while passed.load(Ordering::SeqCst) == 0 {
            thread::yield_now();
        }
        gate.set(Turn::Stop);
        gate.set(Turn::Run);
        assert!(thread.join().is_ok(), "a stopped gate stays stopped");
        assert!(!gate.wait_out(2, Duration::from_millis(1), || ()));
    }
}
