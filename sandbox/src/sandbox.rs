//! One VM with its agent: boot, readiness, teardown.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hull_protocol::agent::{ConfigureNetworkRequest, ConfigureSandboxRequest, Empty};
use hull_protocol::agent_ttrpc::AgentClient;
use hull_protocol::{BOOT_TOKEN_PARAMETER, GUEST_CID, READY_PORT, SHARE_TAG, STREAM_PORT, Token};
use hull_vmm::config::{
    BootSource, Console, Drive, Entropy, MachineConfig, MemoryHotplug, Share, ShareCache, VmConfig, Vsock, Watchdog,
};
use tokio::time::{sleep, timeout};

use crate::agent::{self, AgentError, AgentErrorKind, CALL_TIMEOUT};
use crate::block_devices::BlockDevices;
use crate::error::SandboxError;
use crate::host_cgroup::HostCgroup;
use crate::machine::Machine;
use crate::monitor::{ConfigPipe, Monitor, VmEnd};
use crate::network::{Attached, HostNetwork, Interface, NetworkNamespace};
use crate::runtime_dir::{RuntimeDir, RuntimeRoot, SandboxRecord, SandboxStatus};
use crate::shared_dir::SharedDir;
use crate::timeline::{Timeline, now_ns};
use crate::token_gate::{Pending, TokenGate};
use crate::volume::Volumes;

/// How long a guest may take until its agent reports.
pub const READY_TIMEOUT: Duration = Duration::from_secs(60);
/// Variable that gives a guest more or less time than [`READY_TIMEOUT`], in seconds: for hosts that are very slow.
const READY_TIMEOUT_VARIABLE: &str = "HULL_BOOT_TIMEOUT";
/// How long a monitor may take to end when it is asked to.
const TERMINATE_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a killed process may take to be gone.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the guest may take to power off by itself.
const POWER_OFF_TIMEOUT: Duration = Duration::from_secs(10);
/// A lost connection mostly means that the VM ends: how long to wait for the reason.
const REASON_TIMEOUT: Duration = Duration::from_secs(6);

/// The agent may have to wait for an earlier change of the machine.
const NETWORK_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a guest may take on this host: `usual`, unless `$HULL_BOOT_TIMEOUT` says otherwise.
pub fn ready_timeout(usual: Duration) -> Duration {
    std::env::var(READY_TIMEOUT_VARIABLE)
        .ok()
        .and_then(|text| text.parse().ok())
        .filter(|seconds| (1..=3600).contains(seconds))
        .map_or(usual, Duration::from_secs)
}

pub(crate) const VSOCK_NAME: &str = "v";
pub(crate) const CONTROL_NAME: &str = "api";

/// What a sandbox is made of.
#[derive(Debug, Clone)]
pub struct SandboxConfig {
    /// Its entry in the runtime directory; processors and memory of the VM stand here.
    pub record: SandboxRecord,
    /// Processors that the VM can have in use later, at least as many as at the start.
    pub max_vcpus: u8,
    /// Where it is recorded.
    pub root: RuntimeRoot,
    /// The monitor's program.
    pub monitor: PathBuf,
    /// Guest kernel.
    pub kernel: PathBuf,
    /// Guest initramfs.
    pub initramfs: PathBuf,
    /// Disks.
    pub drives: Vec<Drive>,
    /// Share a directory with the guest, in which bundles can be mounted ([`Sandbox::create_bundle`]). Needs root.
    pub shared_directory: bool,
    /// Whether a guest that hangs is ended.
    pub watchdog: bool,
    /// Where the monitor lives, and so whose interfaces the guest gets. Other than the caller's: needs root.
    pub network: NetworkNamespace,
    /// Where what the monitor uses is counted. It exists. `None`: where this process is.
    pub cgroup: Option<HostCgroup>,
    /// How long the guest may take until its agent reports.
    pub ready_timeout: Duration,
}

/// What all containers of a sandbox share.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SandboxSettings {
    /// Host name of every container without a UTS namespace of its own. Empty: as it is.
    pub hostname: String,
    /// Kernel settings by name, as in `net.ipv4.ip_forward`.
    pub sysctls: HashMap<String, String>,
    /// Size of the memory that containers share as `/dev/shm`. 0: half of the guest's memory, if a container wants it.
    pub shm_size_bytes: u64,
}

