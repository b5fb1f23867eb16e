//! A timer that the main thread waits for and any thread may set.

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::time::Duration;

use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

/// A timerfd on CLOCK_MONOTONIC, which stands still while the host sleeps.
pub struct Alarm(TimerFd);

impl Alarm {
    /// An alarm that isn't set.
    pub fn new() -> io::Result<Self> {
        Ok(Self(TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC)?))
    }

    /// Makes the descriptor readable after this time, once, or never. What was set before is forgotten.
    pub fn set(&self, after: Option<Duration>) -> io::Result<()> {
        match after {
            // Zero would stand for never.
            Some(after) => {
                let after = Expiration::OneShot(TimeSpec::from(after.max(Duration::from_nanos(1))));
                Ok(self.0.set(after, TimerSetTimeFlags::empty())?)
            }
            None => Ok(self.0.unset()?),
        }
    }

    /// Makes the descriptor unreadable again.
    pub fn acknowledge(&self) {
        // It may have been set anew since: then there is nothing to read.
        let _ = nix::unistd::read(self.0.as_fd(), &mut [0; 8]);
    }
}

impl AsRawFd for Alarm {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::*;

    fn rings(alarm: &Alarm, patience: PollTimeout) -> bool {
        poll(&mut [PollFd::new(alarm.0.as_fd(), PollFlags::POLLIN)], patience) == Ok(1)
    }

    #[test]
    fn an_alarm_rings_once_and_only_if_it_is_set() -> io::Result<()> {
        let alarm = Alarm::new()?;
        alarm.acknowledge();
        assert!(!rings(&alarm, PollTimeout::ZERO));
        for after in [Duration::ZERO, Duration::from_millis(1)] {
            alarm.set(Some(after))?;
            assert!(rings(&alarm, PollTimeout::from(20_000u16)));
            alarm.acknowledge();
            assert!(!rings(&alarm, PollTimeout::ZERO));
        }
        alarm.set(Some(Duration::ZERO))?;
        alarm.set(None)?;
        assert!(!rings(&alarm, PollTimeout::ZERO));
        alarm.set(Some(Duration::from_secs(1 << 40)))
    }
}
