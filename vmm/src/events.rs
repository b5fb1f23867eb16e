//! The event stream to the front door: JSON lines on a pipe or stream socket that the front door gave.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::time::{ClockId, clock_gettime};

use crate::report::{BootPhase, ExitReport, VmEvent};

/// A reader that doesn't read holds up the last event this long, and no other event at all.
const LAST_EVENT_PATIENCE: Duration = Duration::from_secs(1);

/// Where events go; without a stream they go nowhere. Phases are kept for the control socket in either case.
pub struct EventStream {
    file: Option<File>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    phases: Vec<(BootPhase, u64)>,
    /// Rest of a line that did not fit into the pipe: later lines have to wait for it.
    unsent: Vec<u8>,
    exited: bool,
}

/// Bound for lines that wait.
const UNSENT_MAX_BYTES: usize = 64 << 10;

impl EventStream {
    /// A stream that goes nowhere.
    pub fn none() -> Self {
        Self { file: None, state: Mutex::default() }
    }

    /// Takes a pipe or stream socket and makes it non-blocking.
    pub fn over(fd: OwnedFd) -> io::Result<Self> {
        let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
        fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        Ok(Self { file: Some(File::from(fd)), state: Mutex::default() })
    }

    /// The descriptor whose hang-up means that the front door is gone.
    pub fn raw_fd(&self) -> Option<RawFd> {
        self.file.as_ref().map(AsRawFd::as_raw_fd)
    }

    /// Whether the other end is closed, or will be within `grace`: the front door is gone.
    pub fn is_hung_up(&self, grace: Duration) -> bool {
        let Some(file) = &self.file else { return false };
        let gone = PollFlags::POLLHUP | PollFlags::POLLERR;
        let mut fds = [PollFd::new(file.as_fd(), PollFlags::empty())];
        let grace = PollTimeout::try_from(grace).unwrap_or(PollTimeout::ZERO);
        matches!(poll(&mut fds, grace), Ok(1)) && fds.iter().any(|fd| fd.revents().is_some_and(|r| r.intersects(gone)))
    }

    /// Records a phase and tells the front door.
    pub fn phase(&self, phase: BootPhase) {
        let at_ns = monotonic_ns();
        let mut state = self.lock();
        state.phases.push((phase, at_ns));
        self.send(&mut state, &VmEvent::Phase { phase, at_ns });
    }

    /// Forgets the phases of a start that failed; that of the process stays. What was sent was sent.
    pub fn forget_boot(&self) {
        self.lock().phases.retain(|(phase, _)| *phase == BootPhase::MonitorStarted);
    }

    /// Phases so far.
    pub fn phases(&self) -> Vec<(BootPhase, u64)> {
        self.lock().phases.clone()
    }

    /// Tells the front door how the VM ended, once.
    pub fn exited(&self, report: ExitReport) {
        let mut state = self.lock();
        if std::mem::replace(&mut state.exited, true) {
            return;
        }
        self.send(&mut state, &VmEvent::Exited(report));
        self.drain(&mut state, LAST_EVENT_PATIENCE);
    }

    fn send(&self, state: &mut State, event: &VmEvent) {
        // The types have nothing that JSON can't say.
        let Ok(mut line) = serde_json::to_vec(event) else { return };
        line.push(b'\n');
        if self.file.is_some() && state.unsent.len() + line.len() <= UNSENT_MAX_BYTES {
            state.unsent.extend(line);
        }
        self.drain(state, Duration::ZERO);
    }

    fn drain(&self, state: &mut State, patience: Duration) {
        let Some(mut file) = self.file.as_ref() else { return };
        let deadline = Instant::now() + patience;
        while !state.unsent.is_empty() {
            match file.write(&state.unsent) {
                Ok(written) => drop(state.unsent.drain(..written)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if !wait_writable(file.as_fd(), deadline.saturating_duration_since(Instant::now())) {
                        return;
                    }
                }
                // Nobody reads any more.
                Err(_) => return state.unsent.clear(),
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn wait_writable(fd: BorrowedFd<'_>, patience: Duration) -> bool {
    let timeout = PollTimeout::try_from(patience).unwrap_or(PollTimeout::ZERO);
    let mut fds = [PollFd::new(fd, PollFlags::POLLOUT)];
    matches!(poll(&mut fds, timeout), Ok(1))
}

/// CLOCK_MONOTONIC.
fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests stop at the first surprise")]

    use std::io::{BufRead, BufReader};
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::report::ExitCause;

    fn report() -> ExitReport {
        ExitReport { cause: ExitCause::PowerOff, message: "off".to_owned(), console_tail: String::new() }
    }

    #[test]
    fn events_are_json_lines_and_the_end_comes_once() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let events = EventStream::over(ours.into()).unwrap();
        events.phase(BootPhase::MemoryReady);
        events.exited(report());
        events.exited(report());
        drop(events);
        let lines: Vec<_> = BufReader::new(theirs).lines().map(Result::unwrap).collect();
        assert_eq!(lines.len(), 2);
        assert!(lines[0].starts_with(r#"{"event":"phase","phase":"memory_ready","at_ns":"#), "{}", lines[0]);
        assert_eq!(lines[1], r#"{"event":"exited","cause":"power_off","message":"off"}"#);
    }

    #[test]
    fn a_stuck_reader_does_not_hang_the_monitor() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let events = EventStream::over(ours.into()).unwrap();
        let start = Instant::now();
        for _ in 0..100_000 {
            events.phase(BootPhase::MemoryReady);
        }
        events.exited(report());
        assert!(start.elapsed() < Duration::from_secs(20));
        assert!(events.lock().unsent.len() <= UNSENT_MAX_BYTES);
        drop(theirs);
    }

    #[test]
    fn a_reader_that_left_is_no_error() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let events = EventStream::over(ours.into()).unwrap();
        assert!(!events.is_hung_up(Duration::ZERO));
        drop(theirs);
        assert!(events.is_hung_up(Duration::ZERO));
        events.phase(BootPhase::MemoryReady);
        events.exited(report());
    }
}
