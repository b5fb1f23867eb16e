//! A VM that changes while it runs: devices, processors, memory, limits of its containers.
//!
//! A change has two sides: the monitor's, over its control socket, and the guest's, over its agent. It counts when the guest
//! has acknowledged it; otherwise the monitor's side is undone.

mod device;
mod memory;

use std::path::Path;
use std::time::Duration;

use hull_protocol::agent::{Empty, MachineStateResponse, SetOnlineCpusRequest, UpdateContainerRequest};
use hull_protocol::agent_ttrpc::AgentClient;
use serde_json::{Map, Value, json};

use crate::agent::{self, AgentError, AgentErrorKind};
use crate::control::Control;
use crate::error::SandboxError;
use crate::parse::PERIOD_US;
use crate::runtime_dir::{RuntimeRoot, SandboxRecord, SandboxStatus};
use crate::sandbox::{CONTROL_NAME, Sandbox, VSOCK_NAME};

pub use device::{Device, DeviceKind};
pub use memory::MemoryChange;

/// How long the guest may take for a change. More than its agent takes at most.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(30);

/// A VM that runs, for whoever may use its sockets: its owner, or another process of the same user.
#[derive(Clone)]
pub struct Machine {
    agent: AgentClient,
    control: Control,
    limit: Duration,
    /// How long it may go without progress towards another memory size.
    patience: Duration,
    /// What its memory can grow to.
    max_memory_mib: u32,
}

/// Processors and memory as the guest sees them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MachineState {
    /// Processors in use.
    pub online_cpus: u32,
    /// Processors that the VM has.
    pub present_cpus: u32,
    /// Memory that its kernel can use, in bytes.
    pub memory_total_bytes: u64,
    /// What of it is available, in bytes.
    pub memory_available_bytes: u64,
}

/// New limits of a container.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Memory in bytes.
    pub memory_bytes: Option<i64>,
    /// Processor time in microseconds for each 100 ms.
    pub cpu_quota_us: Option<i64>,
    /// Processes; -1 for no limit.
    pub pids: Option<i64>,
}

impl Limits {
    /// As the `linux.resources` object of a specification.
    fn resources(self) -> Value {
        let mut resources = Map::new();
        if let Some(limit) = self.memory_bytes {
            resources.insert("memory".into(), json!({ "limit": limit }));
        }
        if let Some(quota) = self.cpu_quota_us {
            resources.insert("cpu".into(), json!({ "quota": quota, "period": PERIOD_US }));
        }
        if let Some(limit) = self.pids {
            resources.insert("pids".into(), json!({ "limit": limit }));
        }
        resources.into()
    }
}

impl Sandbox {
    /// The VM, to change it.
    pub fn machine(&self) -> Machine {
        self.shared().machine.clone()
    }
}

impl Machine {
    pub(crate) fn new(agent: AgentClient, dir: &Path, max_memory_mib: u32) -> Self {
        let control = Control::new(dir.join(CONTROL_NAME));
        Self { agent, control, limit: CHANGE_TIMEOUT, patience: memory::PATIENCE, max_memory_mib }
    }

    /// The VM of a sandbox that another process owns.
    pub async fn attach(root: &RuntimeRoot, record: &SandboxRecord) -> Result<Self, SandboxError> {
        if record.status != SandboxStatus::Running {
            return Err(SandboxError::NotRunning(record.name.clone()));
        }
        let dir = root.path().join(&record.id);
        if is_paused(&Control::new(dir.join(CONTROL_NAME))).await {
            return Err(SandboxError::Paused);
        }
        let (agent, _) = agent::connect(&dir.join(VSOCK_NAME)).await?;
        Ok(Self::new(agent, &dir, record.max_memory_mib))
    }

    /// Processors and memory.
    pub async fn state(&self) -> Result<MachineState, SandboxError> {
        let request = Empty::default();
        Ok(self.call("MachineState", self.agent.machine_state(self.context(), &request)).await?.into())
    }

    /// Has the guest use `count` of the VM's processors. After a failure it uses as many as before.
    pub async fn set_cpus(&self, count: u8) -> Result<MachineState, SandboxError> {
        let request = SetOnlineCpusRequest { count: count.into(), ..Default::default() };
        let call = self.agent.set_online_cpus(self.context(), &request);
        Ok(self.call("SetOnlineCpus", call).await?.into())
    }

    /// Changes limits of a container; all of them or none.
    pub async fn update_container(&self, id: &str, limits: Limits) -> Result<(), SandboxError> {
        let request = UpdateContainerRequest {
            container_id: id.into(),
            oci_resources_json: limits.resources().to_string().into_bytes(),
            ..Default::default()
        };
        let call = self.agent.update_container(self.context(), &request);
        self.call("UpdateContainer", call).await.map(drop)
    }

    fn context(&self) -> ttrpc::context::Context {
        ttrpc::context::with_duration(self.limit)
    }

    /// A call's answer within the limit. A guest that is held can't answer: that is said instead.
    async fn call<T>(&self, what: &str, call: impl Future<Output = ttrpc::Result<T>>) -> Result<T, SandboxError> {
        // ttrpc has the same limit; this one also counts what happens before its own begins.
        let answer = tokio::time::timeout(self.limit + Duration::from_secs(1), call).await;
        let error = match answer {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) => AgentError::from_ttrpc(what, self.limit, error),
            Err(_) => {
                let status = ttrpc::get_status(ttrpc::Code::DEADLINE_EXCEEDED, "");
                AgentError::from_ttrpc(what, self.limit, ttrpc::Error::RpcStatus(status))
            }
        };
        if error.kind == AgentErrorKind::TimedOut && is_paused(&self.control).await {
            return Err(SandboxError::Paused);
        }
        Err(error.into())
    }
}

async fn is_paused(control: &Control) -> bool {
    let vm = control.get("/vm").await;
    vm.is_ok_and(|vm| vm.get("state").and_then(Value::as_str) == Some("Paused"))
}

impl From<MachineStateResponse> for MachineState {
    fn from(state: MachineStateResponse) -> Self {
        Self {
            online_cpus: state.online_cpus,
            present_cpus: state.present_cpus,
            memory_total_bytes: state.memory_total_bytes,
            memory_available_bytes: state.memory_available_bytes,
        }
    }
}

#[cfg(test)]
#[path = "machine_test.rs"]
pub(crate) mod tests;
