//! Containers of a sandbox and their processes.

use std::mem;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hull_protocol::agent::container_state_response::Status;
use hull_protocol::agent::{
    CloseStdinRequest, ContainerStateRequest, ContainerStateResponse, ContainerStatsRequest, ContainerStatsResponse,
    CreateContainerRequest, DeleteContainerRequest, ExecProcessRequest, InjectedFile as InjectedFileMessage,
    PauseContainerRequest, ResizeTerminalRequest, ResumeContainerRequest, RootFilesystem, SignalProcessRequest,
    StartContainerRequest, Streams, TerminalSize as TerminalSizeMessage, UpdateContainerRequest, WaitOomRequest,
    WaitProcessRequest,
};
use oci_spec::runtime::LinuxResources;
use protobuf::MessageField;
use serde::{Deserialize, Serialize};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::agent::{AgentErrorKind, CALL_TIMEOUT, CREATE_TIMEOUT};
use crate::block_devices::Key;
use crate::bundle;
use crate::error::SandboxError;
use crate::sandbox::{Sandbox, Shared};
use crate::shared_dir::ContainerMounts;
use crate::token_gate::Pending;
use crate::volume::Watch;

pub use hull_protocol::agent::{ContainerStatsResponse as ContainerStats, DeviceIo};

const SIGKILL: u32 = libc::SIGKILL.unsigned_abs();

/// How long the agent may take to connect the streams of a process that it has made.
const STREAM_TIMEOUT: Duration = Duration::from_secs(30);
/// How long it may take to end and forget a process that nobody wants.
const DISCARD_TIMEOUT: Duration = Duration::from_secs(10);

/// What the agent needs to make a container.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ContainerConfig {
    /// Identifier, unique in the sandbox.
    pub id: String,
    /// OCI runtime specification as JSON.
    pub spec_json: String,
    /// Serial number of the disk with the image, an EROFS file system.
    pub image_serial: String,
    /// No writable layer.
    pub read_only: bool,
    /// `name`, `uid`, `name:group`, ...; empty for the specification's own.
    pub user: String,
    /// Run under an init process.
    pub use_init: bool,
    /// Files to write before it starts.
    pub files: Vec<InjectedFile>,
    /// Which streams.
    pub io: ProcessIo,
}

/// A file in the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InjectedFile {
    /// Absolute path in the container.
    pub path: String,
    /// Content.
    pub content: String,
    /// Permissions.
    pub mode: u32,
}

/// Which streams a process has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessIo {
    /// Standard input is connected.
    pub stdin: bool,
    /// A terminal takes the place of the three streams.
    pub terminal: Option<TerminalSize>,
}

/// Size of a terminal in characters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalSize {
    /// Width.
    pub columns: u16,
    /// Height.
    pub rows: u16,
}

impl TerminalSize {
    fn message(self) -> TerminalSizeMessage {
        TerminalSizeMessage { columns: self.columns.into(), rows: self.rows.into(), ..Default::default() }
    }
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// 0 to 255; 128 + n after signal n.
    pub status: u8,
    /// The signal that ended it, or 0.
    pub signal: u32,
    /// The kernel killed a process of the container for want of memory.
    pub oom_killed: bool,
    /// Guest's wall clock in nanoseconds since the epoch.
    pub exited_at_ns: u64,
}

/// What a container is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerState {
    /// Where it is on its way.
    pub status: ContainerStatus,
    /// Its first process, as the guest numbers it in its first pid namespace.
    pub pid: u32,
    /// Its processes, likewise.
    pub pids: Vec<u32>,
    /// Identifiers of processes that [`Container::exec`] started, ended ones too.
    pub exec_ids: Vec<String>,
}

/// Where a container is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContainerStatus {
    /// Its process waits for the start.
    Created,
    /// Its process runs.
    Running,
    /// Its processes stand still.
    Paused,
    /// Its process has ended.
    Stopped,
}

