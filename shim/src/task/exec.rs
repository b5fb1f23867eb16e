//! Exec: announces another process in a task; Start starts it.

use std::sync::Arc;

use containerd_shim_protos::api::ExecProcessRequest;

use super::process::Process;
use super::shim::{Exec, Shim};
use crate::error::TaskError;
use crate::events::Event;
use crate::stdio::Stdio;

/// Adds the process.
pub fn add(shim: &Shim, request: ExecProcessRequest) -> Result<(), TaskError> {
    if request.exec_id.is_empty() {
        return Err(TaskError::invalid("A process needs an identifier"));
    }
    let task = shim.task(&request.id)?;
    task.container()?;
    task.init.running(&task.id)?;
    let spec = request.spec.into_option().unwrap_or_default();
    let spec = String::from_utf8(spec.value).map_err(|error| TaskError::invalid(format!("process: {error}")))?;
    let stdio =
        Stdio { stdin: request.stdin, stdout: request.stdout, stderr: request.stderr, terminal: request.terminal };
    task.add_exec(Exec { process: Arc::new(Process::new(&request.exec_id, stdio)), spec })?;
    shim.events.push(Event::exec_added(&task.id, &request.exec_id));
    Ok(())
}
