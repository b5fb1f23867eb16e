//! The one place that waits for child processes.
//!
//! PID 1 inherits every orphan, so that a `waitpid` for one process elsewhere would race with the reaping of the others.
//! Here `waitpid(-1)` is called after each SIGCHLD, and a status goes to whoever claimed its process.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::unistd::Pid;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use crate::sys::{self, End};

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// Exit status, or 128 + the signal's number.
    pub status: u32,
    /// The signal that ended it, or 0.
    pub signal: u32,
    /// Wall clock.
    pub at_ns: u64,
}

/// Hands exit statuses to those who claim them.
#[derive(Clone, Default)]
pub struct Reaper(Arc<Mutex<Table>>);

#[derive(Default)]
struct Table {
    claimed: HashMap<Pid, oneshot::Sender<Ended>>,
    /// Processes that ended before they could be claimed; kept only while a spawn is under way.
    unclaimed: HashMap<Pid, Ended>,
    spawns: usize,
}

/// While it lives, statuses of unknown processes are kept, because one of them may be claimed.
pub struct Spawning(Reaper);

impl Reaper {
    /// Starts the reaping task.
    pub fn start() -> std::io::Result<Self> {
        let reaper = Self::default();
        let mut children = signal(SignalKind::child())?;
        let task = reaper.clone();
        tokio::spawn(async move {
            loop {
                task.reap();
                if children.recv().await.is_none() {
                    return;
                }
            }
        });
        Ok(reaper)
    }

    /// Announces a spawn: take it before the process starts, keep it until the process is claimed.
    pub fn spawning(&self) -> Spawning {
        self.table().spawns += 1;
        Spawning(self.clone())
    }

    fn reap(&self) {
        while let Some((pid, end)) = sys::reap() {
            self.deliver(pid, end.into());
        }
    }

    fn deliver(&self, pid: Pid, ended: Ended) {
        let mut table = self.table();
        match table.claimed.remove(&pid) {
            // A claimer that is gone doesn't want to know.
            Some(claimer) => drop(claimer.send(ended)),
            None if table.spawns > 0 => drop(table.unclaimed.insert(pid, ended)),
            None => {}
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Spawning {
    /// Claims the status of a process that was started since this was taken.
    pub fn claim(&self, pid: Pid) -> oneshot::Receiver<Ended> {
        let (sender, receiver) = oneshot::channel();
        let mut table = self.0.table();
        match table.unclaimed.remove(&pid) {
            Some(ended) => drop(sender.send(ended)),
            None => drop(table.claimed.insert(pid, sender)),
        }
        receiver
    }
}

impl Drop for Spawning {
    fn drop(&mut self) {
        let mut table = self.0.table();
        table.spawns -= 1;
        if table.spawns == 0 {
            table.unclaimed = HashMap::new();
        }
    }
}

impl From<End> for Ended {
    /// One that ended just now.
    fn from(end: End) -> Self {
        let signal = if let End::Killed(signal) = end { signal } else { 0 };
        Self { status: end.status().into(), signal: signal.into(), at_ns: sys::wall_clock_ns() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(status: u32) -> Ended {
        Ended { status, signal: 0, at_ns: 0 }
    }

    #[test]
    fn a_status_that_comes_before_its_claim_is_kept_while_spawning() {
        let reaper = Reaper::default();
        let spawning = reaper.spawning();
        reaper.deliver(Pid::from_raw(7), end(3));
        assert_eq!(spawning.claim(Pid::from_raw(7)).try_recv(), Ok(end(3)));
    }

    #[test]
    fn a_status_that_comes_after_its_claim_is_delivered() {
        let reaper = Reaper::default();
        let mut claim = reaper.spawning().claim(Pid::from_raw(7));
        reaper.deliver(Pid::from_raw(8), end(1));
        reaper.deliver(Pid::from_raw(7), end(3));
        assert_eq!(claim.try_recv(), Ok(end(3)));
    }

    #[test]
    fn orphans_leave_nothing_behind() {
        let reaper = Reaper::default();
        reaper.deliver(Pid::from_raw(7), end(3));
        drop(reaper.spawning());
        assert!(reaper.table().unclaimed.is_empty());
    }
}
