//! Changes of what runs: Pause, Resume, Update, ResizePty, CloseIO.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use containerd_shim_protos::api::{CloseIORequest, ResizePtyRequest, UpdateTaskRequest};
use hull_sandbox::container::TerminalSize;

use super::shim::Shim;
use crate::error::TaskError;
use crate::events::Event;

/// Stops every process of the task where it is.
pub async fn pause(shim: Arc<Shim>, id: String) -> Result<(), TaskError> {
    let task = shim.task(&id)?;
    let container = task.container()?;
    let _turn = task.init.turn.lock().await;
    task.init.running(&id)?;
    if task.is_paused() {
        return Err(TaskError::precondition(format!("Task {id} is paused already")));
    }
    container.pause().await?;
    task.paused.store(true, Ordering::Release);
    shim.events.push(Event::paused(&id));
    Ok(())
}

/// Lets the task go on.
pub async fn resume(shim: Arc<Shim>, id: String) -> Result<(), TaskError> {
    let task = shim.task(&id)?;
    let container = task.container()?;
    let _turn = task.init.turn.lock().await;
    task.init.running(&id)?;
    if !task.is_paused() {
        return Err(TaskError::precondition(format!("Task {id} is not paused")));
    }
    container.resume().await?;
    task.paused.store(false, Ordering::Release);
    shim.events.push(Event::resumed(&id));
    Ok(())
}

/// Changes the task's limits, and the size of its VM with them. The request carries the `resources` object of an OCI runtime
/// specification.
pub async fn update(shim: Arc<Shim>, request: UpdateTaskRequest) -> Result<(), TaskError> {
    let task = shim.task(&request.id)?;
    let resources = request.resources.into_option().unwrap_or_default();
    let resources = serde_json::from_slice(&resources.value)
        .map_err(|error| TaskError::invalid(format!("The resources can't be read: {error}")))?;
    let container = task.container()?;
    let budget = shim.vm.read().await.as_ref().map(|vm| Arc::clone(&vm.budget));
    let claim = match budget {
        Some(budget) => Some(budget.change(&task.id, &resources).await?),
        None => None,
    };
    container.update(&resources).await?;
    if let Some(claim) = claim {
        claim.keep();
    }
    Ok(())
}

/// Tells a terminal its size.
pub async fn resize(shim: &Shim, request: ResizePtyRequest) -> Result<(), TaskError> {
    let (_, process) = shim.process(&request.id, &request.exec_id)?;
    if !process.stdio.terminal {
        return Err(TaskError::precondition("The process has no terminal"));
    }
    let Some(guest) = process.guest() else {
        return Err(TaskError::precondition("The process has not started"));
    };
    let clamp = |length: u32| u16::try_from(length).unwrap_or(u16::MAX);
    Ok(guest.resize(TerminalSize { columns: clamp(request.width), rows: clamp(request.height) }).await?)
}

/// Standard input ends after what was written to it. It never waits: what was written may be for nobody.
pub fn close_io(shim: &Shim, request: &CloseIORequest) -> Result<(), TaskError> {
    let (_, process) = shim.process(&request.id, &request.exec_id)?;
    if request.stdin {
        process.close_stdin();
    }
    Ok(())
}
