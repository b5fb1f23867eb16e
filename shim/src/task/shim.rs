//! The tasks of this process, and their VM.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hull_sandbox::Container;
use tokio::sync::{RwLock, watch};
use tokio::time::timeout;

use super::hooks::TaskHooks;
use super::process::Process;
use crate::args::Args;
use crate::error::TaskError;
use crate::events::EventQueue;
use crate::stdio::{Loggers, Owner};
use crate::vm::Vm;

/// Bound on the containers of a pod, and on the processes of a container.
const MAX_TASKS: usize = 1024;
const MAX_EXECS: usize = 4096;

/// What this process serves.
pub struct Shim {
    /// How it was started.
    pub args: Args,
    /// Where events are put.
    pub events: EventQueue,
    /// The VM, while there is one. Who makes a container in it reads; who makes or ends it writes.
    pub vm: RwLock<Option<Vm>>,
    /// Programs that take the output of processes.
    pub loggers: Loggers,
    tasks: Mutex<HashMap<String, Slot>>,
    finished: watch::Sender<bool>,
    /// How many tasks there are, with those in the making.
    count: watch::Sender<usize>,
}

/// An identifier that is taken.
enum Slot {
    /// The task is being made; `unwanted` if it was given up meanwhile.
    Creating {
        unwanted: bool,
    },
    Ready(Arc<Task>),
}

/// A container, or what stands for a pod.
pub struct Task {
    /// Its identifier.
    pub id: String,
    /// Its bundle.
    pub bundle: PathBuf,
    /// A process of the host that stands for it: the VM's monitor.
    pub pid: u32,
    /// Its own process.
    pub init: Arc<Process>,
    /// What it is in the guest; a pod's sandbox is nothing there.
    pub container: Option<Arc<Container>>,
    /// Its hooks.
    pub hooks: TaskHooks,
    /// Its processes stand still.
    pub paused: AtomicBool,
    /// It was told that processes of the task were killed for want of memory.
    pub oom_told: AtomicBool,
    /// Somebody looks after its end since it was killed.
    pub killed: AtomicBool,
    execs: Mutex<HashMap<String, Arc<Exec>>>,
}

/// Another process of a task.
pub struct Exec {
    /// The process.
    pub process: Arc<Process>,
    /// The `process` object of an OCI runtime specification, as JSON.
    pub spec: String,
}

impl Shim {
    /// No tasks and no VM yet.
    pub fn new(args: Args, events: EventQueue) -> Self {
        Self {
            args,
            events,
            vm: RwLock::default(),
            loggers: Loggers::default(),
            tasks: Mutex::default(),
            finished: watch::Sender::new(false),
            count: watch::Sender::new(0),
        }
    }

    /// Whose the streams of a task's processes are.
    pub fn owner<'a>(&'a self, container_id: &'a str) -> Owner<'a> {
        Owner { namespace: &self.args.namespace, container_id, loggers: &self.loggers }
    }

    fn slots(&self) -> MutexGuard<'_, HashMap<String, Slot>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes an identifier for a task that is being made. It is free again when the reservation is dropped.
    pub fn reserve(self: &Arc<Self>, id: &str) -> Result<Reservation, TaskError> {
        let mut slots = self.slots();
        if slots.contains_key(id) {
            return Err(TaskError::exists(format!("Task {id} exists already")));
        }
        if slots.len() >= MAX_TASKS {
            return Err(TaskError::precondition("The pod has too many containers"));
        }
        slots.insert(id.into(), Slot::Creating { unwanted: false });
        self.count.send_replace(slots.len());
        Ok(Reservation { shim: Arc::clone(self), id: id.into() })
    }

    /// The task of this identifier.
    pub fn task(&self, id: &str) -> Result<Arc<Task>, TaskError> {
        match self.slots().get(id) {
            Some(Slot::Ready(task)) => Ok(Arc::clone(task)),
            Some(Slot::Creating { .. }) => Err(TaskError::not_found(format!("Task {id} is still being created"))),
            None => Err(TaskError::not_found(format!("There is no task {id}"))),
        }
    }

    /// Nobody wants the task any more. One that is still being made is deleted when it is there.
    pub fn give_up(&self, id: &str) {
        if let Some(Slot::Creating { unwanted }) = self.slots().get_mut(id) {
            *unwanted = true;
        }
    }

    /// The task and, unless `exec_id` is empty, its other process.
    pub fn process(&self, id: &str, exec_id: &str) -> Result<(Arc<Task>, Arc<Process>), TaskError> {
        let task = self.task(id)?;
        let process = match exec_id {
            "" => Arc::clone(&task.init),
            _ => Arc::clone(&task.exec(exec_id)?.process),
        };
        Ok((task, process))
    }

