//! Create: a container in a new VM, or in its pod's.

use std::path::Path;
use std::sync::Arc;

use containerd_shim_protos::api::CreateTaskRequest;
use hull_sandbox::Sandbox;
use hull_sandbox::bundle::{BundleContainer, BundleRoot, RootMount};
use hull_sandbox::container::{ProcessIo, TerminalSize};
use oci_spec::runtime::Spec;

use super::delete;
use super::hooks::TaskHooks;
use super::process::{Guest, Process};
use super::shim::{Shim, Task};
use super::watch;
use crate::bundle::{Bundle, Role};
use crate::config::{Config, ConfigError, RuntimeOptions};
use crate::error::TaskError;
use crate::events::Event;
use crate::log;
use crate::stdio::Stdio;
use crate::vm::{self, Limits, Vm};

/// Creates a task; the answer is the process identifier that stands for it.
pub async fn create(shim: Arc<Shim>, request: CreateTaskRequest) -> Result<u32, TaskError> {
    refuse_others(&request)?;
    let reservation = shim.reserve(&request.id)?;
    let bundle = Bundle::open(Path::new(&request.bundle)).map_err(|error| TaskError::internal(&error))?;
    let spec = bundle.spec().map_err(|error| TaskError::invalid(crate::error::one_line(&error)))?;
    let role = Role::of(|name| spec.annotations().as_ref().and_then(|annotations| annotations.get(name)));
    let owns_vm = !matches!(role, Role::Member(_));
    if owns_vm {
        let config =
            configuration(&request, &spec).map_err(|error| TaskError::invalid(crate::error::one_line(&error)))?;
        log::set_level(config.log_level);
        vm::start(&shim, &request.id, &bundle, &spec, &role, &config).await?;
    }
    let Some(pid) = shim.monitor_pid().await else { return Err(vm_has_ended()) };
    let hooks = TaskHooks::new(&request.id, bundle.path(), pid, &spec);
    let task = match make(&shim, &request, &bundle, spec, &role, &hooks).await {
        Ok(task) => Arc::new(task.with_hooks(hooks)),
        Err(error) => {
            if owns_vm {
                shim.end_vm().await;
            }
            // What the hooks before it have made goes too.
            hooks.after_delete().await;
            return Err(error);
        }
    };
    shim.events.push(Event::create(&task.id, &request.bundle, request.rootfs, &task.init.stdio, task.pid));
    watch::task(&shim, &task).await;
    let wanted = reservation.fulfil(Arc::clone(&task));
    if !wanted {
        delete::dispose(&shim, &task).await;
        shim.shutdown(&task.id);
        return Err(TaskError::precondition(format!("Task {} was given up while it was created", task.id)));
    }
    Ok(task.pid)
}

/// What can't be done must not be left out silently.
fn refuse_others(request: &CreateTaskRequest) -> Result<(), TaskError> {
    if !request.checkpoint.is_empty() {
        return Err(TaskError::unimplemented("Hull makes no checkpoints of containers, and can't start from one"));
    }
    match request.rootfs.iter().find(|mount| !mount.target.is_empty()) {
        Some(mount) => {
            Err(TaskError::invalid(format!("A mount can only be the container's root, not {}", mount.target)))
        }
        None => Ok(()),
    }
}

/// What this host's configuration, containerd's options and the container's annotations say of the VM.
fn configuration(request: &CreateTaskRequest, spec: &Spec) -> Result<Config, ConfigError> {
    Config::load(&RuntimeOptions::from_any(request.options.as_ref())?)?.for_spec(spec)
}

async fn make(
    shim: &Shim,
    request: &CreateTaskRequest,
    bundle: &Bundle,
    spec: Spec,
    role: &Role,
    hooks: &TaskHooks,
) -> Result<Task, TaskError> {
    let guard = shim.vm.read().await;
    let Some(Vm { sandbox, budget, rank, .. }) = guard.as_ref() else { return Err(vm_has_ended()) };
    let stdio = Stdio {
        stdin: request.stdin.clone(),
        stdout: request.stdout.clone(),
        stderr: request.stderr.clone(),
        terminal: request.terminal,
    };
    let pid = sandbox.record().monitor_pid;
    let path = bundle.path().to_owned();
    hooks.before_create(sandbox).await?;
    if *role == Role::Sandbox {
        // The VM is all that the pod's sandbox is for; its image has a program that only sleeps.
        return Ok(Task::new(&request.id, path, pid, Arc::new(Process::new("", stdio)), None));
    }
    let owner = shim.owner(&request.id);
    let opened = stdio.open(owner).await.map_err(|error| TaskError::invalid(crate::error::one_line(&error)))?;
    let claim = budget.add(&request.id, Limits::of_container(&spec)).await?;
    let score = vm::score(&spec);
    let container = BundleContainer {
        id: request.id.clone(),
        io: ProcessIo { stdin: stdio.has_stdin(), terminal: stdio.terminal.then(|| terminal_size(&spec)) },
        root: root(request, bundle, &spec),
        spec,
    };
    let (container, streams) = Sandbox::create_bundle(sandbox, container).await.map_err(TaskError::making)?;
    claim.keep();
    rank.add(&request.id, score);
    let container = Arc::new(container);
    let init = Process::new("", stdio);
    init.enter(Guest::Init(Arc::clone(&container)), opened.connect(streams));
    Ok(Task::new(&request.id, path, pid, Arc::new(init), Some(container)))
}

fn vm_has_ended() -> TaskError {
    TaskError::precondition("The pod's VM has ended")
}

/// The snapshotter's mounts; without any, the directory that the specification names, relative to its bundle.
fn root(request: &CreateTaskRequest, bundle: &Bundle, spec: &Spec) -> BundleRoot {
    if request.rootfs.is_empty() {
        let named = spec.root().as_ref().map(|root| bundle.path().join(root.path()));
        return BundleRoot::Directory(named.unwrap_or_else(|| bundle.rootfs()));
    }
    let mounts = request.rootfs.iter().map(|mount| RootMount {
        fs_type: mount.type_.clone(),
        source: mount.source.clone(),
        options: mount.options.clone(),
    });
    BundleRoot::Mounts(mounts.collect())
}

fn terminal_size(spec: &Spec) -> TerminalSize {
    let size = spec.process().as_ref().and_then(|process| process.console_size());
    size.map_or(TerminalSize::default(), |size| {
        let clamp = |length: u64| u16::try_from(length).unwrap_or(u16::MAX);
        TerminalSize { columns: clamp(size.width()), rows: clamp(size.height()) }
    })
}