impl ContainerState {
    fn new(answer: ContainerStateResponse) -> Result<Self, SandboxError> {
        let status = match answer.status.enum_value() {
            Ok(Status::CREATED) => ContainerStatus::Created,
            Ok(Status::RUNNING) => ContainerStatus::Running,
            Ok(Status::PAUSED) => ContainerStatus::Paused,
            Ok(Status::STOPPED) => ContainerStatus::Stopped,
            Ok(Status::UNKNOWN) | Err(_) => return Err(SandboxError::Nonsense("ContainerState")),
        };
        Ok(Self { status, pid: answer.pid, pids: answer.pids, exec_ids: answer.exec_ids })
    }
}

/// The connected streams of a process.
#[derive(Debug)]
pub struct ProcessStreams {
    /// Where its standard input is written.
    pub stdin: Option<UnixStream>,
    /// Where its standard output, or its terminal, is read.
    pub stdout: Option<UnixStream>,
    /// Where its standard error is read.
    pub stderr: Option<UnixStream>,
}

/// A container that was created.
pub struct Container {
    init: Process,
    /// What it has on the host, if it is of a bundle.
    host: Option<Arc<Mutex<HostParts>>>,
}

/// What a container of a bundle has on the host.
pub(crate) struct HostParts {
    /// Its file systems.
    pub(crate) mounts: ContainerMounts,
    /// Those of them that the guest has copies of.
    pub(crate) volumes: Option<Watch>,
    /// Block devices.
    pub(crate) block_devices: Vec<Key>,
}

impl HostParts {
    /// Lets go of it. What fails can be tried again.
    fn remove(&mut self) -> Result<(), SandboxError> {
        self.volumes = None;
        Ok(self.mounts.remove()?)
    }
}

/// A process in a container.
pub struct Process {
    shared: Arc<Shared>,
    container_id: String,
    /// Empty for the container's first process.
    exec_id: String,
}

impl Sandbox {
    /// Makes a container whose process waits for [`Container::start`].
    pub async fn create_container(&self, config: ContainerConfig) -> Result<(Container, ProcessStreams), SandboxError> {
        let request = CreateContainerRequest {
            container_id: config.id,
            oci_spec_json: config.spec_json.into_bytes(),
            rootfs: MessageField::some(RootFilesystem {
                image_serial: config.image_serial,
                image_type: "erofs".into(),
                read_only: config.read_only,
                ..Default::default()
            }),
            user: config.user,
            use_init: config.use_init,
            files: config.files.into_iter().map(injected).collect(),
            ..Default::default()
        };
        self.request_container(request, config.io, None).await
    }

    /// Makes a container; `host` is what it has on the host, which goes with it or at once if it isn't made.
    pub(crate) async fn request_container(
        &self,
        mut request: CreateContainerRequest,
        io: ProcessIo,
        host: Option<HostParts>,
    ) -> Result<(Container, ProcessStreams), SandboxError> {
        let shared = self.shared();
        let expected = ExpectedStreams::new(shared, io)?;
        request.streams = MessageField::some(expected.message());
        request.terminal_size = io.terminal.map(TerminalSize::message).into();
        let context = ttrpc::context::with_duration(CREATE_TIMEOUT);
        let create = async {
            shared.call("CreateContainer", CREATE_TIMEOUT, shared.agent.create_container(context, &request)).await?;
            shared.timeline.mark("container created");
            expected.connected(shared).await
        };
        let made = create.await;
        let init = Process { shared: Arc::clone(shared), container_id: request.container_id, exec_id: String::new() };
        // Without the container nothing uses the mounts, which go now.
        let streams = init.unless_failed(made).await?;
        if let Some(volumes) = host.as_ref().and_then(|host| host.volumes.as_ref()) {
            volumes.container_is_there();
        }
        Ok((Container { init, host: host.map(|host| Arc::new(Mutex::new(host))) }, streams))
    }
}

impl Container {
    /// Its first process.
    pub fn process(&self) -> &Process {
        &self.init
    }

    /// Lets its process run.
    pub async fn start(&self) -> Result<(), SandboxError> {
        let request = StartContainerRequest { container_id: self.init.container_id.clone(), ..Default::default() };
        let shared = &self.init.shared;
        let start = shared.agent.start_container(context(), &request);
        shared.call("StartContainer", CALL_TIMEOUT, start).await?;
        shared.timeline.mark("container started");
        Ok(())
    }