    /// There is no other task.
    pub fn is_last(&self, id: &str) -> bool {
        self.slots().keys().all(|other| other == id)
    }

    /// Forgets a task; true if it was the last.
    pub fn forget(&self, id: &str) -> bool {
        let mut slots = self.slots();
        slots.remove(id);
        self.count.send_replace(slots.len());
        slots.is_empty()
    }

    /// The process of the VM's monitor, while there is a VM.
    pub async fn monitor_pid(&self) -> Option<u32> {
        Some(self.vm.read().await.as_ref()?.sandbox.record().monitor_pid)
    }

    /// Ends the VM, if there is one, and returns when nothing of it is left.
    pub async fn end_vm(&self) {
        // Whoever makes a container in it waits for its guest, and lets go of it now.
        if let Some(vm) = self.vm.read().await.as_ref() {
            vm.sandbox.terminate();
        }
        // Kept to the end: nobody else finds it gone before it is.
        let mut vm = self.vm.write().await;
        if let Some(Vm { sandbox, cgroup, .. }) = vm.take() {
            let end = sandbox.shutdown().await;
            tracing::debug!(%end, "the VM is gone");
            if let Some(cgroup) = cgroup {
                cgroup.end().await;
            }
        }
    }

    /// containerd is done with the task `id`. When there is none left, this process ends.
    pub fn shutdown(&self, id: &str) {
        self.give_up(id);
        if self.slots().is_empty() {
            self.finished.send_replace(true);
        }
    }

    /// Somebody wants this process to end: the VM ends, containerd hears of it, and then what remains is its to delete.
    pub async fn terminate(&self) {
        tracing::info!("the shim was asked to end");
        self.end_vm().await;
        self.shutdown("");
    }

    /// Returns when there has been no task for `limit`.
    pub async fn idle(&self, limit: Duration) {
        let mut count = self.count.subscribe();
        // The sender is this shim's own.
        while count.wait_for(|tasks| *tasks == 0).await.is_ok() {
            if timeout(limit, count.wait_for(|tasks| *tasks > 0)).await.is_err() {
                return;
            }
        }
    }

    /// Waits until this process has nothing to do any more.
    pub async fn finished(&self) {
        let mut finished = self.finished.subscribe();
        let _ = finished.wait_for(|finished| *finished).await;
    }
}

/// An identifier that is taken by a task in the making.
pub struct Reservation {
    shim: Arc<Shim>,
    id: String,
}

impl Reservation {
    /// The task is there. False if it was given up meanwhile.
    pub fn fulfil(self, task: Arc<Task>) -> bool {
        let mut slots = self.shim.slots();
        let old = slots.insert(self.id.clone(), Slot::Ready(task));
        !matches!(old, Some(Slot::Creating { unwanted: true }))
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut slots = self.shim.slots();
        if matches!(slots.get(&self.id), Some(Slot::Creating { .. })) {
            let unwanted = matches!(slots.remove(&self.id), Some(Slot::Creating { unwanted: true }));
            self.shim.count.send_replace(slots.len());
            // Who gave it up has asked for the end already.
            if unwanted && slots.is_empty() {
                self.shim.finished.send_replace(true);
            }
        }
    }
}

impl Task {
    /// A task whose process is created. `container` is what it is in the guest.
    pub fn new(id: &str, bundle: PathBuf, pid: u32, init: Arc<Process>, container: Option<Arc<Container>>) -> Self {
        Self {
            id: id.into(),
            bundle,
            pid,
            init,
            container,
            hooks: TaskHooks::default(),
            paused: AtomicBool::new(false),
            oom_told: AtomicBool::new(false),
            killed: AtomicBool::new(false),
            execs: Mutex::default(),
        }
    }

    /// The task with hooks.
    pub fn with_hooks(self, hooks: TaskHooks) -> Self {
        Self { hooks, ..self }
    }

    fn locked_execs(&self) -> MutexGuard<'_, HashMap<String, Arc<Exec>>> {
        self.execs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What it is in the guest. A pod's sandbox has no processes.
    pub fn container(&self) -> Result<&Arc<Container>, TaskError> {
        let nothing = || TaskError::unimplemented(format!("{} is the sandbox of a pod: it has no processes", self.id));
        self.container.as_ref().ok_or_else(nothing)
    }

    /// Its processes stand still.
    pub fn is_paused(&self) -> bool {
        self.paused.load(Ordering::Acquire)
    }

