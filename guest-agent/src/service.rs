//! The ttrpc service: requests in, answers and codes out.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use hull_protocol::{PROTOCOL_VERSION, agent, agent_ttrpc};
use ttrpc::Result;
use ttrpc::asynchronous::TtrpcContext;

use crate::cgroup::{self, limits};
use crate::container::{Container, Registry, Status};
use crate::failure::Failure;
use crate::init::watchdog::Watchdog;
use crate::init::{clock, power};
use crate::machine::Machine;
use crate::names::Names;
use crate::process::Exit;
use crate::reaper::Reaper;
use crate::{forward, sandbox, sys};

/// Time for the answer to a shutdown to leave the machine.
const ANSWER_TIME: Duration = Duration::from_millis(20);

/// The agent's service.
#[derive(Clone)]
pub struct Service(Arc<State>);

struct State {
    containers: Registry,
    machine: Machine,
    names: Names,
    watchdog: Option<Arc<Watchdog>>,
    started_ns: u64,
    ready_ns: AtomicU64,
}

impl Service {
    /// A service without containers. `started_ns` is the time since boot of the agent's first instruction.
    pub fn new(reaper: Reaper, started_ns: u64, watchdog: Option<Arc<Watchdog>>) -> Self {
        // The path after the change of root is the one before.
        let program = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("/init"));
        Self(Arc::new(State {
            containers: Registry::new(reaper, program),
            machine: Machine::new(),
            names: Names::default(),
            watchdog,
            started_ns,
            ready_ns: AtomicU64::new(0),
        }))
    }

    /// Notes the time since boot at which the host is told that the agent is ready.
    pub fn ready(&self, ready_ns: u64) {
        self.0.ready_ns.store(ready_ns, Ordering::Relaxed);
    }

    fn container(&self, id: &str) -> std::result::Result<Arc<Container>, Failure> {
        self.0.containers.get(id)
    }
}

#[async_trait]
impl agent_ttrpc::Agent for Service {
    async fn hello(&self, _: &TtrpcContext, request: agent::HelloRequest) -> Result<agent::HelloResponse> {
        if request.protocol_version != PROTOCOL_VERSION {
            return Err(Failure::precondition(format!(
                "the host speaks protocol version {}, the agent {PROTOCOL_VERSION}",
                request.protocol_version
            ))
            .into());
        }
        clock::set(request.wall_clock_ns)?;
        clock::seed(&request.entropy)?;
        let kernel = nix::sys::utsname::uname().map(|names| names.release().to_string_lossy().into_owned());
        Ok(agent::HelloResponse {
            protocol_version: PROTOCOL_VERSION,
            agent_version: env!("CARGO_PKG_VERSION").to_string(),
            kernel_release: kernel.unwrap_or_default(),
            agent_started_ns: self.0.started_ns,
            agent_ready_ns: self.0.ready_ns.load(Ordering::Relaxed),
            ..Default::default()
        })
    }

    async fn create_container(
        &self,
        _: &TtrpcContext,
        request: agent::CreateContainerRequest,
    ) -> Result<agent::CreateContainerResponse> {
        let state = self.0.clone();
        let pid = to_the_end(async move { state.containers.create(request).await }).await?;
        Ok(agent::CreateContainerResponse { pid, ..Default::default() })
    }

    async fn start_container(&self, _: &TtrpcContext, request: agent::StartContainerRequest) -> Result<agent::Empty> {
        self.container(&request.container_id)?.start().await?;
        Ok(agent::Empty::new())
    }

    async fn exec_process(
        &self,
        _: &TtrpcContext,
        request: agent::ExecProcessRequest,
    ) -> Result<agent::ExecProcessResponse> {
        let state = self.0.clone();
        let pid = to_the_end(async move { state.containers.exec(request).await }).await?;
        Ok(agent::ExecProcessResponse { pid, ..Default::default() })
    }

