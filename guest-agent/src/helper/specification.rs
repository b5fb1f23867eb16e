//! The OCI specification as libcontainer gets it: what belongs to the host, or what the agent does itself, is taken out.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{
    Hooks, LinuxDeviceCgroup, LinuxIdMapping, LinuxNamespaceBuilder, LinuxNamespaceType, LinuxResources, LinuxSeccomp,
    LinuxSeccompAction, Mount, MountBuilder, Process, Root, Spec,
};

use crate::cgroup;
use crate::failure::Failure;
use crate::helper::user::{Identity, Users};
use crate::layout;

/// `PATH` of a process whose environment has none.
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Parts that the agent handles itself.
pub struct Extracted {
    /// The process as the container wants it.
    pub process: Process,
    /// System call filter.
    pub seccomp: Option<LinuxSeccomp>,
    /// Device rules.
    pub devices: Vec<LinuxDeviceCgroup>,
    /// Network settings of the guest, because the container uses the guest's own network namespace.
    pub network_sysctls: HashMap<String, String>,
    /// The container has a new network namespace.
    pub new_network: bool,
}

/// Prepares the specification of a container whose root is mounted at `root`.
pub fn prepare(spec: &mut Spec, id: &str, root: &Path, read_only: bool, use_init: bool) -> Result<Extracted, Failure> {
    let process = spec.process().clone().ok_or_else(|| Failure::invalid("the specification has no process"))?;
    check_process(&process)?;
    let mut linux = spec.linux().clone().ok_or_else(|| Failure::invalid("the specification has no linux section"))?;

    let read_only = read_only || spec.root().as_ref().and_then(Root::readonly).unwrap_or(false);
    let mut new_root = Root::default();
    new_root.set_path(root.to_path_buf()).set_readonly(Some(read_only));
    spec.set_root(Some(new_root));
    spec.set_hooks(spec.hooks().as_ref().and_then(guest_hooks));
    let new_network = split_namespaces(&mut linux)?;
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    if !new_network && has_namespace(&linux, LinuxNamespaceType::User) {
        bind_sysfs(&mut mounts);
    }
    if use_init {
        mounts.push(init_mount()?);
    }
    spec.set_mounts(Some(mounts));

    let network_sysctls = if new_network { HashMap::new() } else { take_network_sysctls(&mut linux) };
    let seccomp = linux.seccomp().clone();
    if let Some(seccomp) = &seccomp {
        check_seccomp(seccomp)?;
    }
    let mut resources = linux.resources().clone().unwrap_or_default();
    let devices = resources.devices().clone().unwrap_or_default();
    resources.set_devices(None);
    without_swap(&mut resources);

    linux
        .set_resources(Some(resources))
        // Loaded just before the command executes: see `workload`.
        .set_seccomp(None)
        .set_cgroups_path(Some(PathBuf::from("/hull").join(id)))
        // The guest has no resource control hardware and no security module.
        .set_intel_rdt(None)
        .set_mount_label(None);
    spec.set_linux(Some(linux));
    Ok(Extracted { process, seccomp, devices, network_sysctls, new_network })
}

/// Checks what is not checked elsewhere.
pub fn check_process(process: &Process) -> Result<(), Failure> {
    if process.args().as_ref().is_none_or(Vec::is_empty) {
        return Err(Failure::invalid("the process has no command"));
    }
    let zero = |texts: Option<&Vec<String>>| texts.is_some_and(|texts| texts.iter().any(|text| text.contains('\0')));
    if zero(process.args().as_ref()) || zero(process.env().as_ref()) {
        return Err(Failure::invalid("a command and its environment can't have NUL characters"));
    }
    if !process.cwd().is_absolute() {
        return Err(Failure::invalid(format!("working directory {:?} is not absolute", process.cwd())));
    }
    Ok(())
}

/// Resolves `wanted` (if it isn't empty) and completes the environment.
pub fn set_user(process: &mut Process, wanted: &str, users: &Users) -> Result<(), Failure> {
    let mut user = process.user().clone();
    let home = if wanted.is_empty() {
        users.home(user.uid()).map(String::from)
    } else {
        let Identity { uid, gid, mut groups, home } = users.look_up(wanted)?;
        groups.extend(user.additional_gids().iter().flatten());
        groups.sort_unstable();
        groups.dedup();
        user.set_uid(uid).set_gid(gid).set_additional_gids(Some(groups));
        home
    };
    process.set_user(user);

    let mut env = process.env().clone().unwrap_or_default();
    let has = |env: &[String], name: &str| env.iter().any(|entry| entry.starts_with(name));
    if !has(&env, "PATH=") {
        env.push(DEFAULT_PATH.to_string());
    }
    if !has(&env, "HOME=") {
        env.push(format!("HOME={}", home.as_deref().unwrap_or("/")));
    }
    process.set_env(Some(env));
    Ok(())
}

/// The identifier outside of a user namespace for one inside.
pub fn map_id(mappings: Option<&Vec<LinuxIdMapping>>, id: u32) -> u32 {
    let Some(mappings) = mappings.filter(|mappings| !mappings.is_empty()) else {
        return id;
    };
    mappings
        .iter()
        .find_map(|mapping| {
            let offset = id.checked_sub(mapping.container_id())?;
            (offset < mapping.size()).then(|| mapping.host_id().checked_add(offset)).flatten()
        })
        .unwrap_or(id)
}