/// A running VM whose agent answers.
///
/// [`Sandbox::shutdown`] waits until nothing is left. Dropping kills the monitor and removes the directory too, but does
/// not wait.
pub struct Sandbox {
    shared: Arc<Shared>,
    dir: RuntimeDir,
    record: SandboxRecord,
}

/// What containers and processes need of their sandbox.
pub(crate) struct Shared {
    pub(crate) agent: AgentClient,
    pub(crate) machine: Machine,
    pub(crate) monitor: Monitor,
    pub(crate) streams: TokenGate,
    pub(crate) timeline: Arc<Timeline>,
    pub(crate) directory: Option<SharedDir>,
    pub(crate) network: Option<Attached>,
    pub(crate) volumes: Volumes,
    pub(crate) block_devices: BlockDevices,
}

/// What a VM whose agent answers consists of.
struct Booted {
    dir: RuntimeDir,
    directory: Option<SharedDir>,
    streams: TokenGate,
    agent: AgentClient,
    network: Option<Attached>,
}

impl Sandbox {
    /// Boots a VM and returns when its agent answers. On an error nothing is left behind.
    pub async fn create(config: SandboxConfig, timeline: Arc<Timeline>) -> Result<Self, SandboxError> {
        // The monitor first: from then on the directory goes away even if this process is killed right after it made it.
        let path = config.root.path().join(&config.record.id);
        timeline.mark("monitor spawned");
        let (monitor, pipe) =
            Monitor::spawn(&config.monitor, &path, &config.record.id, &config.network, Arc::clone(&timeline))?;
        let Booted { dir, directory, streams, agent, network } =
            match Self::boot(&config, &monitor, pipe, &timeline).await {
                Ok(booted) => booted,
                Err(error) => {
                    monitor.kill();
                    let _ = timeout(KILL_TIMEOUT, monitor.ended()).await;
                    return Err(error);
                }
            };
        let record = SandboxRecord { monitor_pid: monitor.pid(), ..config.record };
        let machine = Machine::new(agent.clone(), dir.path(), record.max_memory_mib);
        let block_devices = BlockDevices::new(machine.clone());
        let volumes = Volumes::default();
        let shared = Shared { agent, machine, monitor, streams, timeline, directory, network, volumes, block_devices };
        let sandbox = Self { shared: Arc::new(shared), dir, record };
        match sandbox.attach_network().await {
            Ok(()) => Ok(sandbox),
            Err(error) => {
                sandbox.shutdown().await;
                Err(error)
            }
        }
    }

    /// Makes the directory with its sockets, and tells the monitor what to boot.
    async fn boot(
        config: &SandboxConfig,
        monitor: &Monitor,
        pipe: ConfigPipe,
        timeline: &Timeline,
    ) -> Result<Booted, SandboxError> {
        if let Some(cgroup) = &config.cgroup {
            // Before it has the guest's memory, which would be counted where it was until then.
            cgroup.enter(monitor.pid())?;
        }
        let dir = make_directory(config).await?;
        // Before the monitor opens it.
        let directory = config.shared_directory.then(|| SharedDir::create(dir.path())).transpose()?;
        let socket = |port: u32| dir.path().join(format!("{VSOCK_NAME}_{port}"));
        let ready = TokenGate::listen(&socket(READY_PORT))?;
        let streams = TokenGate::listen(&socket(STREAM_PORT))?;
        let host = host_network(&config.network, monitor)?;
        let interfaces = match &host {
            Some(host) => {
                host.refuse_shared().await?;
                host.survey().await?.interfaces
            }
            None => Vec::new(),
        };
        let mut pending = ready.expect()?;
        let vm = vm_config(config, dir.path(), pending.token(), &interfaces);
        pipe.send(&vm).map_err(|source| SandboxError::Spawn { program: config.monitor.clone(), source })?;
        let agent = bring_up(config, dir.path(), monitor, &mut pending, timeline).await?;
        let network = host.map(|host| Attached::new(host, interfaces));
        Ok(Booted { dir, directory, streams, agent, network })
    }

    /// Its entry in the runtime directory.
    pub fn record(&self) -> &SandboxRecord {
        &self.record
    }

    /// Boot phases.
    pub fn timeline(&self) -> &Arc<Timeline> {
        &self.shared.timeline
    }

    /// Records that its container runs.
    pub fn mark_running(&mut self) -> Result<(), SandboxError> {
        self.record.status = SandboxStatus::Running;
        self.dir.write_record(&self.record)
    }