    /// Starts another process in it. `process_json` is the `process` object of an OCI runtime specification.
    pub async fn exec(
        &self,
        exec_id: &str,
        process_json: String,
        user: &str,
        io: ProcessIo,
    ) -> Result<(Process, ProcessStreams), SandboxError> {
        let shared = &self.init.shared;
        let expected = ExpectedStreams::new(shared, io)?;
        let request = ExecProcessRequest {
            container_id: self.init.container_id.clone(),
            exec_id: exec_id.into(),
            oci_process_json: process_json.into_bytes(),
            streams: MessageField::some(expected.message()),
            terminal_size: io.terminal.map(TerminalSize::message).into(),
            user: user.into(),
            ..Default::default()
        };
        let context = ttrpc::context::with_duration(CREATE_TIMEOUT);
        let exec = async {
            shared.call("ExecProcess", CREATE_TIMEOUT, shared.agent.exec_process(context, &request)).await?;
            expected.connected(shared).await
        };
        let made = exec.await;
        let (container_id, exec_id) = (self.init.container_id.clone(), exec_id.to_owned());
        let process = Process { shared: Arc::clone(shared), container_id, exec_id };
        let streams = process.unless_failed(made).await?;
        Ok((process, streams))
    }

    /// Stops every process of it where it is.
    pub async fn pause(&self) -> Result<(), SandboxError> {
        let request = PauseContainerRequest { container_id: self.init.container_id.clone(), ..Default::default() };
        let shared = &self.init.shared;
        // The agent gives processes that wait in the kernel their time.
        let context = ttrpc::context::with_duration(CREATE_TIMEOUT);
        let pause = shared.agent.pause_container(context, &request);
        shared.call("PauseContainer", CREATE_TIMEOUT, pause).await.map(drop)
    }

    /// Lets them go on.
    pub async fn resume(&self) -> Result<(), SandboxError> {
        let request = ResumeContainerRequest { container_id: self.init.container_id.clone(), ..Default::default() };
        let shared = &self.init.shared;
        let resume = shared.agent.resume_container(context(), &request);
        shared.call("ResumeContainer", CALL_TIMEOUT, resume).await.map(drop)
    }

    /// Changes limits; all that are named, or none. Those of a bundle are the host's and are translated as its specification
    /// was.
    pub async fn update(&self, resources: &LinuxResources) -> Result<(), SandboxError> {
        let translated = self.host.is_some().then(|| bundle::guest_resources(resources));
        let json = serde_json::to_vec(translated.as_ref().unwrap_or(resources)).map_err(SandboxError::Specification)?;
        let request = UpdateContainerRequest {
            container_id: self.init.container_id.clone(),
            oci_resources_json: json,
            ..Default::default()
        };
        let shared = &self.init.shared;
        let update = shared.agent.update_container(context(), &request);
        shared.call("UpdateContainer", CALL_TIMEOUT, update).await.map(drop)
    }

    /// Waits until the guest's kernel has killed processes of the container for want of memory more often than `seen` times,
    /// and tells how often by now. Fails when the container is deleted or the VM ends.
    pub async fn wait_oom(&self, seen: u64) -> Result<u64, SandboxError> {
        let request =
            WaitOomRequest { container_id: self.init.container_id.clone(), seen_kills: seen, ..Default::default() };
        let shared = &self.init.shared;
        let wait = shared.agent.wait_oom(ttrpc::context::Context::default(), &request);
        // A guest that answers without news would be asked again and again.
        match shared.unbounded_call("WaitOom", Duration::ZERO, wait).await?.kills {
            kills if kills > seen => Ok(kills),
            _ => Err(SandboxError::Nonsense("WaitOom")),
        }
    }

    /// What it is doing.
    pub async fn state(&self) -> Result<ContainerState, SandboxError> {
        let request = ContainerStateRequest { container_id: self.init.container_id.clone(), ..Default::default() };
        let shared = &self.init.shared;
        let state = shared.agent.container_state(context(), &request);
        ContainerState::new(shared.call("ContainerState", CALL_TIMEOUT, state).await?)
    }

