//! Kill: a signal for a process, or for all of a container.

use std::sync::Arc;

use containerd_shim_protos::api::KillRequest;
use hull_sandbox::SandboxError;

use super::process::{Exit, Phase};
use super::shim::{Shim, Task};
use super::watch;
use crate::error::{TaskError, one_line};

const SIGINT: u32 = libc::SIGINT.unsigned_abs();
const SIGTERM: u32 = libc::SIGTERM.unsigned_abs();
const SIGKILL: u32 = libc::SIGKILL.unsigned_abs();

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
    match guest.signal(request.signal, request.all).await {
        // Its waiters hear of it in this moment.
        Err(error @ SandboxError::VmEnded(_)) => {
            Err(TaskError::not_found(format!("Process {name} has ended: {}", one_line(&error))))
        }
        result => Ok(result?),
    }
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
    Ok(())
}