    /// Sets what all containers share; before the first one is made.
    pub async fn configure(&self, settings: SandboxSettings) -> Result<(), SandboxError> {
        let request = ConfigureSandboxRequest {
            hostname: settings.hostname,
            sysctls: settings.sysctls,
            shm_size_bytes: settings.shm_size_bytes,
            ..Default::default()
        };
        let configure = self.shared.agent.configure_sandbox(ttrpc::context::with_duration(CALL_TIMEOUT), &request);
        self.shared.call("ConfigureSandbox", CALL_TIMEOUT, configure).await.map(drop)
    }

    /// Makes the guest's network what `network` says, whatever it was before; also after an interface was plugged.
    pub async fn configure_network(&self, network: ConfigureNetworkRequest) -> Result<(), SandboxError> {
        self.shared.configure_network(network).await
    }

    /// Waits until the VM has ended, and says how.
    pub async fn ended(&self) -> Arc<VmEnd> {
        self.shared.monitor.ended().await
    }

    /// As [`Sandbox::ended`], without holding the sandbox.
    pub fn watch_end(&self) -> impl Future<Output = Arc<VmEnd>> + Send + use<> {
        self.shared.monitor.watch()
    }

    /// Powers the VM off through its agent, so that its disks are in order, then tears down as [`Sandbox::shutdown`].
    pub async fn power_off(self) -> Arc<VmEnd> {
        let context = ttrpc::context::with_duration(CALL_TIMEOUT);
        let power_off = async {
            let _ = self.shared.agent.shutdown(context, &Empty::default()).await;
            self.shared.monitor.ended().await
        };
        let _ = timeout(POWER_OFF_TIMEOUT, power_off).await;
        self.shutdown().await
    }

    /// Asks the VM to end, so that nobody waits for its guest any more; [`Sandbox::shutdown`] sees to it.
    pub fn terminate(&self) {
        self.shared.monitor.terminate();
    }

    /// Ends the VM at once and returns when its process and its directory are gone. Writable disks may lose what the guest
    /// has not written back.
    pub async fn shutdown(self) -> Arc<VmEnd> {
        let monitor = &self.shared.monitor;
        if monitor.end().is_none() {
            monitor.terminate();
            if timeout(TERMINATE_TIMEOUT, monitor.ended()).await.is_err() {
                monitor.kill();
                let _ = timeout(KILL_TIMEOUT, monitor.ended()).await;
            }
        }
        monitor.end().unwrap_or_default()
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }
}

impl Shared {
    pub(crate) async fn configure_network(&self, network: ConfigureNetworkRequest) -> Result<(), SandboxError> {
        let context = ttrpc::context::with_duration(NETWORK_TIMEOUT);
        let configure = self.agent.configure_network(context, &network);
        self.call("ConfigureNetwork", NETWORK_TIMEOUT, configure).await.map(drop)
    }

    /// Waits for a call's answer, or for the end of the VM, or for `limit`.
    pub(crate) async fn call<T>(
        &self,
        what: &str,
        limit: Duration,
        call: impl Future<Output = ttrpc::Result<T>>,
    ) -> Result<T, SandboxError> {
        // ttrpc has the same limit; this one also counts what happens before its own begins.
        let answer = timeout(limit + Duration::from_secs(1), self.unbounded_call(what, limit, call)).await;
        answer.unwrap_or_else(|_| {
            let status = ttrpc::get_status(ttrpc::Code::DEADLINE_EXCEEDED, "");
            Err(AgentError::from_ttrpc(what, limit, ttrpc::Error::RpcStatus(status)).into())
        })
    }

    /// As [`Shared::call`], for calls that wait for something in the guest.
    pub(crate) async fn unbounded_call<T>(
        &self,
        what: &str,
        limit: Duration,
        call: impl Future<Output = ttrpc::Result<T>>,
    ) -> Result<T, SandboxError> {
        let error = tokio::select! {
            biased;
            result = call => match result {
                Ok(answer) => return Ok(answer),
                Err(error) => AgentError::from_ttrpc(what, limit, error),
            },
            end = self.monitor.ended() => return Err(SandboxError::VmEnded(end)),
        };
        Err(explain(&self.monitor, error).await)
    }
}

/// A lost connection is explained by the end of the VM, if that is the reason.
async fn explain(monitor: &Monitor, error: AgentError) -> SandboxError {
    if error.kind == AgentErrorKind::Disconnected
        && let Ok(end) = timeout(REASON_TIMEOUT, monitor.ended()).await
    {
        return SandboxError::VmEnded(end);
    }
    error.into()
}

