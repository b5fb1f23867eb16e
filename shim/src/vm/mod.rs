//! From a bundle to a VM.

mod budget;
mod cgroup;
mod ledger;
mod limits;
mod namespaces;
mod network;
mod rank;
mod size;
mod usage;

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use hull_sandbox::bundle::sandbox_settings;
use hull_sandbox::runtime_dir::{SandboxStatus, new_id};
use hull_sandbox::timeline::Timeline;
use hull_sandbox::{Sandbox, SandboxConfig, SandboxRecord};
use oci_spec::runtime::Spec;

use crate::bundle::{Bundle, Role, ShimRecord};
use crate::config::{Config, Parts};
use crate::error::TaskError;
use crate::task::Shim;
use cgroup::VmCgroup;
use size::Range;

pub use budget::Budget;
pub use limits::Limits;
pub use rank::{Rank, score};
pub use usage::{Usage, usage};

/// A VM with all that belongs to it.
pub struct Vm {
    /// The VM itself.
    pub sandbox: Sandbox,
    /// Its size, and whose.
    pub budget: Arc<Budget>,
    /// Its rank among processes to kill.
    pub rank: Rank,
    /// Where it is counted, unless that is where this process was started.
    pub cgroup: Option<VmCgroup>,
}

/// Names of images in annotations: of containerd's CRI, and of CRI-O.
const IMAGE_ANNOTATIONS: [&str; 2] = ["io.kubernetes.cri.image-name", "io.kubernetes.cri-o.ImageName"];

/// Boots the VM of a container that is alone in it, or of a pod.
pub async fn start(
    shim: &Shim,
    id: &str,
    bundle: &Bundle,
    spec: &Spec,
    role: &Role,
    config: &Config,
) -> Result<(), TaskError> {
    let mut vm = shim.vm.write().await;
    if vm.is_some() {
        return Err(TaskError::precondition("This shim has a VM already"));
    }
    if *role == Role::Single {
        namespaces::refuse_others(spec)?;
    }
    let range = Range::new(spec, role, config);
    let mut sandbox = sandbox_config(shim, id, spec, range, config)?;
    let cgroup = cgroup::locate(spec, &sandbox.record.id, config)?;
    let record = ShimRecord {
        shim_pid: std::process::id(),
        runtime_root: sandbox.root.path().to_owned(),
        sandbox_id: sandbox.record.id.clone(),
        monitor_pid: 0,
        cgroup: cgroup.clone(),
    };
    // First of all: from here on `delete` can find what there is.
    write(bundle, &record)?;
    let cgroup = cgroup.map(|cgroup| VmCgroup::make(cgroup, config.sandbox_cgroup)).transpose()?;
    sandbox.cgroup = cgroup.as_ref().map(|cgroup| cgroup.cgroup().clone());
    let root = sandbox.root.clone();
    let (sandbox, rank) = match boot(sandbox, bundle, record, spec, role, config).await {
        Ok(booted) => booted,
        Err(error) => {
            if let Some(cgroup) = cgroup {
                cgroup.end().await;
            }
            return Err(error);
        }
    };
    let budget = Arc::new(Budget::new(&sandbox, root, config.sizes(), range));
    *vm = Some(Vm { sandbox, budget, rank, cgroup });
    Ok(())
}

async fn boot(
    sandbox: SandboxConfig,
    bundle: &Bundle,
    record: ShimRecord,
    spec: &Spec,
    role: &Role,
    config: &Config,
) -> Result<(Sandbox, Rank), TaskError> {
    let mut sandbox = Sandbox::create(sandbox, Arc::new(Timeline::default())).await?;
    write(bundle, &ShimRecord { monitor_pid: sandbox.record().monitor_pid, ..record })?;
    let rank = Rank::new(sandbox.record().monitor_pid, spec);
    if *role == Role::Sandbox {
        let mut settings = sandbox_settings(spec);
        settings.shm_size_bytes = config.shm_size_bytes().unwrap_or(settings.shm_size_bytes);
        sandbox.configure(settings).await?;
    }
    sandbox.mark_running()?;
    Ok((sandbox, rank))
}

fn write(bundle: &Bundle, record: &ShimRecord) -> Result<(), TaskError> {
    bundle.write_record(record).map_err(|error| TaskError::internal(&error))
}

fn sandbox_config(
    shim: &Shim,
    id: &str,
    spec: &Spec,
    Range { least, most }: Range,
    config: &Config,
) -> Result<SandboxConfig, TaskError> {
    let Parts { monitor, kernel, initramfs } = config.parts()?;
    let process = spec.process().as_ref();
    let created = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok(SandboxConfig {
        record: SandboxRecord {
            id: new_id()?,
            name: format!("{}/{id}", shim.args.namespace),
            image: image(spec),
            command: process.and_then(|process| process.args().clone()).unwrap_or_default(),
            created_s: created.as_secs(),
            status: SandboxStatus::Starting,
            owner_pid: std::process::id(),
            monitor_pid: 0,
            vcpus: least.vcpus,
            memory_mib: least.memory_mib,
            max_memory_mib: most.memory_mib,
            stop_signal: libc::SIGTERM,
            stop_timeout_s: 10,
        },
        max_vcpus: most.vcpus,
        root: config.runtime_root()?,
        monitor,
        kernel,
        initramfs,
        drives: Vec::new(),
        shared_directory: true,
        network: network::namespace(spec)?,
        watchdog: config.watchdog,
        cgroup: None,
        ready_timeout: config.ready_timeout(),
    })
}

fn image(spec: &Spec) -> String {
    let Some(annotations) = spec.annotations() else { return String::new() };
    IMAGE_ANNOTATIONS.iter().find_map(|name| annotations.get(*name)).cloned().unwrap_or_default()
}

#[cfg(test)]
impl Vm {
    /// One whose size is of no interest.
    pub fn around(sandbox: Sandbox, root: hull_sandbox::RuntimeRoot) -> Self {
        let config = Config::default();
        let range = Range::new(&Spec::default(), &Role::Single, &config);
        let budget = Arc::new(Budget::new(&sandbox, root, config.sizes(), range));
        let rank = Rank::new(sandbox.record().monitor_pid, &Spec::default());
        Self { sandbox, budget, rank, cgroup: None }
    }
}
