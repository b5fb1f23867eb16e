//! Delete: of a task that has ended, or of one of its other processes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use containerd_shim_protos::api::DeleteRequest;
use containerd_shim_protos::api::DeleteResponse as Response;
use hull_sandbox::{AgentErrorKind, SandboxError};
use protobuf::MessageField;

use super::kill;
use super::process::{Exit, KILLED, Phase, Process};
use super::shim::{Shim, Task};
use crate::error::TaskError;
use crate::events::Event;
use crate::stdio::Pumps;

/// How long a killed process may take to end.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);
/// How long output that a process left may take to reach its reader. Most clients have read it before they delete.
const OUTPUT_TIMEOUT: Duration = Duration::from_secs(2);

/// Deletes what the request names.
pub async fn delete(shim: Arc<Shim>, request: DeleteRequest) -> Result<Response, TaskError> {
    if request.exec_id.is_empty() {
        shim.give_up(&request.id);
    }
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
    // One that is being started is ended by whoever starts it: a slow guest does not hold this up.
    let unstarted = Exit::now(0);
    let exit = match process.end_unless_started(unstarted) {
        Phase::Running => return Err(runs(&process.exec_id)),
        Phase::Created => unstarted,
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
    let exit = end(shim, task).await?;
    let execs = task.execs();
    for exec in &execs {
        exec.process.end_unless_started(exit);
    }
    let processes: Vec<_> = execs.iter().map(|exec| &exec.process).chain([&task.init]).collect();
    finish_output(&processes).await;
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
        vm.rank.remove(&task.id);
    }
    if shim.forget(&task.id) {
        shim.end_vm().await;
    }
    task.hooks.after_delete().await;
    shim.events.push(Event::delete(&task.id, task.pid, &exit));
    Ok(exit)
}

/// How it ended. One that never started ends now, and can't be started any more; it must not be on its way.
async fn end(shim: &Shim, task: &Task) -> Result<Exit, TaskError> {
    let _turn = task.init.turn.lock().await;
    let killed = Exit::now(KILLED);
    match task.init.end_unless_started(killed) {
        Phase::Running => Err(runs(&task.id)),
        Phase::Exited(exit) => Ok(exit),
        Phase::Created => {
            if let Some(guest) = task.init.guest() {
                // So that its output ends now, and not when the container is gone.
                let _ = guest.signal(libc::SIGKILL.unsigned_abs(), false).await;
            }
            shim.events.push(Event::exit(&task.id, "", task.pid, &killed));
            Ok(killed)
        }
    }
}

/// Lets output reach its readers, all of it within the same time.
async fn finish_output(processes: &[&Arc<Process>]) {
    let deadline = Instant::now() + OUTPUT_TIMEOUT;
    let pumps = || processes.iter().filter_map(|process| process.pumps());
    pumps().for_each(Pumps::process_ended);
    for pumps in pumps() {
        pumps.finish(deadline.saturating_duration_since(Instant::now())).await;
    }
}

/// Removes a task that nobody wants, in whatever state it is.
pub async fn dispose(shim: &Shim, task: &Task) {
    if let Some(guest) = task.init.guest() {
        let _ = guest.signal(libc::SIGKILL.unsigned_abs(), true).await;
        kill::end_for_certain(shim, task, KILL_TIMEOUT).await;
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