async fn bring_up(
    config: &SandboxConfig,
    dir: &Path,
    monitor: &Monitor,
    ready: &mut Pending,
    timeline: &Timeline,
) -> Result<AgentClient, SandboxError> {
    let ready = async {
        match ready.connection().await {
            Some(_) => (),
            // The gate lives as long as this call; never.
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        biased;
        () = ready => (),
        end = monitor.ended() => return Err(SandboxError::VmEnded(end)),
        () = sleep(config.ready_timeout) => return Err(SandboxError::NotReady(config.ready_timeout)),
    }
    let ready_at_ns = now_ns();
    timeline.mark_at("agent ready", ready_at_ns);
    let uds = dir.join(VSOCK_NAME);
    let (agent, hello) = tokio::select! {
        biased;
        result = agent::connect(&uds) => match result {
            Ok(connected) => connected,
            Err(error) => return Err(explain(monitor, error).await),
        },
        end = monitor.ended() => return Err(SandboxError::VmEnded(end)),
    };
    // The guest's clock starts with its kernel: only the distance between its two points can be compared with ours.
    if let Some(before_ns) = hello.agent_ready_ns.checked_sub(hello.agent_started_ns)
        && let Some(at_ns) = ready_at_ns.checked_sub(before_ns)
    {
        timeline.mark_at("agent started", at_ns);
    }
    timeline.mark("agent connected");
    tracing::debug!(agent = hello.agent_version, kernel = hello.kernel_release, "the guest answers");
    Ok(agent)
}

/// On a thread that may wait for the lock of the runtime directory.
async fn make_directory(config: &SandboxConfig) -> Result<RuntimeDir, SandboxError> {
    let (root, record) = (config.root.clone(), config.record.clone());
    let made = tokio::task::spawn_blocking(move || root.create(&record)).await;
    made.unwrap_or_else(|error| {
        Err(SandboxError::RuntimeDir { path: config.root.path().to_owned(), source: error.into() })
    })
}

/// The namespace that the monitor has entered, unless it is this process's.
fn host_network(namespace: &NetworkNamespace, monitor: &Monitor) -> Result<Option<HostNetwork>, SandboxError> {
    Ok(match namespace {
        NetworkNamespace::Host => None,
        NetworkNamespace::Path(path) => Some(HostNetwork::open(path)?),
        NetworkNamespace::New => Some(HostNetwork::open(&PathBuf::from(format!("/proc/{}/ns/net", monitor.pid())))?),
    })
}

fn vm_config(config: &SandboxConfig, dir: &Path, boot_token: Token, interfaces: &[Interface]) -> VmConfig {
    VmConfig {
        boot_source: BootSource {
            kernel_image_path: config.kernel.clone(),
            initrd_path: Some(config.initramfs.clone()),
            // The driver makes an interface of its own otherwise, which no container expects.
            boot_args: format!("{BOOT_TOKEN_PARAMETER}={boot_token} dummy.numdummies=0"),
        },
        machine_config: MachineConfig {
            vcpu_count: config.record.vcpus,
            max_vcpu_count: Some(config.max_vcpus).filter(|max| *max > config.record.vcpus),
            mem_size_mib: config.record.memory_mib,
            ..MachineConfig::default()
        },
        drives: config.drives.clone(),
        network_interfaces: interfaces.iter().map(Interface::device).collect(),
        shares: config.shared_directory.then(|| share(dir)).into_iter().collect(),
        vsock: Some(Vsock { guest_cid: GUEST_CID, uds_path: dir.join(VSOCK_NAME), ..Vsock::default() }),
        entropy: Some(Entropy {}),
        watchdog: config.watchdog.then(Watchdog::default),
        balloon: None,
        memory_hotplug: MemoryHotplug::up_to(config.record.max_memory_mib, config.record.memory_mib),
        pmem: Vec::new(),
        console: Some(Console { to_stderr: tracing::enabled!(tracing::Level::DEBUG), ..Console::default() }),
        control_socket: Some(dir.join(CONTROL_NAME)),
    }
}

/// The host changes what it shares too: volumes, configuration. The guest sees that a second later at the latest, the content of
/// a file when it is opened.
fn share(dir: &Path) -> Share {
    Share {
        tag: SHARE_TAG.into(),
        path_on_host: SharedDir::export(dir),
        is_read_only: false,
        cache: ShareCache::Auto,
        writeback: false,
        xattr: true,
        uid_map: Vec::new(),
        gid_map: Vec::new(),
    }
}
