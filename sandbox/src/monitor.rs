//! The `hull-vmm` process: its start, its events, and the truth about its end.

use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use hull_vmm::config::VmConfig;
use hull_vmm::report::{ExitCause, ExitReport, VmEvent};
use nix::fcntl::{FcntlArg, fcntl};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::pipe;
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use crate::error::SandboxError;
use crate::monitor_fds::{enter_network, inherit};
use crate::network::{NetworkError, NetworkNamespace};
use crate::text::one_line;
use crate::timeline::Timeline;

/// Longest line of the event stream.
const MAX_EVENT_BYTES: u64 = 64 << 10;
/// Most lines of the event stream: phases and one end.
const MAX_EVENTS: usize = 1000;
/// How much of the monitor's own messages is kept.
const STDERR_TAIL_BYTES: usize = 4 << 10;
/// How long the monitor's process may outlive its event stream.
const FAREWELL: Duration = Duration::from_secs(5);
/// What a dead process has written is there already; only a descendant that holds its descriptors could keep us waiting.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// How a VM ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VmEnd {
    /// What the monitor said last, if it could.
    pub report: Option<ExitReport>,
    /// Signal that ended the monitor's process.
    pub signal: Option<i32>,
    /// Exit status of the monitor's process.
    pub status: Option<i32>,
    /// The end of what it wrote to standard output and standard error.
    pub stderr_tail: String,
}

impl VmEnd {
    /// The VM came to its end without a fault: it was told to, or the guest powered off.
    pub fn is_orderly(&self) -> bool {
        let cause = self.report.as_ref().map(|report| report.cause);
        matches!(cause, Some(ExitCause::PowerOff | ExitCause::Stopped))
    }

    /// The monitor's process was killed from outside.
    pub fn was_killed(&self) -> bool {
        self.report.is_none() && self.signal.is_some()
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self.report.as_ref().map(|report| report.cause) {
            None if self.signal == Some(libc::SIGKILL) => {
                Some("the host may have run out of memory (see dmesg) or somebody killed it")
            }
            Some(ExitCause::StartFailed) => Some("`hull doctor` checks this host"),
            _ => None,
        }
    }
}

impl fmt::Display for VmEnd {
    /// One line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.report, self.signal, self.status) {
            (Some(report), _, _) => f.write_str(&describe(report)),
            (None, Some(signal), _) => {
                let name = nix::sys::signal::Signal::try_from(signal).map_or("unknown", |signal| signal.as_str());
                write!(f, "hull-vmm was killed by signal {signal} ({name})")
            }
            (None, None, status) => {
                match status {
                    Some(status) => write!(f, "hull-vmm ended with status {status} and gave no reason")?,
                    None => f.write_str("hull-vmm ended and gave no reason")?,
                }
                match one_line(&self.stderr_tail, 500) {
                    said if said.is_empty() => Ok(()),
                    said => write!(f, "; it said: {said}"),
                }
            }
        }
    }
}

impl std::error::Error for VmEnd {}

fn describe(report: &ExitReport) -> String {
    let message = one_line(&report.message, 500);
    let what = match report.cause {
        ExitCause::Panic => "The guest kernel panicked",
        ExitCause::TripleFault => "The guest's processor shut down (triple fault)",
        ExitCause::PowerOff => "The guest powered off",
        ExitCause::Reset => "The guest asked for a reset",
        ExitCause::Watchdog => "The guest's watchdog expired",
        ExitCause::Stopped => "The VM was stopped",
        ExitCause::StartFailed => return message,
        ExitCause::MonitorFailed => "hull-vmm failed",
    };
    // The monitor may have said the same in its own message.
    let detail = message.strip_prefix(what).map_or(message.as_str(), |rest| rest.trim_start_matches([':', ' ']));
    let mut line = what.to_owned();
    if !detail.is_empty() {
        line = format!("{line}: {detail}");
    }
    match console_end(&report.console_tail) {
        end if end.is_empty() => line,
        end => format!("{line}; console: {end}"),
    }
}

/// The last lines that the guest wrote, for one line: after a panic those that led to it, without the call trace behind it.
fn console_end(tail: &str) -> String {
    const LINES: usize = 5;
    let lines: Vec<_> = tail.lines().map(|line| one_line(line, 300)).filter(|line| !line.is_empty()).collect();
    let panic = lines.iter().position(|line| line.contains("Kernel panic"));
    let end = panic.map_or(lines.len(), |at| at + 1);
    lines.get(end.saturating_sub(LINES)..end).unwrap_or_default().join(" | ")
}

