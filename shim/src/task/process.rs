//! A process as containerd sees it: Created, Running, Exited.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hull_sandbox::Container;
use protobuf::well_known_types::timestamp::Timestamp;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::error::TaskError;
use crate::stdio::{Pumps, Stdio};

/// Status of what was killed.
pub const KILLED: u32 = 137;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// 0 to 255; 128 + n after signal n.
    pub status: u32,
    /// By the host's clock.
    pub at: SystemTime,
}

impl Exit {
    /// It ended now.
    pub fn now(status: u32) -> Self {
        Self { status, at: SystemTime::now() }
    }

    /// When it ended.
    pub fn timestamp(&self) -> Timestamp {
        let since = self.at.duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp {
            seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
            nanos: i32::try_from(since.subsec_nanos()).unwrap_or(0),
            ..Default::default()
        }
    }
}

/// Where a process is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// It exists and does not run yet.
    Created,
    /// It runs.
    Running,
    /// It has ended.
    Exited(Exit),
}

/// What a process is in the guest.
pub enum Guest {
    /// The first process of a container.
    Init(Arc<Container>),
    /// Another one.
    Exec(hull_sandbox::Process),
}

impl Guest {
    /// The way to it.
    pub fn process(&self) -> &hull_sandbox::Process {
        match self {
            Self::Init(container) => container.process(),
            Self::Exec(process) => process,
        }
    }
}

/// A process.
pub struct Process {
    /// Empty for a task's own.
    pub exec_id: String,
    /// Its streams.
    pub stdio: Stdio,
    /// Held while it is started, and while its end is told: so that the one never overtakes the other.
    pub turn: tokio::sync::Mutex<()>,
    phase: watch::Sender<Phase>,
    inside: OnceLock<Inside>,
    stdin_closed: AtomicBool,
}

struct Inside {
    guest: Guest,
    pumps: Pumps,
}

impl Process {
    /// A process that does not run yet.
    pub fn new(exec_id: &str, stdio: Stdio) -> Self {
        Self {
            exec_id: exec_id.into(),
            stdio,
            turn: tokio::sync::Mutex::default(),
            phase: watch::Sender::new(Phase::Created),
            inside: OnceLock::new(),
            stdin_closed: AtomicBool::new(false),
        }
    }

    /// From now on it exists in the guest. Counts once.
    pub fn enter(&self, guest: Guest, pumps: Pumps) {
        let _ = self.inside.set(Inside { guest, pumps });
        if self.stdin_closed.load(Ordering::Acquire) {
            self.close_stdin();
        }
    }

    /// Its standard input ends after what was written to it, also if it doesn't run yet. Never waits.
    pub fn close_stdin(&self) {
        self.stdin_closed.store(true, Ordering::Release);
        if let Some(pumps) = self.pumps() {
            pumps.close_stdin();
        }
    }

    /// What it is in the guest, if it is there: the process of a pod's sandbox never is, and others not before they start.
    pub fn guest(&self) -> Option<&hull_sandbox::Process> {
        self.inside.get().map(|inside| inside.guest.process())
    }

    /// Its running streams.
    pub fn pumps(&self) -> Option<&Pumps> {
        self.inside.get().map(|inside| &inside.pumps)
    }

    /// Where it is on its way.
    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// It runs.
    pub fn is_running(&self) -> bool {
        self.phase() == Phase::Running
    }

    /// How it ended, if it has.
    pub fn exit(&self) -> Option<Exit> {
        match self.phase() {
            Phase::Exited(exit) => Some(exit),
            _ => None,
        }
    }

    /// It runs from now on. False if it has ended already, or was deleted before it ran.
    pub fn set_running(&self) -> bool {
        self.phase.send_if_modified(|phase| {
            let starts = *phase == Phase::Created;
            if starts {
                *phase = Phase::Running;
            }
            starts
        })
    }

    /// Where it is on its way. One that does not run yet has ended with `exit` from now on, and can't be started any more.
    pub fn end_unless_started(&self, exit: Exit) -> Phase {
        let mut before = Phase::Created;
        self.phase.send_if_modified(|phase| {
            before = *phase;
            let ends = *phase == Phase::Created;
            if ends {
                *phase = Phase::Exited(exit);
            }
            ends
        });
        before
    }

    /// It has ended. False if that was known.
    pub fn set_exited(&self, exit: Exit) -> bool {
        self.phase.send_if_modified(|phase| {
            let ends = !matches!(phase, Phase::Exited(_));
            if ends {
                *phase = Phase::Exited(exit);
            }
            ends
        })
    }

    /// Waits for its end.
    pub async fn exited(&self) -> Exit {
        let mut phase = self.phase.subscribe();
        loop {
            if let Phase::Exited(exit) = *phase.borrow_and_update() {
                return exit;
            }
            if phase.changed().await.is_err() {
                return Exit::now(KILLED);
            }
        }
    }

    /// Waits for its end, but not longer than `limit`.
    pub async fn exited_within(&self, limit: Duration) -> Option<Exit> {
        timeout(limit, self.exited()).await.ok()
    }

    /// It must run.
    pub fn running(&self, name: &str) -> Result<(), TaskError> {
        match self.phase() {
            Phase::Running => Ok(()),
            Phase::Created => Err(TaskError::precondition(format!("Process {name} has not started"))),
            Phase::Exited(_) => Err(TaskError::precondition(format!("Process {name} has ended"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_end_is_known_once_and_to_everybody() {
        let process = Arc::new(Process::new("", Stdio::default()));
        let waiter = tokio::spawn({
            let process = Arc::clone(&process);
            async move { process.exited().await }
        });
        tokio::task::yield_now().await;
        assert!(process.set_running());
        assert!(process.is_running() && process.exited_within(Duration::ZERO).await.is_none());
        let exit = Exit::now(3);
        assert!(process.set_exited(exit));
        assert!(!process.set_exited(Exit::now(KILLED)));
        assert!(!process.set_running());
        assert_eq!(waiter.await.unwrap(), exit);
        assert_eq!(process.exited().await, exit);
    }

    #[test]
    fn an_end_has_a_time_after_the_epoch() {
        let exit = Exit { status: 0, at: UNIX_EPOCH + Duration::from_millis(1500) };
        let timestamp = exit.timestamp();
        assert_eq!((timestamp.seconds, timestamp.nanos), (1, 500_000_000));
    }
}
