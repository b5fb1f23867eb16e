//! The containers that this agent runs.

mod registry;
mod removal;

use std::collections::HashMap;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use tokio::sync::watch;

use crate::cgroup::freeze;
use crate::failure::{Context, Failure};
use crate::process::{Process, StartGate};
use crate::{cgroup, layout, sys};

pub use registry::Registry;

/// Most processes of one container that were started by exec and whose records are kept.
const MAX_EXECS: usize = 4096;

/// A container that was created and not yet deleted.
pub struct Container {
    id: String,
    root: ContainerRoot,
    init: Arc<Process>,
    /// Taken by the start.
    gate: Mutex<Option<StartGate>>,
    /// `None` while the process is being started.
    execs: Mutex<HashMap<String, Option<Arc<Process>>>>,
    /// It is in the pid namespace that the sandbox's containers share.
    in_sandbox_pid_namespace: bool,
    /// Held while it is being paused or resumed.
    paused: tokio::sync::Mutex<()>,
    is_paused: AtomicBool,
    /// Set when it is removed.
    removed: watch::Sender<bool>,
    /// Held while copies of its volumes are changed or removed.
    volumes: Arc<tokio::sync::Mutex<()>>,
}

/// Where a container's root file system comes from.
enum ContainerRoot {
    /// A disk with this serial number.
    Image(String),
    /// The host's shared directory.
    Shared,
}

/// What a container is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Its process waits for the start.
    Created,
    /// Its process runs.
    Running,
    /// Its processes stand still.
    Paused,
    /// Its process has ended.
    Stopped,
}

impl Container {
    /// Lets the container's process execute its command; the failure of that is the answer.
    pub async fn start(&self) -> Result<(), Failure> {
        let gate = lock(&self.gate).take();
        let gate = gate.ok_or_else(|| Failure::precondition("the container was started before"))?;
        if self.init.exit().is_some() {
            return Err(Failure::precondition("the container has ended before its start"));
        }
        open_gate(&self.id)?;
        gate.opened().await
    }

    /// What it is doing.
    pub fn status(&self) -> Status {
        match (self.init.exit(), lock(&self.gate).is_some()) {
            (Some(_), _) => Status::Stopped,
            (None, true) => Status::Created,
            (None, false) if self.is_paused.load(Ordering::Relaxed) => Status::Paused,
            (None, false) => Status::Running,
        }
    }

    /// The container's first process.
    pub fn init(&self) -> &Arc<Process> {
        &self.init
    }

    /// The process of an exec identifier; the container's first for an empty one.
    pub fn process(&self, exec_id: &str) -> Result<Arc<Process>, Failure> {
        if exec_id.is_empty() {
            return Ok(self.init.clone());
        }
        let execs = lock(&self.execs);
        let process = execs.get(exec_id).and_then(Clone::clone);
        process.ok_or_else(|| Failure::not_found(format!("no process {exec_id} in the container")))
    }

    /// Exec identifiers of processes that are known, ended ones too.
    pub fn exec_ids(&self) -> Vec<String> {
        lock(&self.execs).keys().cloned().collect()
    }

    /// Stops its processes where they are.
    pub async fn pause(&self) -> Result<(), Failure> {
        let _changing = self.paused.lock().await;
        if self.status() != Status::Running {
            return Err(Failure::precondition("the container is not running"));
        }
        freeze::freeze(&cgroup::path(&self.id)).await?;
        self.is_paused.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Lets them go on.
    pub async fn resume(&self) -> Result<(), Failure> {
        let _changing = self.paused.lock().await;
        if self.status() != Status::Paused {
            return Err(Failure::precondition("the container is not paused"));
        }
        freeze::thaw(&cgroup::path(&self.id))?;
        self.is_paused.store(false, Ordering::Relaxed);
        Ok(())
    }

    /// Waits until the kernel has killed processes for want of memory more often than `seen` times; how often by now.
    pub async fn more_oom_kills(&self, seen: u64) -> Result<u64, Failure> {
        let cgroup = cgroup::path(&self.id);
        let mut removed = self.removed.subscribe();
        tokio::select! {
            kills = cgroup::more_oom_kills(&cgroup, seen) => kills,
            _ = removed.wait_for(|removed| *removed) => Err(Failure::not_found(format!("no container {}", self.id))),
        }
    }

    /// Sends a signal to every process of the container. Those of a paused one get it when they go on, except SIGKILL.
    pub fn signal_all(&self, signal: i32) -> Result<(), Failure> {
        let cgroup = cgroup::path(&self.id);
        if signal == libc::SIGKILL {
            return cgroup::kill(&cgroup).context("kill the container's processes");
        }
        for pid in cgroup::pids(&cgroup) {
            // One that has ended meanwhile doesn't need it.
            let _ = sys::kill(pid, signal);
        }
        Ok(())
    }

    /// Forgets an exec'd process that has ended.
    pub fn forget_exec(&self, exec_id: &str) -> Result<(), Failure> {
        let process = self.process(exec_id)?;
        if process.exit().is_none() {
            return Err(Failure::precondition("the process runs"));
        }
        lock(&self.execs).remove(exec_id);
        Ok(())
    }

    /// Takes an exec identifier; it is free again if the reservation is dropped without a process.
    fn reserve_exec(&self, exec_id: &str) -> Result<Reservation<'_>, Failure> {
        let mut execs = lock(&self.execs);
        if execs.contains_key(exec_id) {
            return Err(Failure::exists(format!("process {exec_id} exists")));
        }
        if execs.len() >= MAX_EXECS {
            return Err(Failure::exhausted(format!("a container has at most {MAX_EXECS} processes by exec")));
        }
        execs.insert(exec_id.to_string(), None);
        Ok(Reservation { container: self, exec_id: exec_id.to_string() })
    }
}

struct Reservation<'a> {
    container: &'a Container,
    exec_id: String,
}

impl Reservation<'_> {
    fn fill(self, process: Arc<Process>) {
        lock(&self.container.execs).insert(self.exec_id.clone(), Some(process));
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        let mut execs = lock(&self.container.execs);
        if execs.get(&self.exec_id).is_some_and(Option::is_none) {
            execs.remove(&self.exec_id);
        }
    }
}

/// The process waits at libcontainer's socket for someone who connects and closes.
fn open_gate(id: &str) -> Result<(), Failure> {
    const ACTION: &str = "start the container";
    let state = Path::new(layout::STATE).join(id);
    let directory = open(&state, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).context(ACTION)?;
    // Through the descriptor, because a socket's path has at most 107 bytes.
    let socket = format!("/proc/self/fd/{}/notify.sock", directory.as_raw_fd());
    UnixStream::connect(socket).context(ACTION).map(drop)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
