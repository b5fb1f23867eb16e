//! All containers by identifier: creation, exec and deletion.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use hull_protocol::agent::{
    CreateContainerRequest, DeleteContainerRequest, ExecProcessRequest, RootFilesystem, Streams, TerminalSize,
    UpdateVolumeRequest,
};
use nix::unistd::Pid;
use oci_spec::runtime::{Process as OciProcess, Spec};
use protobuf::{Message, MessageField};
use tokio::sync::watch;

use crate::container::{Container, ContainerRoot, Status, lock, removal};
use crate::failure::{Context, Failure};
use crate::helper::shared;
use crate::process::{Process, Spawn, StartGate};
use crate::reaper::Reaper;
use crate::{cgroup, helper, identifier, layout, volume};

/// Most containers in one virtual machine.
const MAX_CONTAINERS: usize = 256;

/// The containers of this virtual machine.
pub struct Registry {
    reaper: Reaper,
    program: PathBuf,
    table: Mutex<HashMap<String, Entry>>,
    /// Containers are created and removed one at a time, because they may share an image.
    changing: tokio::sync::Mutex<()>,
    /// First process of the pid namespace that containers share; there as long as one of them is.
    pid_namespace: Mutex<Option<Arc<Process>>>,
}

enum Entry {
    /// The identifier is taken: the container is being created or removed.
    Reserved,
    Live(Arc<Container>),
}

impl Registry {
    /// An empty registry; `program` is the agent's binary.
    pub fn new(reaper: Reaper, program: PathBuf) -> Self {
        Self {
            reaper,
            program,
            table: Mutex::default(),
            changing: tokio::sync::Mutex::default(),
            pid_namespace: Mutex::default(),
        }
    }

    /// The container with this identifier.
    pub fn get(&self, id: &str) -> Result<Arc<Container>, Failure> {
        match lock(&self.table).get(id) {
            Some(Entry::Live(container)) => Ok(container.clone()),
            Some(Entry::Reserved) => Err(Failure::precondition(format!("container {id} is being created or removed"))),
            None => Err(Failure::not_found(format!("no container {id}"))),
        }
    }

    /// Creates a container; its process waits for the start.
    pub async fn create(&self, request: CreateContainerRequest) -> Result<u32, Failure> {
        let id = identifier::check("container_id", &request.container_id)?.to_string();
        let root = ContainerRoot::new(&request.rootfs)?;
        let spec: Spec = parse(&request.oci_spec_json, "oci_spec_json")?;
        let terminal = spec.process().as_ref().and_then(|process| process.terminal()).unwrap_or(false);

        let _changing = self.changing.lock().await;
        self.reserve(&id)?;
        match self.spawn(&id, &request, terminal).await {
            Ok((init, gate)) => {
                let pid = init.pid.as_raw().unsigned_abs();
                let container = Container {
                    id: id.clone(),
                    root,
                    init: Arc::new(init),
                    gate: Mutex::new(Some(gate)),
                    execs: Mutex::default(),
                    in_sandbox_pid_namespace: request.sandbox_pid_namespace,
                    paused: tokio::sync::Mutex::default(),
                    is_paused: AtomicBool::new(false),
                    removed: watch::Sender::new(false),
                    volumes: Arc::default(),
                };
                lock(&self.table).insert(id, Entry::Live(Arc::new(container)));
                Ok(pid)
            }
            Err(failure) => {
                // The first failure is the one to tell.
                if let Err(second) = removal::remove(&id).await {
                    eprintln!("hull-agent: clean up {id}: {second}");
                }
                lock(&self.table).remove(&id);
                self.release(&root);
                Err(failure)
            }
        }
    }

    /// Starts a container's first process.
    async fn spawn(
        &self,
        id: &str,
        request: &CreateContainerRequest,
        terminal: bool,
    ) -> Result<(Process, StartGate), Failure> {
        if !request.volumes.is_empty() {
            let (id, volumes) = (id.to_owned(), request.volumes.clone());
            blocking(move || volume::create(&id, &volumes)).await?;
        }
        let mut arguments = Vec::new();
        if request.sandbox_pid_namespace {
            arguments.push(self.pid_namespace().await?.to_string());
        }
        Spawn {
            reaper: &self.reaper,
            program: &self.program,
            role: helper::CREATE,
            request: request.write_to_bytes().context("encode the request")?,
            arguments,
            streams: &request.streams,
            terminal: terminal_size(terminal, &request.terminal_size),
            cgroup: cgroup::path(id),
            is_init: true,
        }
        .run()
        .await
    }

    /// The first process of the pid namespace that containers share. Made at the first need, and again after its end.
    async fn pid_namespace(&self) -> Result<Pid, Failure> {
        let known = lock(&self.pid_namespace).clone().filter(|process| process.exit().is_none());
        if let Some(process) = known {
            return Ok(process.pid);
        }
        let (process, _) = Spawn {
            reaper: &self.reaper,
            program: &self.program,
            role: helper::PID_NAMESPACE,
            request: Vec::new(),
            arguments: Vec::new(),
            streams: &Streams::default(),
            terminal: None,
            // In the agent's own, so that no limit of a container counts.
            cgroup: Path::new(layout::CGROUP).to_path_buf(),
            is_init: false,
        }
        .run()
        .await?;
        let pid = process.pid;
        *lock(&self.pid_namespace) = Some(Arc::new(process));
        Ok(pid)
    }

