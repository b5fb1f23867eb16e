//! The main thread after the start: waits for the end of the guest, for signals, for the front door, and serves the control socket.

use std::cell::RefCell;
use std::os::fd::{AsRawFd, RawFd};
use std::rc::Rc;
use std::sync::Arc;

use event_manager::{EventManager, EventOps, Events, MutEventSubscriber, SubscriberOps};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use thiserror::Error;
use vmm_sys_util::epoll::EventSet;

use crate::control::ControlServer;
use crate::device::Alarm;
use crate::report::ExitCause;
use crate::vm::{EndSignal, Ending};

/// The loop can't run.
#[derive(Debug, Error)]
pub enum LoopError {
    /// epoll.
    #[error("Can't wait for events")]
    Manager(#[from] event_manager::Error),
    /// signalfd.
    #[error("Can't take signals")]
    Signals(#[from] nix::Error),
}

/// Signals that stop the VM.
fn stop_signals() -> SigSet {
    [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP].into_iter().collect()
}

/// Blocks the signals that the loop takes, for this thread and all that it starts. Call it before any thread exists.
pub fn block_stop_signals() -> nix::Result<()> {
    stop_signals().thread_block()
}

/// Why the loop ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The guest ended, or was stopped on request.
    Ended(Ending),
    /// The front door is gone: nobody will clean up behind this VM.
    FrontDoorGone,
}

/// Runs until the VM ends, which `end` tells. `front_door` is the event stream's descriptor. When the alarm rings, the function
/// behind it is called.
pub fn run(
    end: &Arc<EndSignal>,
    front_door: Option<RawFd>,
    control: Option<ControlServer>,
    (alarm, on_alarm): (&Arc<Alarm>, Box<dyn Fn()>),
) -> Result<Outcome, LoopError> {
    let mut manager = EventManager::<Box<dyn MutEventSubscriber>>::new()?;
    let outcome = Rc::new(RefCell::new(None));
    let watch = Watch {
        end: Arc::clone(end),
        signals: SignalFd::with_flags(&stop_signals(), SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?,
        front_door,
        alarm: Arc::clone(alarm),
        on_alarm,
        outcome: outcome.clone(),
    };
    manager.add_subscriber(Box::new(watch));
    if let Some(control) = control {
        manager.add_subscriber(Box::new(control));
    }
    loop {
        manager.run()?;
        if let Some(outcome) = outcome.borrow_mut().take() {
            return Ok(outcome);
        }
    }
}

/// Everything that ends the loop, and the alarm.
struct Watch {
    end: Arc<EndSignal>,
    signals: SignalFd,
    front_door: Option<RawFd>,
    alarm: Arc<Alarm>,
    on_alarm: Box<dyn Fn()>,
    outcome: Rc<RefCell<Option<Outcome>>>,
}

impl Watch {
    fn finish(&self, outcome: Outcome) {
        // Whatever came at the same time: without a front door it falls to this process to remove everything.
        let mut slot = self.outcome.borrow_mut();
        if slot.is_none() || matches!(outcome, Outcome::FrontDoorGone) {
            *slot = Some(outcome);
        }
    }
}

impl MutEventSubscriber for Watch {
    fn init(&mut self, ops: &mut EventOps) {
        let mut add = |fd, set| {
            if let Err(error) = ops.add(Events::new_raw(fd, set)) {
                self.end.report(ExitCause::MonitorFailed, &format!("Can't watch file descriptor {fd}: {error}"));
            }
        };
        add(self.end.event().as_raw_fd(), EventSet::IN);
        add(self.signals.as_raw_fd(), EventSet::IN);
        add(self.alarm.as_raw_fd(), EventSet::IN);
        if let Some(fd) = self.front_door {
            // Hang-up and error are always reported; a stream socket's half-close too when asked for.
            add(fd, EventSet::READ_HANG_UP);
        }
    }

    fn process(&mut self, events: Events, _ops: &mut EventOps) {
        let fd = events.fd();
        if Some(fd) == self.front_door {
            self.finish(Outcome::FrontDoorGone);
        } else if fd == self.alarm.as_raw_fd() {
            self.alarm.acknowledge();
            (self.on_alarm)();
        } else if fd == self.signals.as_raw_fd() {
            if let Ok(Some(signal)) = self.signals.read_signal() {
                let name = i32::try_from(signal.ssi_signo).ok().and_then(|n| Signal::try_from(n).ok());
                let name = name.map_or("a signal", Signal::as_str);
                self.end.report(ExitCause::Stopped, &format!("Stopped by {name}"));
            }
        } else if let Some(ending) = self.end.ending() {
            self.finish(Outcome::Ended(ending));
        }
    }
}