    async fn signal_process(&self, _: &TtrpcContext, request: agent::SignalProcessRequest) -> Result<agent::Empty> {
        let container = self.container(&request.container_id)?;
        let signal = i32::try_from(request.signal)
            .ok()
            .filter(|number| (1..=sys::MAX_SIGNAL).contains(number))
            .ok_or_else(|| Failure::invalid(format!("no signal has the number {}", request.signal)))?;
        if request.all {
            container.signal_all(signal)?;
        } else {
            container.process(&request.exec_id)?.signal(signal)?;
        }
        Ok(agent::Empty::new())
    }

    async fn wait_process(
        &self,
        _: &TtrpcContext,
        request: agent::WaitProcessRequest,
    ) -> Result<agent::WaitProcessResponse> {
        let process = self.container(&request.container_id)?.process(&request.exec_id)?;
        let exit = if request.end_only { process.wait_for_end().await } else { process.wait().await };
        let Exit { ended, oom_killed } = exit?;
        Ok(agent::WaitProcessResponse {
            exit_status: ended.status,
            signal: ended.signal,
            oom_killed,
            exited_at_ns: ended.at_ns,
            ..Default::default()
        })
    }

    async fn resize_terminal(&self, _: &TtrpcContext, request: agent::ResizeTerminalRequest) -> Result<agent::Empty> {
        let process = self.container(&request.container_id)?.process(&request.exec_id)?;
        process.resize(request.size.columns, request.size.rows)?;
        Ok(agent::Empty::new())
    }

    async fn close_stdin(&self, _: &TtrpcContext, request: agent::CloseStdinRequest) -> Result<agent::Empty> {
        self.container(&request.container_id)?.process(&request.exec_id)?.close_stdin();
        Ok(agent::Empty::new())
    }

    async fn container_state(
        &self,
        _: &TtrpcContext,
        request: agent::ContainerStateRequest,
    ) -> Result<agent::ContainerStateResponse> {
        let container = self.container(&request.container_id)?;
        let status = match container.status() {
            Status::Created => agent::container_state_response::Status::CREATED,
            Status::Running => agent::container_state_response::Status::RUNNING,
            Status::Paused => agent::container_state_response::Status::PAUSED,
            Status::Stopped => agent::container_state_response::Status::STOPPED,
        };
        let init = container.init();
        let exit = init.exit();
        let pids = cgroup::pids(&cgroup::path(&request.container_id));
        Ok(agent::ContainerStateResponse {
            status: status.into(),
            pid: init.pid.as_raw().unsigned_abs(),
            exit_status: exit.map_or(0, |exit| exit.ended.status),
            oom_killed: exit.is_some_and(|exit| exit.oom_killed),
            pids: pids.iter().map(|pid| pid.as_raw().unsigned_abs()).collect(),
            exec_ids: container.exec_ids(),
            ..Default::default()
        })
    }

    async fn container_stats(
        &self,
        _: &TtrpcContext,
        request: agent::ContainerStatsRequest,
    ) -> Result<agent::ContainerStatsResponse> {
        self.container(&request.container_id)?;
        Ok(cgroup::stats(&cgroup::path(&request.container_id)))
    }

    async fn delete_container(&self, _: &TtrpcContext, request: agent::DeleteContainerRequest) -> Result<agent::Empty> {
        let state = self.0.clone();
        to_the_end(async move { state.containers.delete(request).await }).await?;
        Ok(agent::Empty::new())
    }

    async fn update_container(&self, _: &TtrpcContext, request: agent::UpdateContainerRequest) -> Result<agent::Empty> {
        self.container(&request.container_id)?;
        let resources = serde_json::from_slice(&request.oci_resources_json)
            .map_err(|error| Failure::invalid(format!("oci_resources_json: {error}")))?;
        limits::update(&cgroup::path(&request.container_id), &resources)?;
        Ok(agent::Empty::new())
    }

    async fn pause_container(&self, _: &TtrpcContext, request: agent::PauseContainerRequest) -> Result<agent::Empty> {
        self.container(&request.container_id)?.pause().await?;
        Ok(agent::Empty::new())
    }

    async fn resume_container(&self, _: &TtrpcContext, request: agent::ResumeContainerRequest) -> Result<agent::Empty> {
        self.container(&request.container_id)?.resume().await?;
        Ok(agent::Empty::new())
    }

