//! containerd's task API.
//!
//! | module | subject |
//! |---|---|
//! | [`shim`] | the tasks and the VM of this process |
//! | [`process`] | a process from Created to Exited |
//! | [`create`], [`start`], [`exec`], [`delete`] | a task's life |
//! | [`watch`] | ends of processes, kills for want of memory |
//! | [`control`], [`kill`] | changes of what runs |
//! | [`query`], [`stats`] | what is asked |
//!
//! A request that containerd gives up is dropped in the middle. What changes something therefore runs in a task of its own
//! to its end.

mod control;
mod create;
mod delete;
mod exec;
mod hooks;
mod kill;
mod process;
mod query;
mod shim;
mod start;
mod stats;
mod watch;

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use containerd_shim_protos::api::{
    CheckpointTaskRequest, CloseIORequest, ConnectRequest, ConnectResponse, CreateTaskRequest, CreateTaskResponse,
    DeleteRequest, DeleteResponse, Empty, ExecProcessRequest, KillRequest, PauseRequest, PidsRequest, PidsResponse,
    ResizePtyRequest, ResumeRequest, ShutdownRequest, StartRequest, StartResponse, StateRequest, StateResponse,
    StatsRequest, StatsResponse, UpdateTaskRequest, WaitRequest, WaitResponse,
};
use containerd_shim_protos::shim_async::{Task as TaskApi, create_task};
use ttrpc::asynchronous::{Service, TtrpcContext};

use crate::error::TaskError;

pub use process::{Exit, KILLED};
pub use shim::Shim;

/// The name under which containerd 1.x calls the service; its messages are the same.
const SERVICE_V2: &str = "containerd.task.v2.Task";

/// The service.
#[derive(Clone)]
pub struct TaskService(Arc<Shim>);

impl TaskService {
    /// The service of this process.
    pub fn new(shim: Arc<Shim>) -> Self {
        Self(shim)
    }
}

/// The service under both of its names.
pub fn services(service: &TaskService) -> [HashMap<String, Service>; 2] {
    let make = || create_task(Arc::new(service.clone()));
    let renamed = make().into_values().map(|service| (SERVICE_V2.to_owned(), service)).collect();
    [make(), renamed]
}

/// Runs `work` to its end even if nobody waits for it any more.
async fn to_the_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, TaskError>> + Send + 'static,
) -> ttrpc::Result<T> {
    let result = match tokio::spawn(work).await {
        Ok(result) => result,
        Err(error) => Err(TaskError::internal(&error)),
    };
    result.map_err(|error| {
        tracing::debug!(code = ?error.code, %error, "a request failed");
        error.into()
    })
}

/// Somebody who waits for a task that is being made. Dropped when its connection is lost, as with containerd's death, or when it
/// has waited long enough: then the task is not wanted any more.
struct Caller<'a> {
    shim: &'a Shim,
    id: String,
    waits: bool,
}

impl Drop for Caller<'_> {
    fn drop(&mut self) {
        if self.waits {
            self.shim.give_up(&self.id);
        }
    }
}

fn empty<T>(_: T) -> Empty {
    Empty::default()
}

#[async_trait]
impl TaskApi for TaskService {
    async fn create(&self, _: &TtrpcContext, request: CreateTaskRequest) -> ttrpc::Result<CreateTaskResponse> {
        // Who doesn't wait for the answer will not know of the task.
        let mut caller = Caller { shim: &self.0, id: request.id.clone(), waits: true };
        let pid = to_the_end(create::create(Arc::clone(&self.0), request)).await;
        caller.waits = false;
        Ok(CreateTaskResponse { pid: pid?, ..Default::default() })
    }

    async fn start(&self, _: &TtrpcContext, request: StartRequest) -> ttrpc::Result<StartResponse> {
        let pid = to_the_end(start::start(Arc::clone(&self.0), request)).await?;
        Ok(StartResponse { pid, ..Default::default() })
    }

    async fn delete(&self, _: &TtrpcContext, request: DeleteRequest) -> ttrpc::Result<DeleteResponse> {
        to_the_end(delete::delete(Arc::clone(&self.0), request)).await
    }

    async fn exec(&self, _: &TtrpcContext, request: ExecProcessRequest) -> ttrpc::Result<Empty> {
        Ok(exec::add(&self.0, request).map(empty)?)
    }

    async fn kill(&self, _: &TtrpcContext, request: KillRequest) -> ttrpc::Result<Empty> {
        to_the_end(kill::kill(Arc::clone(&self.0), request)).await.map(empty)
    }

    async fn pause(&self, _: &TtrpcContext, request: PauseRequest) -> ttrpc::Result<Empty> {
        to_the_end(control::pause(Arc::clone(&self.0), request.id)).await.map(empty)
    }

    async fn resume(&self, _: &TtrpcContext, request: ResumeRequest) -> ttrpc::Result<Empty> {
        to_the_end(control::resume(Arc::clone(&self.0), request.id)).await.map(empty)
    }

    async fn update(&self, _: &TtrpcContext, request: UpdateTaskRequest) -> ttrpc::Result<Empty> {
        to_the_end(control::update(Arc::clone(&self.0), request)).await.map(empty)
    }

    async fn resize_pty(&self, _: &TtrpcContext, request: ResizePtyRequest) -> ttrpc::Result<Empty> {
        Ok(control::resize(&self.0, request).await.map(empty)?)
    }

    async fn close_io(&self, _: &TtrpcContext, request: CloseIORequest) -> ttrpc::Result<Empty> {
        Ok(control::close_io(&self.0, &request).map(empty)?)
    }

    async fn state(&self, _: &TtrpcContext, request: StateRequest) -> ttrpc::Result<StateResponse> {
        Ok(query::state(&self.0, &request)?)
    }

    async fn pids(&self, _: &TtrpcContext, request: PidsRequest) -> ttrpc::Result<PidsResponse> {
        Ok(query::pids(&self.0, &request)?)
    }

    async fn wait(&self, _: &TtrpcContext, request: WaitRequest) -> ttrpc::Result<WaitResponse> {
        Ok(query::wait(&self.0, &request).await?)
    }

    async fn stats(&self, _: &TtrpcContext, request: StatsRequest) -> ttrpc::Result<StatsResponse> {
        Ok(stats::stats(&self.0, &request.id).await?)
    }

    async fn connect(&self, _: &TtrpcContext, request: ConnectRequest) -> ttrpc::Result<ConnectResponse> {
        Ok(query::connect(&self.0, &request))
    }

    async fn shutdown(&self, _: &TtrpcContext, request: ShutdownRequest) -> ttrpc::Result<Empty> {
        self.0.shutdown(&request.id);
        Ok(Empty::default())
    }

    async fn checkpoint(&self, _: &TtrpcContext, _: CheckpointTaskRequest) -> ttrpc::Result<Empty> {
        Err(TaskError::unimplemented("Hull makes no checkpoints of containers").into())
    }
}

#[cfg(test)]
mod guest_test;
#[cfg(test)]
mod task_test;