/// The process as libcontainer gets it: its directory, capabilities and filters come later (`workload`), labels are of no
/// use.
pub fn for_libcontainer(process: &Process) -> Process {
    let mut process = process.clone();
    process.set_cwd(PathBuf::from("/"));
    process.set_capabilities(None).set_no_new_privileges(None).set_apparmor_profile(None).set_selinux_label(None);
    process
}

/// The hooks that run in the guest; the front door runs the others on the host.
fn guest_hooks(hooks: &Hooks) -> Option<Hooks> {
    let mut guest = Hooks::default();
    guest.set_create_container(hooks.create_container().clone()).set_start_container(hooks.start_container().clone());
    let some = [guest.create_container(), guest.start_container()];
    let any = some.iter().any(|hooks| hooks.as_ref().is_some_and(|hooks| !hooks.is_empty()));
    any.then_some(guest)
}

/// The agent's binary, for a container that asked for an init process.
fn init_mount() -> Result<Mount, Failure> {
    let program = std::env::current_exe().map_err(Failure::internal)?;
    let options = ["bind", "ro", "nosuid", "nodev"].map(String::from);
    MountBuilder::default()
        .destination(layout::CONTAINER_INIT)
        .typ("bind")
        .source(program)
        .options(options)
        .build()
        .map_err(Failure::internal)
}

/// A network namespace with a path is the host's, and the whole machine is in it: the container uses the guest's own.
/// Tells whether the container gets a new one instead.
fn split_namespaces(linux: &mut oci_spec::runtime::Linux) -> Result<bool, Failure> {
    let mut namespaces = linux.namespaces().clone().unwrap_or_default();
    namespaces.retain(|ns| !(ns.typ() == LinuxNamespaceType::Network && ns.path().is_some()));
    if let Some(ns) = namespaces.iter().find(|ns| ns.path().is_some()) {
        return Err(Failure::invalid(format!("the {} namespace has a path, which is the host's", ns.typ())));
    }
    if !namespaces.iter().any(|ns| ns.typ() == LinuxNamespaceType::Mount) {
        return Err(Failure::invalid("a container needs a mount namespace"));
    }
    linux.set_namespaces(Some(namespaces));
    Ok(has_namespace(linux, LinuxNamespaceType::Network))
}

fn has_namespace(linux: &oci_spec::runtime::Linux, kind: LinuxNamespaceType) -> bool {
    linux.namespaces().iter().flatten().any(|ns| ns.typ() == kind)
}

/// Only the owner of a network namespace may mount sysfs. A container with a user namespace and the guest's own network
/// gets the guest's, read-only.
fn bind_sysfs(mounts: &mut [Mount]) {
    for mount in mounts {
        if mount.typ().as_deref() != Some("sysfs") {
            continue;
        }
        let options = ["rbind", "ro", "nosuid", "noexec", "nodev", "rprivate"].map(String::from);
        mount.set_typ(Some("bind".into())).set_source(Some("/sys".into())).set_options(Some(options.into()));
    }
}

fn take_network_sysctls(linux: &mut oci_spec::runtime::Linux) -> HashMap<String, String> {
    let sysctls = linux.sysctl().clone().unwrap_or_default();
    let (network, others) =
        sysctls.into_iter().partition(|(key, _)| key.starts_with("net.") || key.starts_with("net/"));
    linux.set_sysctl(Some(others));
    network
}

fn check_seccomp(seccomp: &LinuxSeccomp) -> Result<(), Failure> {
    let notifies = seccomp.default_action() == LinuxSeccompAction::ScmpActNotify
        || seccomp.syscalls().iter().flatten().any(|rule| rule.action() == LinuxSeccompAction::ScmpActNotify);
    if notifies {
        return Err(Failure::invalid("SCMP_ACT_NOTIFY needs a listener, which no process in the guest is"));
    }
    Ok(())
}

/// The guest has no swap: a limit for it would fail where the kernel has no such file.
fn without_swap(resources: &mut LinuxResources) {
    if let Some(mut memory) = *resources.memory() {
        memory.set_swap(None);
        resources.set_memory(Some(memory));
    }
}

/// Puts the container into a pid namespace that exists.
pub fn join_pid_namespace(spec: &mut Spec, path: Option<PathBuf>) -> Result<(), Failure> {
    let (Some(path), Some(mut linux)) = (path, spec.linux().clone()) else { return Ok(()) };
    let joined = LinuxNamespaceBuilder::default().typ(LinuxNamespaceType::Pid).path(path).build();
    let mut namespaces = linux.namespaces().clone().unwrap_or_default();
    namespaces.retain(|namespace| namespace.typ() != LinuxNamespaceType::Pid);
    namespaces.push(joined.map_err(Failure::internal)?);
    linux.set_namespaces(Some(namespaces));
    spec.set_linux(Some(linux));
    Ok(())
}

/// The container's cgroup, made so that its device rules are there before its first process.
pub fn make_cgroup(id: &str) -> Result<PathBuf, Failure> {
    use crate::failure::Context;
    let cgroup = cgroup::path(id);
    std::fs::create_dir(&cgroup).context("create the cgroup")?;
    Ok(cgroup)
}

#[cfg(test)]
#[path = "specification_test.rs"]
mod tests;
