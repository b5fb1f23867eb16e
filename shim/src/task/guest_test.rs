//! Tasks in a guest that does not do what it is asked: a shell script is its monitor, a ttrpc server in this process its agent.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use containerd_shim_protos::api::{DeleteRequest, KillRequest, StartRequest};
use hull_protocol::agent::{
    CreateContainerRequest, CreateContainerResponse, DeleteContainerRequest, Empty as Nothing, ExecProcessRequest,
    ExecProcessResponse, HelloRequest, HelloResponse, SignalProcessRequest, Streams, WaitProcessRequest,
    WaitProcessResponse,
};
use hull_protocol::agent_ttrpc::{Agent, create_agent};
use hull_protocol::{AGENT_PORT, PROTOCOL_VERSION, READY_PORT, STREAM_PORT, Token};
use hull_sandbox::container::{ContainerConfig, ProcessIo};
use hull_sandbox::runtime_dir::SandboxStatus;
use hull_sandbox::timeline::Timeline;
use hull_sandbox::{NetworkNamespace, RuntimeRoot, Sandbox, SandboxConfig, SandboxRecord};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Notify, mpsc};
use tokio::time::{sleep, timeout};
use ttrpc::Code;
use ttrpc::asynchronous::Server;
use ttrpc::asynchronous::transport::Listener;

use super::process::{Guest, Process};
use super::shim::{Exec, Task};
use super::*;
use crate::args::Args;
use crate::events::EventQueue;
use crate::stdio::Stdio;
use crate::vm::Vm;

const SOON: Duration = Duration::from_secs(20);
const ID: &str = "0123456789ab";

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
    dir: tempfile::TempDir,
    shim: Arc<Shim>,
    task: Arc<Task>,
    asked: mpsc::UnboundedReceiver<String>,
    go_on: Arc<Notify>,
}

impl Scene {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (sender, asked) = mpsc::unbounded_channel();
        let go_on = Arc::new(Notify::new());
        let sandbox_dir = dir.path().join("run").join(ID);
        let agent = Yes { dir: sandbox_dir, asked: sender, go_on: Arc::clone(&go_on), signalled: Notify::new() };
        tokio::spawn(guest(agent));
        let (sandbox, root) = boot(dir.path()).await;
        let (container, streams) = sandbox.create_container(container()).await.unwrap();
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
        Self { dir, shim, task, asked, go_on }
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

/// A program that waits where a monitor runs a VM.
async fn boot(dir: &Path) -> (Sandbox, RuntimeRoot) {
    let monitor = dir.join("vmm");
    // run --config-fd N --events-fd N --runtime-dir DIR --id ID
    let script = "#!/bin/bash\nconfig=$(cat <&$3)\ncd \"$7\" || exit 9\nprintf %s \"$config\" >config.new\n\
                  mv config.new config.json\nexec sleep 600\n";
    fs::write(&monitor, script).unwrap();
    fs::set_permissions(&monitor, fs::Permissions::from_mode(0o755)).unwrap();
    fs::create_dir(dir.join("run")).unwrap();
    let root = RuntimeRoot::open(&dir.join("run")).unwrap();
    let config = SandboxConfig {
        record: SandboxRecord {
            id: ID.into(),
            name: "test".into(),
            image: String::new(),
            command: Vec::new(),
            created_s: 0,
            status: SandboxStatus::Starting,
            owner_pid: std::process::id(),
            monitor_pid: 0,
            vcpus: 1,
            memory_mib: 128,
            max_memory_mib: 128,
            stop_signal: 15,
            stop_timeout_s: 10,
        },
        max_vcpus: 1,
        root: root.clone(),
        monitor,
        kernel: "/kernel".into(),
        initramfs: "/initramfs".into(),
        drives: Vec::new(),
        shared_directory: false,
        watchdog: false,
        network: NetworkNamespace::Host,
        cgroup: None,
        ready_timeout: SOON,
    };
    (Sandbox::create(config, Arc::new(Timeline::default())).await.unwrap(), root)
}

/// Plays the guest behind the monitor's vsock socket.
async fn guest(agent: Yes) {
    let config = loop {
        match fs::read_to_string(agent.dir.join("config.json")) {
            Ok(config) => break config,
            Err(_) => sleep(Duration::from_millis(5)).await,
        }
    };
    let (_, rest) = config.split_once("hull.boot_token=").unwrap();
    let token: Token = rest[..32].parse().unwrap();
    let listener = UnixListener::bind(agent.dir.join("v")).unwrap();
    let sockets = futures::stream::unfold(listener, |listener| async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut line = vec![0; format!("CONNECT {AGENT_PORT}\n").len()];
        stream.read_exact(&mut line).await.unwrap();
        stream.write_all(b"OK 77\n").await.unwrap();
        Some((Ok(stream), listener))
    });
    let mut ready = UnixStream::connect(agent.dir.join(format!("v_{READY_PORT}"))).await.unwrap();
    let mut server = Server::new().add_listener(Listener::new(sockets)).register_service(create_agent(Arc::new(agent)));
    server.start().await.unwrap();
    ready.write_all(token.as_bytes()).await.unwrap();
    std::future::pending().await
}

fn container() -> ContainerConfig {
    ContainerConfig {
        id: "c".into(),
        spec_json: "{}".into(),
        image_serial: "image".into(),
        read_only: false,
        user: String::new(),
        use_init: false,
        files: Vec::new(),
        io: ProcessIo { stdin: false, terminal: None },
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
    assert_eq!(fs::read_dir(scene.dir.path().join("run")).unwrap().count(), 0, "nothing of the VM is left");
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
