//! Kill: a signal for a process, or for all of a container.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use containerd_shim_protos::api::KillRequest;
use hull_sandbox::{AgentErrorKind, SandboxError};

use super::process::{Exit, Phase};
use super::shim::{Shim, Task};
use super::watch;
use crate::error::{TaskError, one_line};

const SIGINT: u32 = libc::SIGINT.unsigned_abs();
const SIGTERM: u32 = libc::SIGTERM.unsigned_abs();
const SIGKILL: u32 = libc::SIGKILL.unsigned_abs();

/// How long a task may take to end after SIGKILL. A process that uses the host's files ends when the host lets go of them.
const KILL_TIMEOUT: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 30 });

/// Sends the signal.
pub async fn kill(shim: Arc<Shim>, request: KillRequest) -> Result<(), TaskError> {
    let (task, process) = shim.process(&request.id, &request.exec_id)?;
    let name = if request.exec_id.is_empty() { &request.id } else { &request.exec_id };
    if let Phase::Exited(_) = process.phase() {
        return Err(TaskError::not_found(format!("Process {name} has ended")));
    }
    let Some(guest) = process.guest() else {
        return match request.exec_id.is_empty() {
            true => kill_sandbox(&shim, &task, request.signal).await,
            false => Err(TaskError::precondition(format!("Process {name} has not started"))),
        };
    };
    let all = request.all && request.exec_id.is_empty();
    let signalled = guest.signal(request.signal, all).await;
    if request.signal == SIGKILL && request.exec_id.is_empty() && !task.killed.swap(true, Ordering::Relaxed) {
        let patience = if is_timeout(&signalled) { Duration::ZERO } else { KILL_TIMEOUT };
        tokio::spawn(async move { end_for_certain(&shim, &task, patience).await });
    }
    match signalled {
        // Its waiters hear of it in this moment.
        Err(error @ SandboxError::VmEnded(_)) => {
            Err(TaskError::not_found(format!("Process {name} has ended: {}", one_line(&error))))
        }
        result => Ok(result?),
    }
}

/// To the guest a signal is a request. What was killed must end, whatever the guest does: a VM in which it does not is ended.
pub async fn end_for_certain(shim: &Shim, task: &Task, patience: Duration) {
    if task.init.exited_within(patience).await.is_none() {
        tracing::error!(task = task.id, "the guest does not end what was killed, so its VM is ended");
        shim.end_vm().await;
    }
}

fn is_timeout(result: &Result<(), SandboxError>) -> bool {
    matches!(result, Err(SandboxError::Agent(error)) if error.kind == AgentErrorKind::TimedOut)
}

/// The pod's sandbox reacts as its usual program would: that one catches two signals and ignores all others.
async fn kill_sandbox(shim: &Shim, task: &Task, signal: u32) -> Result<(), TaskError> {
    let status = match signal {
        SIGKILL => 128 + SIGKILL,
        SIGINT | SIGTERM => 0,
        0..=64 => return Ok(()),
        _ => return Err(TaskError::invalid(format!("There is no signal {signal}"))),
    };
    watch::told(shim, task, &task.init, Exit::now(status)).await;
    if signal == SIGKILL {
        // It is the VM: so are its containers killed.
        shim.end_vm().await;
    }
    Ok(())
}