/// A started monitor. Dropping kills it.
pub(crate) struct Monitor {
    end: watch::Receiver<Option<Arc<VmEnd>>>,
    orders: mpsc::UnboundedSender<Order>,
    task: tokio::task::JoinHandle<()>,
    pid: u32,
}

enum Order {
    Terminate,
    Kill,
}

impl Monitor {
    /// Starts `program`; its configuration and its event stream are inherited descriptors. It waits for the configuration, and
    /// whatever happens to this process from now on, it removes `runtime_dir`, which may not exist yet. It lives in `network`.
    pub(crate) fn spawn(
        program: &Path,
        runtime_dir: &Path,
        id: &str,
        network: &NetworkNamespace,
        timeline: Arc<Timeline>,
    ) -> Result<(Self, ConfigPipe), SandboxError> {
        let failed = |source| SandboxError::Spawn { program: program.to_owned(), source };
        let (events, theirs) = std::os::unix::net::UnixStream::pair().map_err(failed)?;
        events.set_nonblocking(true).map_err(failed)?;
        let events = UnixStream::from_std(events).map_err(failed)?;
        let (config, pipe) = io::pipe().map_err(failed)?;
        let (config, theirs) = (OwnedFd::from(config), OwnedFd::from(theirs));
        let (said, said_writer) = io::pipe().map_err(failed)?;
        let said = pipe::Receiver::from_owned_fd(said.into()).map_err(failed)?;
        let mut command = Command::new(program);
        command
            .args(["run", "--config-fd", &config.as_raw_fd().to_string()])
            .args(["--events-fd", &theirs.as_raw_fd().to_string()])
            .arg("--runtime-dir")
            .arg(runtime_dir)
            .args(["--id", id])
            // Pipes instead of /dev/null, which a host without /dev lacks too.
            .stdin(Stdio::piped())
            .stdout(Stdio::from(said_writer.try_clone().map_err(failed)?))
            .stderr(Stdio::from(said_writer))
            // Ctrl-C at the terminal is the container's business.
            .process_group(0)
            .kill_on_drop(true);
        inherit(&mut command, vec![config, theirs]);
        match network {
            NetworkNamespace::Host => (),
            NetworkNamespace::New => enter_network(&mut command, None),
            NetworkNamespace::Path(path) => {
                let file = File::open(path).map_err(|source| NetworkError::Namespace { path: path.clone(), source })?;
                enter_network(&mut command, Some(file.into()));
            }
        }
        let mut child = command.spawn().map_err(failed)?;
        // Closes this process's copy of the monitor's end, so that its hangup can be seen.
        drop(command);
        let pid = child.id().unwrap_or(0);
        drop(child.stdin.take());
        let (sender, end) = watch::channel(None);
        let (orders, inbox) = mpsc::unbounded_channel();
        let task = tokio::spawn(async move {
            let end = follow(child, events, said, inbox, &timeline).await;
            tracing::debug!(?end, "hull-vmm has ended");
            let _ = sender.send(Some(Arc::new(end)));
        });
        Ok((Self { end, orders, task, pid }, ConfigPipe(pipe)))
    }

    /// Its process identifier.
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Waits for the end.
    pub(crate) async fn ended(&self) -> Arc<VmEnd> {
        self.watch().await
    }

    /// As [`Monitor::ended`], without holding the monitor.
    pub(crate) fn watch(&self) -> impl Future<Output = Arc<VmEnd>> + Send + use<> {
        let mut end = self.end.clone();
        async move {
            match end.wait_for(Option::is_some).await {
                Ok(end) => end.clone().unwrap_or_default(),
                // The task is gone with the monitor.
                Err(_) => Arc::default(),
            }
        }
    }

    /// How it ended, if it has.
    pub(crate) fn end(&self) -> Option<Arc<VmEnd>> {
        self.end.borrow().clone()
    }

    /// Asks it to end.
    pub(crate) fn terminate(&self) {
        let _ = self.orders.send(Order::Terminate);
    }

    /// Ends it.
    pub(crate) fn kill(&self) {
        let _ = self.orders.send(Order::Kill);
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        // Drops the child, which kills it, and the event stream, whose end the monitor takes as an order too.
        self.task.abort();
    }
}

/// Where the monitor waits for its configuration. Dropping it without one ends the monitor.
pub(crate) struct ConfigPipe(io::PipeWriter);

impl ConfigPipe {
    /// Hands over the configuration.
    pub(crate) fn send(mut self, config: &VmConfig) -> io::Result<()> {
        let json = serde_json::to_vec(config)?;
        // Room for all of it, so that a monitor that doesn't read can't stop this process. What fits anyway needs none.
        let _ = fcntl(&self.0, FcntlArg::F_SETPIPE_SZ(i32::try_from(json.len()).unwrap_or(i32::MAX)));
        match self.0.write_all(&json) {
            // A monitor that ended already says why itself.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            result => result,
        }
    }
}

