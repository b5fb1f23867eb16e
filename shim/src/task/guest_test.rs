//! Tasks in a guest that does not do what it is asked: a shell script is its monitor, a ttrpc server in this process its agent.

use std::path::PathBuf;
use std::time::Duration;

use containerd_shim_protos::api::{DeleteRequest, KillRequest, StartRequest};
use hull_protocol::agent::{
    CreateContainerRequest, CreateContainerResponse, DeleteContainerRequest, Empty as Nothing, ExecProcessRequest,
    ExecProcessResponse, HelloRequest, HelloResponse, SignalProcessRequest, Streams, WaitProcessRequest,
    WaitProcessResponse,
};
use hull_protocol::agent_ttrpc::Agent;
use hull_protocol::{PROTOCOL_VERSION, STREAM_PORT};
use hull_sandbox::RuntimeRoot;
use hull_sandbox::testing::{Stage, container, guest};
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixStream;
use tokio::sync::{Notify, mpsc};
use tokio::time::timeout;
use ttrpc::Code;

use super::process::{Guest, Process};
use super::shim::{Exec, Task};
use super::*;
use crate::args::Args;
use crate::events::EventQueue;
use crate::stdio::Stdio;
use crate::vm::Vm;

const SOON: Duration = Duration::from_secs(20);

/// An agent that says yes to everything. A signal ends a process that was exec'd, and nothing ends a container.
struct Yes {
    dir: PathBuf,
    asked: mpsc::UnboundedSender<String>,
    /// Until then a process is being made.
    go_on: Arc<Notify>,
    signalled: Notify,
}

impl Yes {
    fn asked(&self, what: String) {
        let _ = self.asked.send(what);
    }

    async fn connect(&self, streams: &Streams) {
        for token in [&streams.stdout, &streams.stderr] {
            let mut stream = UnixStream::connect(self.dir.join(format!("v_{STREAM_PORT}"))).await.unwrap();
            stream.write_all(token).await.unwrap();
        }
    }
}

#[async_trait]
impl Agent for Yes {
    async fn hello(&self, _: &TtrpcContext, _: HelloRequest) -> ttrpc::Result<HelloResponse> {
        Ok(HelloResponse { protocol_version: PROTOCOL_VERSION, ..Default::default() })
    }

    async fn create_container(
        &self,
        _: &TtrpcContext,
        request: CreateContainerRequest,
    ) -> ttrpc::Result<CreateContainerResponse> {
        self.connect(&request.streams).await;
        Ok(CreateContainerResponse::default())
    }

    async fn exec_process(&self, _: &TtrpcContext, request: ExecProcessRequest) -> ttrpc::Result<ExecProcessResponse> {
        self.asked(format!("exec {}", request.exec_id));
        self.go_on.notified().await;
        self.connect(&request.streams).await;
        Ok(ExecProcessResponse::default())
    }

    async fn signal_process(&self, _: &TtrpcContext, request: SignalProcessRequest) -> ttrpc::Result<Nothing> {
        let all = if request.all { " all" } else { "" };
        self.asked(format!("signal {} {}{all}", request.signal, request.exec_id));
        self.signalled.notify_one();
        Ok(Nothing::default())
    }

    async fn wait_process(&self, _: &TtrpcContext, request: WaitProcessRequest) -> ttrpc::Result<WaitProcessResponse> {
        if request.exec_id.is_empty() {
            std::future::pending::<()>().await;
        }
        self.signalled.notified().await;
        Ok(WaitProcessResponse::default())
    }

    async fn delete_container(&self, _: &TtrpcContext, request: DeleteContainerRequest) -> ttrpc::Result<Nothing> {
        self.asked(format!("delete {}", request.exec_id));
        Ok(Nothing::default())
    }
}

/// A running container `c` in the guest, with the exec'd process `e` that was not started yet.
struct Scene {
    stage: Stage,
    shim: Arc<Shim>,
    task: Arc<Task>,
    asked: mpsc::UnboundedReceiver<String>,
    go_on: Arc<Notify>,
}