    /// Its processes, as the guest numbers them in its first pid namespace.
    pub async fn pids(&self) -> Result<Vec<u32>, SandboxError> {
        Ok(self.state().await?.pids)
    }

    /// What it uses.
    pub async fn stats(&self) -> Result<ContainerStatsResponse, SandboxError> {
        let request = ContainerStatsRequest { container_id: self.init.container_id.clone(), ..Default::default() };
        let shared = &self.init.shared;
        let stats = shared.agent.container_stats(context(), &request);
        shared.call("ContainerStats", CALL_TIMEOUT, stats).await
    }

    /// Removes it; with `force` also if it runs. What was mounted for it on the host goes too, also if its VM has ended.
    pub async fn delete(&self, force: bool) -> Result<(), SandboxError> {
        let deleted = match self.init.delete(force).await {
            Err(error) if !matches!(error, SandboxError::VmEnded(_)) && !is_gone(&error) => return Err(error),
            deleted => deleted,
        };
        if let Some(host) = &self.host {
            let mounted = Arc::clone(host);
            let remove = move || mounted.lock().unwrap_or_else(PoisonError::into_inner).remove();
            let removed = tokio::task::spawn_blocking(remove).await;
            removed.unwrap_or(Ok(()))?;
            let devices = mem::take(&mut host.lock().unwrap_or_else(PoisonError::into_inner).block_devices);
            if !matches!(deleted, Err(SandboxError::VmEnded(_))) {
                self.init.shared.block_devices.release(&devices).await;
            }
        }
        deleted
    }
}

impl Process {
    /// Waits until it has ended and its output has been handed to its streams, or for the VM's end.
    pub async fn wait(&self) -> Result<Exit, SandboxError> {
        self.request_end(false).await
    }

    /// Waits for its end, or for the VM's. Its output goes on coming, however late it is read.
    pub async fn wait_for_end(&self) -> Result<Exit, SandboxError> {
        self.request_end(true).await
    }

    async fn request_end(&self, end_only: bool) -> Result<Exit, SandboxError> {
        let request = WaitProcessRequest {
            container_id: self.container_id.clone(),
            exec_id: self.exec_id.clone(),
            end_only,
            ..Default::default()
        };
        let wait = self.shared.agent.wait_process(ttrpc::context::Context::default(), &request);
        let answer = self.shared.unbounded_call("WaitProcess", Duration::ZERO, wait).await?;
        Ok(Exit {
            status: u8::try_from(answer.exit_status).unwrap_or(u8::MAX),
            signal: answer.signal,
            oom_killed: answer.oom_killed,
            exited_at_ns: answer.exited_at_ns,
        })
    }

    /// Sends it a signal; with `all` to every process of the container.
    pub async fn signal(&self, signal: u32, all: bool) -> Result<(), SandboxError> {
        let request = SignalProcessRequest {
            container_id: self.container_id.clone(),
            exec_id: self.exec_id.clone(),
            signal,
            all,
            ..Default::default()
        };
        let call = self.shared.agent.signal_process(context(), &request);
        self.shared.call("SignalProcess", CALL_TIMEOUT, call).await?;
        Ok(())
    }

    /// Tells its terminal a new size.
    pub async fn resize(&self, size: TerminalSize) -> Result<(), SandboxError> {
        let request = ResizeTerminalRequest {
            container_id: self.container_id.clone(),
            exec_id: self.exec_id.clone(),
            size: MessageField::some(size.message()),
            ..Default::default()
        };
        let call = self.shared.agent.resize_terminal(context(), &request);
        self.shared.call("ResizeTerminal", CALL_TIMEOUT, call).await?;
        Ok(())
    }

    /// Closes its standard input once what was written before has arrived.
    pub async fn close_stdin(&self) -> Result<(), SandboxError> {
        let request = CloseStdinRequest {
            container_id: self.container_id.clone(),
            exec_id: self.exec_id.clone(),
            ..Default::default()
        };
        let call = self.shared.agent.close_stdin(context(), &request);
        self.shared.call("CloseStdin", CALL_TIMEOUT, call).await?;
        Ok(())
    }