    /// The other process of this identifier.
    pub fn exec(&self, exec_id: &str) -> Result<Arc<Exec>, TaskError> {
        let missing = || TaskError::not_found(format!("Task {} has no process {exec_id}", self.id));
        self.locked_execs().get(exec_id).cloned().ok_or_else(missing)
    }

    /// Adds another process.
    pub fn add_exec(&self, exec: Exec) -> Result<(), TaskError> {
        let mut execs = self.locked_execs();
        let exec_id = exec.process.exec_id.clone();
        if execs.contains_key(&exec_id) {
            return Err(TaskError::exists(format!("Task {} has a process {exec_id} already", self.id)));
        }
        if execs.len() >= MAX_EXECS {
            return Err(TaskError::precondition(format!("Task {} has too many processes", self.id)));
        }
        execs.insert(exec_id, Arc::new(exec));
        Ok(())
    }

    /// Forgets another process.
    pub fn forget_exec(&self, exec_id: &str) {
        self.locked_execs().remove(exec_id);
    }

    /// All other processes.
    pub fn execs(&self) -> Vec<Arc<Exec>> {
        self.locked_execs().values().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stdio::Stdio;
    use ttrpc::Code;

    fn shim() -> Arc<Shim> {
        Arc::new(Shim::new(Args::sample(), EventQueue::default()))
    }

    fn task(id: &str) -> Arc<Task> {
        let init = Arc::new(Process::new("", Stdio::default()));
        Arc::new(Task::new(id, "/bundle".into(), 1, init, None))
    }

    fn is_finished(shim: &Shim) -> bool {
        *shim.finished.borrow()
    }

    #[test]
    fn an_identifier_is_taken_while_its_task_is_made_and_free_if_that_fails() {
        let shim = shim();
        let reserved = shim.reserve("a").unwrap();
        assert_eq!(shim.reserve("a").err().unwrap().code, Code::ALREADY_EXISTS);
        assert_eq!(shim.task("a").err().unwrap().code, Code::NOT_FOUND);
        drop(reserved);
        assert!(shim.reserve("a").unwrap().fulfil(task("a")));
        assert_eq!(shim.task("a").unwrap().id, "a");
        assert_eq!(shim.reserve("a").err().unwrap().code, Code::ALREADY_EXISTS);
    }

    #[test]
    fn the_shim_ends_after_its_last_task_only() {
        let shim = shim();
        assert!(shim.reserve("a").unwrap().fulfil(task("a")));
        let creating = shim.reserve("b").unwrap();
        assert!(!shim.is_last("a"));
        assert!(!shim.forget("a"));
        shim.shutdown("a");
        assert!(!is_finished(&shim));
        drop(creating);
        assert!(shim.is_last("a"));
        shim.shutdown("a");
        assert!(is_finished(&shim));
    }

    #[test]
    fn a_task_that_is_given_up_while_it_is_made_keeps_nothing_alive() {
        let shim = shim();
        let creating = shim.reserve("a").unwrap();
        shim.shutdown("a");
        assert!(!is_finished(&shim));
        drop(creating);
        assert!(is_finished(&shim));
        let creating = shim.reserve("a").unwrap();
        shim.shutdown("a");
        assert!(!creating.fulfil(task("a")), "whoever made it has to delete it");
    }

    #[tokio::test]
    async fn a_shim_without_tasks_ends_and_one_that_has_or_makes_one_does_not() {
        let (short, long) = (Duration::from_millis(1), Duration::from_millis(200));
        shim().idle(short).await;
        let shim = shim();
        let creating = shim.reserve("a").unwrap();
        assert!(timeout(long, shim.idle(short)).await.is_err());
        assert!(creating.fulfil(task("a")));
        assert!(timeout(long, shim.idle(short)).await.is_err());
        shim.forget("a");
        shim.idle(short).await;
        // containerd may not hear why a task was not made.
        drop(shim.reserve("b").unwrap());
        shim.idle(short).await;
    }

    #[test]
    fn processes_are_known_by_their_identifier() {
        let task = task("a");
        let exec = || Exec { process: Arc::new(Process::new("e", Stdio::default())), spec: String::new() };
        task.add_exec(exec()).unwrap();
        assert_eq!(task.add_exec(exec()).unwrap_err().code, Code::ALREADY_EXISTS);
        assert_eq!(task.exec("f").err().unwrap().code, Code::NOT_FOUND);
        task.forget_exec("e");
        assert!(task.execs().is_empty());
        assert_eq!(task.container().err().unwrap().code, Code::UNIMPLEMENTED);
    }
}
