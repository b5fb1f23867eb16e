//! Starts another process in a running container.
//!
//! libcontainer's own exec loads no system call filter and doesn't join the user namespace. This does, with the same last
//! steps as the container's first process ([`Workload`]).

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use hull_protocol::agent::{ExecProcessRequest, TerminalSize};
use libcontainer::syscall::syscall::create_syscall;
use libcontainer::{capabilities, tty};
use nix::sched::{CloneFlags, setns};
use nix::sys::prctl;
use nix::sys::stat::{Mode, umask};
use nix::unistd::{ForkResult, Gid, Pid, Uid, chdir, setgroups, setresgid, setresuid, setsid};
use oci_spec::runtime::{Process, Spec};
use protobuf::Message;

use crate::cgroup;
use crate::failure::{Context, Failure};
use crate::helper::create::{SPECIFICATION, give_streams};
use crate::helper::reply::Reply;
use crate::helper::root::Root;
use crate::helper::user::Users;
use crate::helper::workload::{Workload, chain, refuse_outside};
use crate::helper::{Task, specification};
use crate::layout::Bundle;
use crate::{identifier, sys};

/// Namespaces by their names in /proc/PID/ns.
const NAMESPACES: [(&str, CloneFlags); 7] = [
    ("user", CloneFlags::CLONE_NEWUSER),
    ("mnt", CloneFlags::CLONE_NEWNS),
    ("pid", CloneFlags::CLONE_NEWPID),
    ("net", CloneFlags::CLONE_NEWNET),
    ("ipc", CloneFlags::CLONE_NEWIPC),
    ("uts", CloneFlags::CLONE_NEWUTS),
    ("cgroup", CloneFlags::CLONE_NEWCGROUP),
];

/// Starts the process of the request beside process `init` and returns it.
pub fn run(task: Task, init: Option<&str>) -> Result<Pid, Failure> {
    let request = ExecProcessRequest::parse_from_bytes(&task.request).map_err(Failure::invalid)?;
    let id = identifier::check("container_id", &request.container_id)?;
    let init = init.and_then(|pid| pid.parse().ok()).filter(|&pid| pid > 1);
    let init = Pid::from_raw(init.ok_or_else(|| Failure::internal("no process to join"))?);
    let spec = read_specification(id)?;
    let process = with_defaults(&request.oci_process_json, &spec)?;

    join_cgroup(id, init)?;
    if let Some(score) = process.oom_score_adj() {
        fs::write("/proc/self/oom_score_adj", score.to_string()).context("set oom_score_adj")?;
    }
    // Before the namespaces: raising a limit needs a right that a user namespace takes.
    for limit in process.rlimits().iter().flatten() {
        create_syscall().set_rlimit(limit).map_err(|error| Failure::invalid(format!("rlimit: {}", chain(&error))))?;
    }
    let console = connect_console(task.console.as_deref())?;
    join_namespaces(init)?;

    match sys::fork().context("fork")? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => {
            let size = request.terminal_size.as_ref().cloned().unwrap_or_default();
            let seccomp = spec.linux().as_ref().and_then(|linux| linux.seccomp().clone());
            let result = become_user(process, &request.user, console, &size)
                .map(|process| Workload::new(&process, seccomp, task.reporter.clone()))
                .and_then(|workload| workload.find().map(|_| workload));
            match result {
                // Returns only after a failure, which is reported.
                Ok(workload) => drop(workload.run()),
                Err(failure) => task.reporter.report(&Reply::Failed(failure)),
            }
            std::process::exit(255)
        }
    }
}

fn read_specification(id: &str) -> Result<Spec, Failure> {
    let text = fs::read(Bundle::new(id).path().join(SPECIFICATION)).context("read the specification")?;
    serde_json::from_slice(&text).context("read the specification")
}

/// The process to start; what it leaves open is as for the container's first process, as in runc.
fn with_defaults(json: &[u8], spec: &Spec) -> Result<Process, Failure> {
    let mut process: Process =
        serde_json::from_slice(json).map_err(|error| Failure::invalid(format!("oci_process_json: {error}")))?;
    specification::check_process(&process)?;
    // Absent sets are filled with a default by the parser: what was given has to be asked of the text itself.
    let given: serde_json::Value = serde_json::from_slice(json).map_err(Failure::invalid)?;
    if let Some(first) = spec.process() {
        if given.get("capabilities").is_none_or(serde_json::Value::is_null) {
            process.set_capabilities(first.capabilities().clone());
        }
        if given.get("rlimits").is_none_or(serde_json::Value::is_null) {
            process.set_rlimits(first.rlimits().clone());
        }
        if process.no_new_privileges().is_none() {
            process.set_no_new_privileges(first.no_new_privileges());
        }
        if process.oom_score_adj().is_none() {
            process.set_oom_score_adj(first.oom_score_adj());
        }
    }
    Ok(process)
}

