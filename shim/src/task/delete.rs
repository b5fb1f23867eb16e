//! Delete: of a task that has ended, or of one of its other processes.

use std::sync::Arc;
use std::time::Duration;

use containerd_shim_protos::api::DeleteRequest;
use containerd_shim_protos::api::DeleteResponse as Response;
use hull_sandbox::{AgentErrorKind, SandboxError};
use protobuf::MessageField;

use super::process::{Exit, KILLED, Phase, Process};
use super::shim::{Shim, Task};
use crate::error::TaskError;
use crate::events::Event;

/// How long a killed process may take to end.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);
/// How long output that a process left may take to reach its reader. Most clients have read it before they delete.
const OUTPUT_TIMEOUT: Duration = Duration::from_secs(2);

/// Deletes what the request names.
pub async fn delete(shim: Arc<Shim>, request: DeleteRequest) -> Result<Response, TaskError> {
    let task = shim.task(&request.id)?;
    let exit = match request.exec_id.as_str() {
        "" => delete_task(&shim, &task).await?,
        exec_id => delete_exec(&task, &task.exec(exec_id)?.process).await?,
    };
    Ok(response(task.pid, exit))
}

/// What containerd is told of a task or process that was deleted.
pub fn response(pid: u32, exit: Exit) -> Response {
    Response { pid, exit_status: exit.status, exited_at: MessageField::some(exit.timestamp()), ..Default::default() }
}

async fn delete_exec(task: &Task, process: &Process) -> Result<Exit, TaskError> {
    let exit = match process.phase() {
        Phase::Running => return Err(runs(&process.exec_id)),
        Phase::Created => Exit::now(0),
        Phase::Exited(exit) => exit,
    };
    if let Some(pumps) = process.pumps() {
        pumps.finish(OUTPUT_TIMEOUT).await;
    }
    if let Some(guest) = process.guest() {
        unless_gone(guest.delete(false).await)?;
    }
    task.forget_exec(&process.exec_id);
    Ok(exit)
}

async fn delete_task(shim: &Shim, task: &Task) -> Result<Exit, TaskError> {
    if task.init.phase() == Phase::Running {
        return Err(runs(&task.id));
    }
    let exit = end(task).await;
    for process in task.execs().iter().map(|exec| &exec.process).chain([&task.init]) {
        if let Some(pumps) = process.pumps() {
            pumps.finish(OUTPUT_TIMEOUT).await;
        }
    }
    if let Some(container) = &task.container
        && let Err(error) = unless_gone(container.delete(true).await)
    {
        if !shim.is_last(&task.id) {
            return Err(error);
        }
        // The end of the VM is the end of it too.
        tracing::warn!(task = task.id, %error, "the guest did not delete the container");
    }
    if let Some(vm) = shim.vm.read().await.as_ref() {
        vm.budget.remove(&task.id);
    }
    if shim.forget(&task.id) {
        shim.end_vm().await;
    }
    task.hooks.after_delete().await;
    shim.events.push(Event::delete(&task.id, task.pid, &exit));
    Ok(exit)
}

/// How it ended; one that never started is ended now.
async fn end(task: &Task) -> Exit {
    if let (Phase::Created, Some(guest)) = (task.init.phase(), task.init.guest()) {
        let _ = guest.signal(libc::SIGKILL.unsigned_abs(), false).await;
        task.init.exited_within(KILL_TIMEOUT).await;
    }
    task.init.exit().unwrap_or_else(|| Exit::now(KILLED))
}

/// Removes a task that nobody wants, in whatever state it is.
pub async fn dispose(shim: &Shim, task: &Task) {
    if let Some(guest) = task.init.guest() {
        let _ = guest.signal(libc::SIGKILL.unsigned_abs(), true).await;
        task.init.exited_within(KILL_TIMEOUT).await;
    }
    if let Err(error) = delete_task(shim, task).await {
        tracing::warn!(task = task.id, %error, "a task that nobody wants is still there");
    }
}

fn runs(name: &str) -> TaskError {
    TaskError::precondition(format!("Process {name} runs: it can't be deleted"))
}

/// What is not there any more is deleted.
fn unless_gone(result: Result<(), SandboxError>) -> Result<(), TaskError> {
    match result {
        Err(SandboxError::VmEnded(_)) => Ok(()),
        Err(SandboxError::Agent(error)) if error.kind == AgentErrorKind::NotFound => Ok(()),
        result => Ok(result?),
    }
}
