//! What is asked: State, Pids, Wait, Connect. The answers are at hand: no guest can delay them.

use containerd_shim_protos::api::{
    ConnectRequest, ConnectResponse, PidsRequest, PidsResponse, ProcessInfo, StateRequest, StateResponse, Status,
    WaitRequest, WaitResponse,
};
use protobuf::MessageField;

use super::process::Phase;
use super::shim::Shim;
use crate::error::TaskError;

/// Where a process is on its way.
pub fn state(shim: &Shim, request: &StateRequest) -> Result<StateResponse, TaskError> {
    let (task, process) = shim.process(&request.id, &request.exec_id)?;
    let status = match process.phase() {
        Phase::Created => Status::CREATED,
        Phase::Running if task.is_paused() => Status::PAUSED,
        Phase::Running => Status::RUNNING,
        Phase::Exited(_) => Status::STOPPED,
    };
    let exit = process.exit();
    let id = if request.exec_id.is_empty() { &task.id } else { &request.exec_id };
    Ok(StateResponse {
        id: id.clone(),
        bundle: task.bundle.display().to_string(),
        pid: task.pid,
        status: status.into(),
        stdin: process.stdio.stdin.clone(),
        stdout: process.stdio.stdout.clone(),
        stderr: process.stdio.stderr.clone(),
        terminal: process.stdio.terminal,
        exit_status: exit.map_or(0, |exit| exit.status),
        exited_at: exit.map(|exit| exit.timestamp()).into(),
        exec_id: request.exec_id.clone(),
        ..Default::default()
    })
}

/// The host's process that stands for the task. What runs in the guest has other numbers, which mean other processes here:
/// who asks looks for them with the host's tools.
pub fn pids(shim: &Shim, request: &PidsRequest) -> Result<PidsResponse, TaskError> {
    let task = shim.task(&request.id)?;
    let alive = task.init.exit().is_none();
    let processes = alive.then(|| ProcessInfo { pid: task.pid, ..Default::default() }).into_iter().collect();
    Ok(PidsResponse { processes, ..Default::default() })
}

/// Waits for the end of a process.
pub async fn wait(shim: &Shim, request: &WaitRequest) -> Result<WaitResponse, TaskError> {
    let (_, process) = shim.process(&request.id, &request.exec_id)?;
    let exit = process.exited().await;
    let exited_at = MessageField::some(exit.timestamp());
    Ok(WaitResponse { exit_status: exit.status, exited_at, ..Default::default() })
}

/// Who serves. As with containerd's own shims, an unknown task is no error.
pub fn connect(shim: &Shim, request: &ConnectRequest) -> ConnectResponse {
    ConnectResponse {
        shim_pid: std::process::id(),
        task_pid: shim.task(&request.id).map_or(0, |task| task.pid),
        version: env!("CARGO_PKG_VERSION").into(),
        ..Default::default()
    }
}
