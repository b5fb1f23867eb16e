//! Processes of containers, as the agent sees them.

mod console;
mod copy;
mod spawn;
mod stream;

use std::sync::Arc;

use nix::unistd::Pid;
use tokio::sync::{Notify, watch};

use crate::failure::{Context, Failure};
use crate::reaper::Ended;
use crate::sys;

pub use console::Terminal;
pub use spawn::{Spawn, StartGate};

/// A process that was started in a container, also after its end.
pub struct Process {
    /// Process identifier in the guest's root pid namespace.
    pub pid: Pid,
    terminal: Option<Terminal>,
    close_stdin: Arc<Notify>,
    /// Set at the moment of the end.
    ended: watch::Receiver<Option<Exit>>,
    /// Set when the output has been handed to the streams as well.
    finished: watch::Receiver<bool>,
}

/// How a process ended.
#[derive(Debug, Clone, Copy)]
pub struct Exit {
    /// Status and signal.
    pub ended: Ended,
    /// The kernel has killed a process of the container for want of memory.
    pub oom_killed: bool,
}

impl Process {
    /// How it ended, if it has.
    pub fn exit(&self) -> Option<Exit> {
        *self.ended.borrow()
    }

    /// Waits for the end of the process only.
    pub async fn ended(&self) -> Option<Exit> {
        let mut ended = self.ended.clone();
        ended.wait_for(Option::is_some).await.ok().and_then(|exit| *exit)
    }

    /// Waits until the process has ended and its output has been handed to its streams.
    pub async fn wait(&self) -> Result<Exit, Failure> {
        let mut finished = self.finished.clone();
        finished.wait_for(|finished| *finished).await.context("wait")?;
        self.exit().ok_or_else(no_status)
    }

    /// Waits until the process has ended, whether or not anybody reads its output.
    pub async fn wait_for_end(&self) -> Result<Exit, Failure> {
        self.ended().await.ok_or_else(no_status)
    }

    /// Sends a signal; one that has ended is NOT_FOUND.
    pub fn signal(&self, signal: i32) -> Result<(), Failure> {
        // As long as the end was not reaped, the identifier can't belong to another process.
        if self.exit().is_some() {
            return Err(Failure::not_found("the process has already ended"));
        }
        sys::kill(self.pid, signal).context("send the signal")
    }

    /// Sets the size of the process's terminal.
    pub fn resize(&self, columns: u32, rows: u32) -> Result<(), Failure> {
        let terminal = self.terminal.as_ref();
        let terminal = terminal.ok_or_else(|| Failure::precondition("the process has no terminal"))?;
        terminal.resize(columns, rows)
    }

    /// Closes standard input once what has arrived is delivered. A terminal stays open, as everywhere.
    pub fn close_stdin(&self) {
        self.close_stdin.notify_one();
    }
}

fn no_status() -> Failure {
    Failure::internal("the process has no exit status")
}