    /// Starts another process in a running container.
    pub async fn exec(&self, request: ExecProcessRequest) -> Result<u32, Failure> {
        let container = self.get(&request.container_id)?;
        let exec_id = identifier::check("exec_id", &request.exec_id)?;
        let process: OciProcess = parse(&request.oci_process_json, "oci_process_json")?;
        match container.status() {
            Status::Running => (),
            Status::Paused => return Err(Failure::precondition("the container is paused")),
            Status::Created | Status::Stopped => return Err(Failure::precondition("the container is not running")),
        }
        let reservation = container.reserve_exec(exec_id)?;
        let (process, gate) = Spawn {
            reaper: &self.reaper,
            program: &self.program,
            role: helper::EXEC,
            request: request.write_to_bytes().context("encode the request")?,
            arguments: vec![container.init.pid.to_string()],
            streams: &request.streams,
            terminal: terminal_size(process.terminal().unwrap_or(false), &request.terminal_size),
            cgroup: cgroup::path(&container.id),
            is_init: false,
        }
        .run()
        .await?;
        gate.opened().await?;
        let pid = process.pid.as_raw().unsigned_abs();
        reservation.fill(Arc::new(process));
        Ok(pid)
    }

    /// Makes the copy of a volume like what the host has now.
    pub async fn update_volume(&self, request: UpdateVolumeRequest) -> Result<(), Failure> {
        let container = self.get(&request.container_id)?;
        let turn = Arc::clone(&container.volumes).lock_owned().await;
        if *container.removed.borrow() {
            return Err(Failure::not_found(format!("no container {}", container.id)));
        }
        blocking(move || {
            // Also if nobody waits for the answer any more.
            let _turn = turn;
            volume::update(&container.id, &request.volume)
        })
        .await
    }

    /// Removes a container, or the record of an exec'd process.
    pub async fn delete(&self, request: DeleteContainerRequest) -> Result<(), Failure> {
        let container = self.get(&request.container_id)?;
        if !request.exec_id.is_empty() {
            return container.forget_exec(&request.exec_id);
        }
        if matches!(container.status(), Status::Running | Status::Paused) && !request.force {
            return Err(Failure::precondition("the container runs"));
        }
        let _changing = self.changing.lock().await;
        let id = &container.id;
        // Another one may have removed it meanwhile, and its identifier may be a new container's.
        if !self.holds(&container) {
            return Err(Failure::not_found(format!("no container {id}")));
        }
        removal::kill(id, &container.init).await?;
        lock(&self.table).insert(id.clone(), Entry::Reserved);
        let _volumes = container.volumes.lock().await;
        let removed = removal::remove(id).await;
        if let Err(failure) = removed {
            lock(&self.table).insert(id.clone(), Entry::Live(Arc::clone(&container)));
            return Err(failure);
        }
        lock(&self.table).remove(id);
        container.removed.send_replace(true);
        self.release(&container.root);
        Ok(())
    }

    /// Whether this very container is the one with its identifier.
    fn holds(&self, container: &Arc<Container>) -> bool {
        matches!(lock(&self.table).get(&container.id), Some(Entry::Live(live)) if Arc::ptr_eq(live, container))
    }

    fn reserve(&self, id: &str) -> Result<(), Failure> {
        let mut table = lock(&self.table);
        if table.contains_key(id) {
            return Err(Failure::exists(format!("container {id} exists")));
        }
        if table.len() >= MAX_CONTAINERS {
            return Err(Failure::exhausted(format!("a virtual machine has at most {MAX_CONTAINERS} containers")));
        }
        table.insert(id.to_string(), Entry::Reserved);
        Ok(())
    }

    /// Lets go of what a removed container used and no other one does.
    fn release(&self, root: &ContainerRoot) {
        match root {
            ContainerRoot::Image(serial) => self.release_image(serial),
            ContainerRoot::Shared => shared::forget(),
        }
        if !self.uses(|container| container.in_sandbox_pid_namespace)
            && let Some(process) = lock(&self.pid_namespace).take()
        {
            // One that has ended doesn't need it.
            let _ = process.signal(libc::SIGKILL);
        }
    }

    fn uses(&self, what: impl Fn(&Container) -> bool) -> bool {
        lock(&self.table).values().any(|entry| matches!(entry, Entry::Live(container) if what(container)))
    }

    /// Unmounts an image that no container uses.
    fn release_image(&self, serial: &str) {
        let uses = |container: &Container| matches!(&container.root, ContainerRoot::Image(other) if other == serial);
        let used = lock(&self.table).values().any(|entry| matches!(entry, Entry::Live(container) if uses(container)));
        if !used {
            removal::unmount_image(serial);
        }
    }
}

impl ContainerRoot {
    fn new(rootfs: &RootFilesystem) -> Result<Self, Failure> {
        if !rootfs.shared_path.is_empty() {
            return Ok(Self::Shared);
        }
        Ok(Self::Image(identifier::check("rootfs.image_serial", &rootfs.image_serial)?.to_string()))
    }
}

/// Does work that waits for the kernel, or for the host's files, in a thread of its own.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Failure> + Send + 'static) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(Failure::internal(error)))
}

fn parse<T: for<'a> serde::Deserialize<'a>>(json: &[u8], field: &str) -> Result<T, Failure> {
    serde_json::from_slice(json).map_err(|error| Failure::invalid(format!("{field}: {error}")))
}

fn terminal_size(terminal: bool, size: &MessageField<TerminalSize>) -> Option<TerminalSize> {
    terminal.then(|| size.as_ref().cloned().unwrap_or_default())
}