    /// Ends it and forgets it, a container with all of its processes, as far as the guest does so within some seconds: for
    /// one that nobody wants.
    pub async fn discard(&self) {
        let discard = async {
            if !self.exec_id.is_empty() {
                self.signal(SIGKILL, false).await?;
                self.wait_for_end().await?;
            }
            self.delete(true).await
        };
        match timeout(DISCARD_TIMEOUT, discard).await {
            Ok(Ok(())) => (),
            Ok(Err(error)) => tracing::debug!(%error, "a process that nobody wants was not deleted in the guest"),
            Err(_) => tracing::warn!("a process that nobody wants may run on in the guest"),
        }
    }

    /// What came of the request to make it. One that may be there although the request failed is discarded; the error is the
    /// one to tell.
    async fn unless_failed(&self, made: Result<ProcessStreams, SandboxError>) -> Result<ProcessStreams, SandboxError> {
        let may_be_there = match &made {
            Err(SandboxError::StreamMissing(_)) => true,
            Err(SandboxError::Agent(error)) => error.kind == AgentErrorKind::TimedOut,
            _ => false,
        };
        if may_be_there {
            self.discard().await;
        }
        made
    }

    /// Forgets it after its end.
    pub async fn delete(&self, force: bool) -> Result<(), SandboxError> {
        let request = DeleteContainerRequest {
            container_id: self.container_id.clone(),
            exec_id: self.exec_id.clone(),
            force,
            ..Default::default()
        };
        let call = self.shared.agent.delete_container(context(), &request);
        self.shared.call("DeleteContainer", CALL_TIMEOUT, call).await?;
        Ok(())
    }
}

/// The agent knows no such container.
fn is_gone(error: &SandboxError) -> bool {
    matches!(error, SandboxError::Agent(error) if error.kind == AgentErrorKind::NotFound)
}

fn context() -> ttrpc::context::Context {
    ttrpc::context::with_duration(CALL_TIMEOUT)
}

fn injected(file: InjectedFile) -> InjectedFileMessage {
    InjectedFileMessage { path: file.path, content: file.content.into_bytes(), mode: file.mode, ..Default::default() }
}

/// Tokens that were issued for the streams of one process.
struct ExpectedStreams {
    stdin: Option<Pending>,
    stdout: Option<Pending>,
    stderr: Option<Pending>,
}

impl ExpectedStreams {
    fn new(shared: &Shared, io: ProcessIo) -> Result<Self, SandboxError> {
        let expect = |wanted: bool| wanted.then(|| shared.streams.expect()).transpose();
        Ok(Self { stdin: expect(io.stdin)?, stdout: expect(true)?, stderr: expect(io.terminal.is_none())? })
    }

    fn message(&self) -> Streams {
        let token = |pending: &Option<Pending>| match pending {
            Some(pending) => pending.token().as_bytes().to_vec(),
            None => Vec::new(),
        };
        Streams {
            stdin: token(&self.stdin),
            stdout: token(&self.stdout),
            stderr: token(&self.stderr),
            ..Default::default()
        }
    }

    async fn connected(self, shared: &Shared) -> Result<ProcessStreams, SandboxError> {
        let all = async {
            Ok(ProcessStreams {
                stdin: connection("standard input", self.stdin).await?,
                stdout: connection("standard output", self.stdout).await?,
                stderr: connection("standard error", self.stderr).await?,
            })
        };
        tokio::select! {
            biased;
            streams = all => streams,
            end = shared.monitor.ended() => Err(SandboxError::VmEnded(end)),
        }
    }
}

async fn connection(name: &'static str, pending: Option<Pending>) -> Result<Option<UnixStream>, SandboxError> {
    let Some(mut pending) = pending else {
        return Ok(None);
    };
    match timeout(STREAM_TIMEOUT, pending.connection()).await {
        Ok(Some(stream)) => Ok(Some(stream)),
        _ => Err(SandboxError::StreamMissing(name)),
    }
}