impl Scene {
    async fn new() -> Self {
        let stage = Stage::sleeping();
        let (sender, asked) = mpsc::unbounded_channel();
        let go_on = Arc::new(Notify::new());
        let dir = stage.sandbox_dir();
        let agent = Yes { dir: dir.clone(), asked: sender, go_on: Arc::clone(&go_on), signalled: Notify::new() };
        tokio::spawn(guest(dir, agent, |token| *token.as_bytes()));
        let sandbox = stage.create(SOON).await.unwrap();
        let root = RuntimeRoot::open(&stage.runtime()).unwrap();
        let (container, streams) = sandbox.create_container(container("c")).await.unwrap();
        let shim = Arc::new(Shim::new(Args::sample(), EventQueue::default()));
        *shim.vm.write().await = Some(Vm::around(sandbox, root));

        let (init, container) = (Process::new("", Stdio::default()), Arc::new(container));
        let opened = init.stdio.open(shim.owner("c")).await.unwrap();
        init.enter(Guest::Init(Arc::clone(&container)), opened.connect(streams));
        init.set_running();
        let task = Arc::new(Task::new("c", "/bundle".into(), 1, Arc::new(init), Some(container)));
        let process = Arc::new(Process::new("e", Stdio::default()));
        task.add_exec(Exec { process, spec: "{}".into() }).unwrap();
        assert!(shim.reserve("c").unwrap().fulfil(Arc::clone(&task)));
        watch::task(&shim, &task).await;
        Self { stage, shim, task, asked, go_on }
    }

    async fn asked(&mut self) -> String {
        timeout(SOON, self.asked.recv()).await.expect("the guest is asked").unwrap()
    }

    fn start(&self) -> tokio::task::JoinHandle<Result<u32, TaskError>> {
        let request = StartRequest { id: "c".into(), exec_id: "e".into(), ..Default::default() };
        tokio::spawn(start::start(Arc::clone(&self.shim), request))
    }

    async fn kill(&self, exec_id: &str) -> Result<(), TaskError> {
        let request =
            KillRequest { id: "c".into(), exec_id: exec_id.into(), signal: 9, all: true, ..Default::default() };
        kill::kill(Arc::clone(&self.shim), request).await
    }
}

#[tokio::test]
async fn a_guest_that_does_not_end_what_was_killed_is_ended() {
    let mut scene = Scene::new().await;
    scene.kill("").await.unwrap();
    assert_eq!(scene.asked().await, "signal 9  all");
    assert_eq!(scene.task.init.exited_within(SOON).await.unwrap().status, KILLED);
    assert_eq!(scene.shim.events.topics(), ["/tasks/exit"]);
    let request = DeleteRequest { id: "c".into(), ..Default::default() };
    timeout(SOON, delete::delete(Arc::clone(&scene.shim), request)).await.unwrap().unwrap();
    assert!(scene.shim.vm.read().await.is_none());
    scene.stage.assert_nothing_left();
}

#[tokio::test]
async fn a_process_that_is_deleted_while_a_slow_guest_makes_it_is_ended_there() {
    let mut scene = Scene::new().await;
    let starts = scene.start();
    assert_eq!(scene.asked().await, "exec e");
    let request = DeleteRequest { id: "c".into(), exec_id: "e".into(), ..Default::default() };
    timeout(SOON, delete::delete(Arc::clone(&scene.shim), request)).await.unwrap().unwrap();
    scene.go_on.notify_one();
    let error = timeout(SOON, starts).await.unwrap().unwrap().unwrap_err();
    assert_eq!(error.code, Code::FAILED_PRECONDITION);
    assert_eq!((scene.asked().await, scene.asked().await), ("signal 9 e".into(), "delete e".into()));
    assert!(scene.shim.events.topics().is_empty(), "it never ran");
}

#[tokio::test]
async fn a_signal_for_one_process_is_not_for_all_of_its_container() {
    let mut scene = Scene::new().await;
    scene.go_on.notify_one();
    timeout(SOON, scene.start()).await.unwrap().unwrap().unwrap();
    assert_eq!(scene.asked().await, "exec e");
    scene.kill("e").await.unwrap();
    assert_eq!(scene.asked().await, "signal 9 e");
    let process = Arc::clone(&scene.task.exec("e").unwrap().process);
    assert_eq!(process.exited_within(SOON).await.unwrap().status, 0);
    assert!(scene.task.init.is_running());
}
