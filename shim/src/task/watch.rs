//! Ends of processes, and kills for want of memory: seen as they happen, told once and in order.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use hull_sandbox::{AgentErrorKind, SandboxError};
use tokio::time::{sleep, timeout};

use super::process::{Exit, KILLED, Process};
use super::shim::{Shim, Task};
use crate::error::one_line;
use crate::events::Event;

/// A container's processes end with its first: how long their ends may take to be told before its own.
const EXECS_TIMEOUT: Duration = Duration::from_secs(5);
/// Least time between two events of kills for want of memory: how often there are any is the guest's choice, and the count
/// goes on.
const OOM_PAUSE: Duration = Duration::from_secs(1);

/// Watches a task from its creation on.
pub async fn task(shim: &Arc<Shim>, task: &Arc<Task>) {
    if task.container.is_none() {
        return vm(shim, task).await;
    }
    process(shim, task, &task.init);
    let (shim, task) = (Arc::clone(shim), Arc::clone(task));
    tokio::spawn(async move {
        tokio::select! {
            () = memory_kills(&shim, &task) => (),
            _ = task.init.exited() => (),
        }
    });
}

/// Watches a process in the guest. Its end is told at once: output that nobody reads yet goes on to its reader until the task
/// is deleted.
pub fn process(shim: &Arc<Shim>, task: &Arc<Task>, process: &Arc<Process>) {
    let (shim, task, process) = (Arc::clone(shim), Arc::clone(task), Arc::clone(process));
    tokio::spawn(async move {
        let Some(guest) = process.guest() else { return };
        let exit = match guest.wait_for_end().await {
            Ok(exit) => end_of(&shim, &task, exit),
            Err(error) => lost(&shim, &task, &process, &error).await,
        };
        if process.exec_id.is_empty() {
            let _ = timeout(EXECS_TIMEOUT, execs_ended(&task)).await;
        }
        told(&shim, &task, &process, exit).await;
        if let Some(pumps) = process.pumps() {
            pumps.process_ended();
        }
    });
}

async fn execs_ended(task: &Task) {
    for exec in task.execs().iter().filter(|exec| exec.process.is_running()) {
        exec.process.exited().await;
    }
}

/// The guest says with the end of a process whether there were kills for want of memory. If the first to be killed was the
/// task's own process, nothing else may have told it.
pub fn end_of(shim: &Shim, task: &Task, exit: hull_sandbox::Exit) -> Exit {
    if exit.oom_killed && !task.oom_told.load(Ordering::Relaxed) {
        tell_memory_kill(shim, task);
    }
    Exit::now(exit.status.into())
}

/// The process's end can't be known, because the VM has ended or its agent does not answer. What is told to have ended must
/// not run on: a VM that can't be reached any more is ended.
async fn lost(shim: &Shim, task: &Task, process: &Process, error: &SandboxError) -> Exit {
    let cause = one_line(error);
    tracing::error!(task = task.id, exec = process.exec_id, cause, "a process was lost");
    if matches!(error, SandboxError::Agent(error) if error.kind == AgentErrorKind::Disconnected) {
        shim.end_vm().await;
    }
    Exit::now(KILLED)
}

/// The pod's sandbox runs as long as the VM.
async fn vm(shim: &Arc<Shim>, task: &Arc<Task>) {
    let Some(ended) = shim.vm.read().await.as_ref().map(|vm| vm.sandbox.watch_end()) else { return };
    let (shim, task) = (Arc::clone(shim), Arc::clone(task));
    tokio::spawn(async move {
        tokio::select! {
            end = ended => {
                tracing::error!(task = task.id, cause = %end, "the pod's VM has ended");
                told(&shim, &task, &task.init, Exit::now(KILLED)).await;
            }
            _ = task.init.exited() => (),
        }
    });
}

/// Tells the end of a process, after its start has been told.
pub async fn told(shim: &Shim, task: &Task, process: &Process, exit: Exit) {
    let _turn = process.turn.lock().await;
    if process.set_exited(exit) {
        shim.events.push(Event::exit(&task.id, &process.exec_id, task.pid, &exit));
    }
}

async fn memory_kills(shim: &Shim, task: &Task) {
    let Some(container) = &task.container else { return };
    let mut seen = 0;
    while let Ok(kills) = container.wait_oom(seen).await {
        tell_memory_kill(shim, task);
        seen = kills;
        sleep(OOM_PAUSE).await;
    }
}

fn tell_memory_kill(shim: &Shim, task: &Task) {
    tracing::warn!(task = task.id, "processes were killed for want of memory");
    task.oom_told.store(true, Ordering::Relaxed);
    shim.events.push(Event::oom(&task.id));
}
