//! The events of the task API.

use std::sync::Arc;

use containerd_shim_protos::events::task::{
    TaskCreate, TaskDelete, TaskExecAdded, TaskExecStarted, TaskExit, TaskIO, TaskOOM, TaskPaused, TaskResumed,
    TaskStart,
};
use containerd_shim_protos::topics;
use containerd_shim_protos::types::mount::Mount;
use protobuf::well_known_types::any::Any;
use protobuf::well_known_types::timestamp::Timestamp;
use protobuf::{Message, MessageField};

use crate::stdio::Stdio;
use crate::task::Exit;

/// An event. Clones are the same event.
#[derive(Debug, Clone)]
pub struct Event(Arc<Content>);

#[derive(Debug)]
struct Content {
    topic: &'static str,
    at: Timestamp,
    message: Any,
}

impl Event {
    /// A task was created.
    pub fn create(container_id: &str, bundle: &str, rootfs: Vec<Mount>, stdio: &Stdio, pid: u32) -> Self {
        let io = TaskIO {
            stdin: stdio.stdin.clone(),
            stdout: stdio.stdout.clone(),
            stderr: stdio.stderr.clone(),
            terminal: stdio.terminal,
            ..Default::default()
        };
        let message = TaskCreate {
            container_id: container_id.into(),
            bundle: bundle.into(),
            rootfs,
            io: MessageField::some(io),
            pid,
            ..Default::default()
        };
        Self::new(topics::TASK_CREATE_EVENT_TOPIC, "containerd.events.TaskCreate", &message)
    }

    /// A task's process runs.
    pub fn start(container_id: &str, pid: u32) -> Self {
        let message = TaskStart { container_id: container_id.into(), pid, ..Default::default() };
        Self::new(topics::TASK_START_EVENT_TOPIC, "containerd.events.TaskStart", &message)
    }

    /// A process of a task has ended; that of the task itself if `exec_id` is empty.
    pub fn exit(container_id: &str, exec_id: &str, pid: u32, exit: &Exit) -> Self {
        let id = if exec_id.is_empty() { container_id } else { exec_id };
        let message = TaskExit {
            container_id: container_id.into(),
            id: id.into(),
            pid,
            exit_status: exit.status,
            exited_at: MessageField::some(exit.timestamp()),
            ..Default::default()
        };
        Self::new(topics::TASK_EXIT_EVENT_TOPIC, "containerd.events.TaskExit", &message)
    }

    /// A task was deleted.
    pub fn delete(container_id: &str, pid: u32, exit: &Exit) -> Self {
        let message = TaskDelete {
            container_id: container_id.into(),
            pid,
            exit_status: exit.status,
            exited_at: MessageField::some(exit.timestamp()),
            ..Default::default()
        };
        Self::new(topics::TASK_DELETE_EVENT_TOPIC, "containerd.events.TaskDelete", &message)
    }

    /// Another process was announced.
    pub fn exec_added(container_id: &str, exec_id: &str) -> Self {
        let message =
            TaskExecAdded { container_id: container_id.into(), exec_id: exec_id.into(), ..Default::default() };
        Self::new(topics::TASK_EXEC_ADDED_EVENT_TOPIC, "containerd.events.TaskExecAdded", &message)
    }

    /// Another process runs.
    pub fn exec_started(container_id: &str, exec_id: &str, pid: u32) -> Self {
        let message =
            TaskExecStarted { container_id: container_id.into(), exec_id: exec_id.into(), pid, ..Default::default() };
        Self::new(topics::TASK_EXEC_STARTED_EVENT_TOPIC, "containerd.events.TaskExecStarted", &message)
    }

    /// The guest's kernel killed a process of the task for want of memory.
    pub fn oom(container_id: &str) -> Self {
        let message = TaskOOM { container_id: container_id.into(), ..Default::default() };
        Self::new(topics::TASK_OOM_EVENT_TOPIC, "containerd.events.TaskOOM", &message)
    }

    /// The task stands still.
    pub fn paused(container_id: &str) -> Self {
        let message = TaskPaused { container_id: container_id.into(), ..Default::default() };
        Self::new(topics::TASK_PAUSED_EVENT_TOPIC, "containerd.events.TaskPaused", &message)
    }

    /// The task goes on.
    pub fn resumed(container_id: &str) -> Self {
        let message = TaskResumed { container_id: container_id.into(), ..Default::default() };
        Self::new(topics::TASK_RESUMED_EVENT_TOPIC, "containerd.events.TaskResumed", &message)
    }

    fn new(topic: &'static str, name: &str, message: &impl Message) -> Self {
        // It fails for a message of more than 2 GiB; containerd would not take that either.
        let value = message.write_to_bytes().unwrap_or_default();
        let message = Any { type_url: name.into(), value, ..Default::default() };
        Self(Arc::new(Content { topic, at: Timestamp::now(), message }))
    }

    /// containerd's name for what happened.
    pub fn topic(&self) -> &'static str {
        self.0.topic
    }

    /// When it happened.
    pub fn at(&self) -> &Timestamp {
        &self.0.at
    }

    /// The event itself.
    pub fn message(&self) -> &Any {
        &self.0.message
    }

    /// It tells the end of a process.
    pub fn is_exit(&self) -> bool {
        self.0.topic == topics::TASK_EXIT_EVENT_TOPIC
    }

    /// It is the very same event.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}