/// Enters the container's cgroup. A container that delegates moves its processes further down, and then its own cgroup
/// takes none: the first process's does.
fn join_cgroup(id: &str, init: Pid) -> Result<(), Failure> {
    let join = |cgroup: &Path| fs::write(cgroup.join("cgroup.procs"), "0");
    let Err(error) = join(&cgroup::path(id)) else {
        return Ok(());
    };
    let own = fs::read_to_string(format!("/proc/{init}/cgroup")).unwrap_or_default();
    let path = own.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
    let path = Path::new("/sys/fs/cgroup").join(path);
    if !path.starts_with(cgroup::path(id)) {
        return Err(error).context("join the container's cgroup");
    }
    join(&path).context("join the container's cgroup")
}

/// The socket's path is the agent's, so the connection is made before the container's file system is entered.
fn connect_console(path: Option<&Path>) -> Result<Option<OwnedFd>, Failure> {
    path.map(|path| UnixStream::connect(path).map(OwnedFd::from).context("connect to the console socket")).transpose()
}

fn join_namespaces(init: Pid) -> Result<(), Failure> {
    let inode = |pid: &str, name: &str| {
        fs::metadata(format!("/proc/{pid}/ns/{name}")).map(|file| file.ino()).context("look at a namespace")
    };
    let mut flags = CloneFlags::empty();
    for (name, flag) in NAMESPACES {
        if inode("self", name)? != inode(&init.to_string(), name)? {
            flags |= flag;
        }
    }
    let container = sys::pidfd_open(init).context("open the container's process")?;
    setns(container, flags).context("join the container's namespaces")?;
    if flags.contains(CloneFlags::CLONE_NEWUSER) {
        set_ids(Uid::from_raw(0), Gid::from_raw(0)).context("become root of the container")?;
    }
    Ok(())
}

/// In the container: its terminal, working directory and user.
fn become_user(
    mut process: Process,
    wanted: &str,
    console: Option<OwnedFd>,
    size: &TerminalSize,
) -> Result<Process, Failure> {
    specification::set_user(&mut process, wanted, &Users::read(&Root::open(Path::new("/"))?)?)?;
    let user = process.user();
    let (uid, gid) = (user.uid(), user.gid());
    setsid().context("start a session")?;
    match console {
        Some(console) => set_up_terminal(console, size, uid)?,
        None => give_streams(uid, gid)?,
    }
    if let Some(mask) = user.umask() {
        umask(Mode::from_bits_truncate(mask & 0o777));
    }
    // With all rights first; a directory that only the user may enter (on a network file system) is tried again below.
    let entered = chdir(process.cwd()).is_ok();
    let groups: Vec<Gid> = user.additional_gids().iter().flatten().map(|&gid| Gid::from_raw(gid)).collect();
    if may_set_groups() {
        setgroups(&groups).context("set the groups")?;
    }
    set_ids(Uid::from_raw(uid), Gid::from_raw(gid)).context("become the user")?;
    capabilities::reset_effective(create_syscall().as_ref())
        .map_err(|error| Failure::internal(format!("keep capabilities: {}", chain(&error))))?;
    if !entered {
        chdir(process.cwd())
            .map_err(|error| Failure::invalid(format!("working directory {}: {error}", process.cwd().display())))?;
    }
    refuse_outside(process.cwd())?;
    Ok(process)
}

fn set_up_terminal(console: OwnedFd, size: &TerminalSize, uid: u32) -> Result<(), Failure> {
    use std::os::fd::IntoRawFd;
    // libcontainer closes the descriptor.
    tty::setup_console(create_syscall().as_ref(), console.into_raw_fd(), false)
        .map_err(|error| Failure::internal(format!("set up the terminal: {}", chain(&error))))?;
    let fit = |size: u32| u16::try_from(size).unwrap_or(u16::MAX);
    if size.columns > 0 && size.rows > 0 {
        sys::set_terminal_size(io::stdin(), fit(size.columns), fit(size.rows)).context("set the terminal's size")?;
    }
    // Group tty (5) stays, as the terminal file system has it.
    nix::unistd::fchown(io::stdin(), Some(Uid::from_raw(uid)), None).context("give the terminal to the user")
}

/// Changes user and group; the permitted capabilities stay until the workload drops them.
fn set_ids(uid: Uid, gid: Gid) -> nix::Result<()> {
    prctl::set_keepcaps(true)?;
    setresgid(gid, gid, gid)?;
    setresuid(uid, uid, uid)?;
    prctl::set_keepcaps(false)
}

/// A user namespace may forbid setgroups.
fn may_set_groups() -> bool {
    fs::read_to_string("/proc/self/setgroups").map_or(true, |text| text.trim() != "deny")
}
