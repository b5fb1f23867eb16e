//! Programs that take a container's output, by containerd's protocol of `binary://`: standard output of the container is
//! descriptor 3, standard error is 4, and the program closes 5 when it is ready.

use std::io;
use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe::{Receiver, Sender};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::time::timeout;

use super::Owner;
use crate::child;

/// How long a program may take until it is ready.
const READY_TIMEOUT: Duration = Duration::from_secs(10);
/// How long it may take to end when the output has ended, before and after a request to do so.
const END_TIMEOUT: Duration = Duration::from_secs(5);

/// Longest time from the end of the output to the end of the program that took it.
const LONGEST_END: Duration = Duration::from_secs(11);

/// The programs that run, for this process to end after them: it would take them with it.
#[derive(Debug)]
pub struct Loggers(watch::Sender<()>);

/// A running program.
#[derive(Debug)]
pub struct Logger {
    child: Child,
    /// One of the programs that run, as long as it exists.
    _running: watch::Receiver<()>,
}

/// A program that is ready, and the container's ends of its pipes.
pub struct Started {
    pub logger: Logger,
    pub stdout: Sender,
    pub stderr: Sender,
}

impl Default for Loggers {
    fn default() -> Self {
        Self(watch::Sender::new(()))
    }
}

impl Loggers {
    /// Waits until all have ended. What they were to write must have ended before: then it is a matter of seconds.
    pub async fn ended(&self) {
        if timeout(LONGEST_END, self.0.closed()).await.is_err() {
            tracing::warn!("a program for logs does not end");
        }
    }
}

impl Logger {
    /// Starts the program and waits until it is ready.
    pub async fn start(program: &str, arguments: &[String], owner: Owner<'_>) -> io::Result<Started> {
        let (stdout_reader, stdout) = io::pipe()?;
        let (stderr_reader, stderr) = io::pipe()?;
        let (ready, ready_writer) = io::pipe()?;
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env("CONTAINER_ID", owner.container_id)
            .env("CONTAINER_NAMESPACE", owner.namespace)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true);
        child::inherit(&mut command, vec![stdout_reader.into(), stderr_reader.into(), ready_writer.into()])?;
        let child = command.spawn()?;
        // Closes this process's copies, so that the program's end can be seen.
        drop(command);
        let started = Started {
            logger: Self { child, _running: owner.loggers.0.subscribe() },
            stdout: sender(stdout)?,
            stderr: sender(stderr)?,
        };
        let mut ready = Receiver::from_owned_fd(OwnedFd::from(ready))?;
        match timeout(READY_TIMEOUT, ready.read(&mut [0])).await {
            Ok(Ok(_)) => Ok(started),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "it was not ready within 10 seconds")),
        }
    }

    /// Waits for its end after the output's; it is asked to end, and then made to, when it takes too long.
    pub async fn finish(mut self) {
        if timeout(END_TIMEOUT, self.child.wait()).await.is_ok() {
            return;
        }
        if let Some(pid) = self.child.id().and_then(|pid| i32::try_from(pid).ok()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        if timeout(END_TIMEOUT, self.child.wait()).await.is_err() {
            let _ = self.child.start_kill();
        }
    }
}

fn sender(writer: io::PipeWriter) -> io::Result<Sender> {
    Sender::from_owned_fd(writer.into())
}
