//! Everything that is needed to run a container, in a form that can be handed to a keeper.

use std::fs::File;
use std::path::PathBuf;

use anyhow::Context as _;
use hull_sandbox::container::{ProcessIo, TerminalSize};
use hull_sandbox::runtime_dir::SandboxStatus;
use hull_sandbox::sandbox::{READY_TIMEOUT, ready_timeout};
use hull_sandbox::{
    ContainerConfig, Drive, NetworkNamespace, RuntimeRoot, SandboxConfig, SandboxError, SandboxRecord, locate, spec,
};
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use super::name;
use super::validate::Request;
use crate::context::Context;
use crate::failure::Failure;
use crate::images::Fetched;
use crate::table::now_s;

/// Serial number of the disk with the image.
const IMAGE_DRIVE: &str = "image";

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Launch {
    pub record: SandboxRecord,
    pub container: ContainerConfig,
    max_vcpus: u8,
    runtime_root: PathBuf,
    monitor: PathBuf,
    kernel: PathBuf,
    initramfs: PathBuf,
    drives: Vec<Drive>,
    watchdog: bool,
    /// For the message about a kill.
    pub memory_limit: Option<String>,
    pub timings: bool,
    /// When this process started and when the image was there, on CLOCK_MONOTONIC.
    pub started_ns: u64,
    pub image_ready_ns: u64,
}

impl Launch {
    pub fn new(
        request: &Request,
        image: &Fetched,
        context: &Context,
        terminal: Option<TerminalSize>,
    ) -> Result<Self, Failure> {
        let image_ready_ns = hull_sandbox::timeline::now_ns();
        let plan = spec::plan(&request.options, &image.config).with_context(|| request.image.clone())?;
        let root = context.runtime()?;
        let name = match &request.name {
            Some(name) => name.clone(),
            None => name::invent(&request.options.id, &root.list()?),
        };
        Ok(Self {
            record: SandboxRecord {
                id: request.options.id.clone(),
                name,
                image: request.image.clone(),
                command: plan.command,
                created_s: now_s(),
                status: SandboxStatus::Starting,
                owner_pid: 0,
                monitor_pid: 0,
                vcpus: request.vcpus,
                memory_mib: request.vm_memory_mib,
                max_memory_mib: request.max_memory_mib,
                stop_signal: plan.stop_signal,
                stop_timeout_s: request.stop_timeout_s,
            },
            container: ContainerConfig {
                id: request.options.id.clone(),
                spec_json: plan.spec_json,
                image_serial: IMAGE_DRIVE.into(),
                read_only: request.options.read_only,
                user: plan.user,
                use_init: request.use_init,
                files: plan.files,
                io: ProcessIo { stdin: request.interactive, terminal },
            },
            max_vcpus: request.max_vcpus,
            runtime_root: root.path().to_owned(),
            monitor: locate::monitor()?,
            kernel: request.kernel.clone().map_or_else(locate::kernel, Ok)?,
            initramfs: request.initramfs.clone().map_or_else(locate::initramfs, Ok)?,
            watchdog: request.watchdog,
            drives: vec![Drive {
                drive_id: IMAGE_DRIVE.into(),
                path_on_host: image.erofs.clone(),
                is_read_only: true,
                ..Drive::default()
            }],
            memory_limit: request.options.memory.map(|limit| limit.to_string()),
            timings: request.timings,
            started_ns: 0,
            image_ready_ns,
        })
    }

    /// The sandbox that this process will own.
    pub fn sandbox(&self) -> Result<SandboxConfig, SandboxError> {
        Ok(SandboxConfig {
            record: SandboxRecord { owner_pid: std::process::id(), ..self.record.clone() },
            max_vcpus: self.max_vcpus,
            root: RuntimeRoot::open(&self.runtime_root)?,
            monitor: self.monitor.clone(),
            kernel: self.kernel.clone(),
            initramfs: self.initramfs.clone(),
            drives: self.drives.clone(),
            shared_directory: false,
            watchdog: self.watchdog,
            network: NetworkNamespace::Host,
            cgroup: None,
            ready_timeout: ready_timeout(READY_TIMEOUT),
        })
    }

    /// The guest's kernel, for messages.
    pub fn kernel(&self) -> String {
        self.kernel.display().to_string()
    }

    /// Keeps the image in the store as long as the result lives: the store removes nothing that is locked.
    pub fn lease_image(&self) -> std::io::Result<Vec<Flock<File>>> {
        let lease = |drive: &Drive| {
            let file = File::open(&drive.path_on_host)?;
            Flock::lock(file, FlockArg::LockSharedNonblock).map_err(|(_, errno)| errno.into())
        };
        self.drives.iter().map(lease).collect()
    }
}