    async fn wait_oom(&self, _: &TtrpcContext, request: agent::WaitOomRequest) -> Result<agent::WaitOomResponse> {
        let kills = self.container(&request.container_id)?.more_oom_kills(request.seen_kills).await?;
        Ok(agent::WaitOomResponse { kills, ..Default::default() })
    }

    async fn update_volume(&self, _: &TtrpcContext, request: agent::UpdateVolumeRequest) -> Result<agent::Empty> {
        self.0.containers.update_volume(request).await?;
        Ok(agent::Empty::new())
    }

    async fn configure_sandbox(
        &self,
        _: &TtrpcContext,
        request: agent::ConfigureSandboxRequest,
    ) -> Result<agent::Empty> {
        sandbox::configure(&request)?;
        Ok(agent::Empty::new())
    }

    async fn configure_network(
        &self,
        _: &TtrpcContext,
        request: agent::ConfigureNetworkRequest,
    ) -> Result<agent::Empty> {
        self.0.machine.configure_network(request).await?;
        Ok(agent::Empty::new())
    }

    async fn forward_port(&self, _: &TtrpcContext, request: agent::ForwardPortRequest) -> Result<agent::Empty> {
        forward::port(&request).await?;
        Ok(agent::Empty::new())
    }

    async fn next_name_query(&self, _: &TtrpcContext, _: agent::Empty) -> Result<agent::NameQuery> {
        Ok(self.0.names.next().await?)
    }

    async fn answer_name_query(&self, _: &TtrpcContext, answer: agent::NameAnswer) -> Result<agent::Empty> {
        self.0.names.answer(answer);
        Ok(agent::Empty::new())
    }

    async fn plug_device(&self, _: &TtrpcContext, request: agent::PlugDeviceRequest) -> Result<agent::Device> {
        Ok(self.0.machine.plug(request).await?)
    }

    async fn unplug_device(&self, _: &TtrpcContext, request: agent::UnplugDeviceRequest) -> Result<agent::Device> {
        Ok(self.0.machine.unplug(request).await?)
    }

    async fn list_devices(&self, _: &TtrpcContext, _: agent::Empty) -> Result<agent::ListDevicesResponse> {
        let devices = self.0.machine.devices().await?;
        Ok(agent::ListDevicesResponse { devices, ..Default::default() })
    }

    async fn set_online_cpus(
        &self,
        _: &TtrpcContext,
        request: agent::SetOnlineCpusRequest,
    ) -> Result<agent::MachineStateResponse> {
        Ok(self.0.machine.set_online_cpus(request.count).await?)
    }

    async fn machine_state(&self, _: &TtrpcContext, _: agent::Empty) -> Result<agent::MachineStateResponse> {
        Ok(self.0.machine.state().await?)
    }

    async fn shutdown(&self, _: &TtrpcContext, _: agent::Empty) -> Result<agent::Empty> {
        self.0.watchdog.iter().for_each(|watchdog| watchdog.stop());
        power::quiesce().await;
        tokio::spawn(async {
            tokio::time::sleep(ANSWER_TIME).await;
            power::off();
        });
        Ok(agent::Empty::new())
    }
}

/// Does work that must not stop half-way: ttrpc drops a request's handler at the caller's deadline, and what it had begun
/// would stay as it is.
async fn to_the_end<T: Send + 'static>(
    work: impl Future<Output = std::result::Result<T, Failure>> + Send + 'static,
) -> std::result::Result<T, Failure> {
    tokio::spawn(work).await.unwrap_or_else(|error| Err(Failure::internal(error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_goes_on_when_nobody_waits_for_it() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("runtime");
        runtime.block_on(async {
            let (go, gone) = tokio::sync::oneshot::channel();
            let (sender, done) = tokio::sync::oneshot::channel();
            let mut waiting = Box::pin(to_the_end(async move {
                gone.await.map_err(Failure::internal)?;
                sender.send(()).map_err(|()| Failure::internal("nobody looks"))
            }));
            assert!(futures::poll!(&mut waiting).is_pending());
            drop(waiting);
            go.send(()).expect("the work goes on");
            done.await.expect("the work comes to its end");
        });
    }
}