/// Collects events and messages until the process is gone.
async fn follow(
    mut child: Child,
    events: UnixStream,
    said: pipe::Receiver,
    mut orders: mpsc::UnboundedReceiver<Order>,
    timeline: &Timeline,
) -> VmEnd {
    let mut stderr_tail = Vec::new();
    let mut report = None;
    let talk = async {
        tokio::join!(read_events(events, timeline, &mut report), read_tail(said, &mut stderr_tail));
    };
    let status = {
        tokio::pin!(talk);
        let mut talking = true;
        let status = loop {
            tokio::select! {
                () = &mut talk, if talking => {
                    talking = false;
                    // Nothing more will be said: the process has to go.
                    if timeout(FAREWELL, child.wait()).await.is_err() {
                        let _ = child.start_kill();
                    }
                }
                status = child.wait() => break status.ok(),
                Some(order) = orders.recv() => carry_out(&mut child, &order),
            }
        };
        if talking {
            let _ = timeout(LAST_WORDS, &mut talk).await;
        }
        status
    };
    VmEnd {
        report,
        signal: status.as_ref().and_then(ExitStatus::signal),
        status: status.as_ref().and_then(ExitStatus::code),
        stderr_tail: String::from_utf8_lossy(&stderr_tail).into_owned(),
    }
}

fn carry_out(child: &mut Child, order: &Order) {
    match order {
        Order::Kill => drop(child.start_kill()),
        Order::Terminate => {
            let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
            if let Some(pid) = pid {
                let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGTERM);
            }
        }
    }
}

async fn read_events(events: UnixStream, timeline: &Timeline, report: &mut Option<ExitReport>) {
    let mut events = BufReader::new(events);
    let mut line = Vec::new();
    for _ in 0..MAX_EVENTS {
        line.clear();
        match (&mut events).take(MAX_EVENT_BYTES).read_until(b'\n', &mut line).await {
            Ok(length) if length > 0 => (),
            _ => return,
        }
        match serde_json::from_slice(&line) {
            Ok(VmEvent::Phase { phase, at_ns }) => timeline.mark_phase(phase, at_ns),
            Ok(VmEvent::Exited(last)) => *report = Some(last),
            Err(error) => tracing::warn!(%error, "an event of hull-vmm can't be read"),
        }
    }
}

async fn read_tail(mut stream: pipe::Receiver, tail: &mut Vec<u8>) {
    let mut buffer = [0; 1024];
    while let Ok(length @ 1..) = stream.read(&mut buffer).await {
        let new = buffer.get(..length).unwrap_or_default();
        tracing::debug!(target: "hull_vmm", "{}", String::from_utf8_lossy(new).trim_end());
        tail.extend_from_slice(new);
        let excess = tail.len().saturating_sub(STDERR_TAIL_BYTES);
        tail.drain(..excess);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(cause: ExitCause, message: &str, console_tail: &str) -> VmEnd {
        VmEnd {
            report: Some(ExitReport { cause, message: message.into(), console_tail: console_tail.into() }),
            ..VmEnd::default()
        }
    }

    #[test]
    fn each_end_is_one_true_line() {
        let panic = end(
            ExitCause::Panic,
            "The guest kernel panicked: no init",
            "[1.0] VFS: \x1b[31mbad\n[1.1] Kernel panic - not syncing: no init\n[1.1] Call Trace:\n[1.1]  ? panic+0x2\n",
        );
        assert_eq!(
            panic.to_string(),
            "The guest kernel panicked: no init; console: [1.0] VFS: [31mbad | [1.1] Kernel panic - not syncing: no init"
        );
        assert_eq!(end(ExitCause::PowerOff, "", "").to_string(), "The guest powered off");
        assert_eq!(end(ExitCause::StartFailed, "/dev/kvm: no", "").to_string(), "/dev/kvm: no");
        let killed = VmEnd { signal: Some(9), ..VmEnd::default() };
        assert_eq!(killed.to_string(), "hull-vmm was killed by signal 9 (SIGKILL)");
        assert!(killed.was_killed() && killed.hint().is_some());
        let silent = VmEnd { status: Some(1), stderr_tail: "error: what\nfor\n".into(), ..VmEnd::default() };
        assert_eq!(silent.to_string(), "hull-vmm ended with status 1 and gave no reason; it said: error: what for");
    }
}
