//! Start: of a created task, or of another process in it.

use std::sync::Arc;

use containerd_shim_protos::api::StartRequest;
use hull_sandbox::container::{ProcessIo, TerminalSize};

use super::process::{Exit, Guest, Phase, Process};
use super::shim::{Exec, Shim, Task};
use super::watch;
use crate::error::{TaskError, one_line};
use crate::events::Event;

/// Status of a process that could not be started: containerd's number for one that nobody knows.
const NEVER_RAN: u32 = 255;

/// Starts a process; the answer is the process identifier that stands for it.
pub async fn start(shim: Arc<Shim>, request: StartRequest) -> Result<u32, TaskError> {
    let task = shim.task(&request.id)?;
    match request.exec_id.as_str() {
        "" => start_task(&shim, &task).await?,
        exec_id => {
            let exec = task.exec(exec_id)?;
            start_exec(&shim, &task, &exec).await?;
        }
    }
    Ok(task.pid)
}

async fn start_task(shim: &Shim, task: &Task) -> Result<(), TaskError> {
    let _turn = task.init.turn.lock().await;
    created(&task.init, &task.id)?;
    // Docker and others may have added interfaces since the container was created.
    if let Some(vm) = shim.vm.read().await.as_ref() {
        vm.sandbox.update_network().await?;
    }
    if let Some(container) = &task.container {
        container.start().await.map_err(TaskError::making)?;
    }
    task.init.set_running();
    shim.events.push(Event::start(&task.id, task.pid));
    task.hooks.after_start().await;
    Ok(())
}

async fn start_exec(shim: &Arc<Shim>, task: &Arc<Task>, exec: &Exec) -> Result<(), TaskError> {
    let process = &exec.process;
    let _turn = process.turn.lock().await;
    created(process, &process.exec_id)?;
    if let Err(error) = make_exec(shim, task, exec).await {
        // Who waits for its end hears of it.
        process.end_unless_started(Exit::now(NEVER_RAN));
        return Err(error);
    }
    if !process.set_running() {
        if let Some(guest) = process.guest() {
            guest.discard().await;
        }
        let name = &process.exec_id;
        return Err(TaskError::precondition(format!("Process {name} was deleted while it was started")));
    }
    shim.events.push(Event::exec_started(&task.id, &process.exec_id, task.pid));
    watch::process(shim, task, process);
    Ok(())
}

/// Makes the process in the guest, where it runs at once.
async fn make_exec(shim: &Shim, task: &Task, exec: &Exec) -> Result<(), TaskError> {
    task.init.running(&task.id)?;
    let process = &exec.process;
    let stdio = &process.stdio;
    let opened = stdio.open(shim.owner(&task.id)).await.map_err(|error| TaskError::invalid(one_line(&error)))?;
    let io = ProcessIo { stdin: stdio.has_stdin(), terminal: stdio.terminal.then(TerminalSize::default) };
    let started = task.container()?.exec(&process.exec_id, exec.spec.clone(), "", io).await;
    let (guest, streams) = started.map_err(TaskError::making)?;
    process.enter(Guest::Exec(guest), opened.connect(streams));
    Ok(())
}

fn created(process: &Process, name: &str) -> Result<(), TaskError> {
    match process.phase() {
        Phase::Created => Ok(()),
        Phase::Running => Err(TaskError::precondition(format!("Process {name} runs already"))),
        Phase::Exited(_) => Err(TaskError::precondition(format!("Process {name} has ended"))),
    }
}
