//! The life of a sandbox with a shell script as monitor and a ttrpc server in this process as guest.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use hull_protocol::agent::*;
use hull_protocol::agent_ttrpc::{Agent, create_agent};
use hull_protocol::{PROTOCOL_VERSION, Token};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use ttrpc::asynchronous::transport::Listener;
use ttrpc::asynchronous::{Server, TtrpcContext};

use crate::container::{ContainerConfig, ProcessIo};
use crate::network::NetworkNamespace;
use crate::runtime_dir::{RuntimeRoot, SandboxRecord, SandboxStatus};
use crate::sandbox::{Sandbox, SandboxConfig};
use crate::timeline::Timeline;
use crate::{AgentErrorKind, SandboxError};

const ID: &str = "0123456789ab";
const SAVE_CONFIG: &str = "printf %s \"$config\" > config.new; mv config.new config.json";
const PATIENCE: Duration = Duration::from_secs(20);

/// A runtime root and a monitor that is a shell script; the script runs in the sandbox's directory.
struct Scene {
    dir: tempfile::TempDir,
}

impl Scene {
    fn new(script: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("vmm");
        // run --config-fd N --events-fd N --runtime-dir DIR --id ID
        fs::write(&program, format!("#!/bin/bash\nconfig=$(cat <&$3)\ncd \"$7\" || exit 9\n{script}\n")).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        fs::create_dir(dir.path().join("run")).unwrap();
        Self { dir }
    }

    fn runtime(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    fn sandbox_dir(&self) -> PathBuf {
        self.runtime().join(ID)
    }

    async fn create(&self, ready_timeout: Duration) -> Result<Sandbox, SandboxError> {
        let config = SandboxConfig {
            record: SandboxRecord {
                id: ID.into(),
                name: "test".into(),
                image: "none".into(),
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
            root: RuntimeRoot::open(&self.runtime()).unwrap(),
            monitor: self.dir.path().join("vmm"),
            kernel: "/kernel".into(),
            initramfs: "/initramfs".into(),
            drives: Vec::new(),
            shared_directory: false,
            watchdog: false,
            network: NetworkNamespace::Host,
            cgroup: None,
            ready_timeout,
        };
        Sandbox::create(config, Arc::new(Timeline::default())).await
    }

    fn assert_nothing_left(&self) {
        assert_eq!(fs::read_dir(self.runtime()).unwrap().count(), 0);
    }
}

/// How the fake agent behaves.
#[derive(Clone, Copy, Default)]
struct Manners {
    wrong_boot_token: bool,
    other_version: bool,
    no_streams: bool,
    refuse_create: bool,
    too_slow: bool,
}

struct FakeAgent {
    dir: PathBuf,
    manners: Manners,
}

impl FakeAgent {
    /// What it was asked to do, a line each.
    fn note(&self, line: std::fmt::Arguments<'_>) {
        let mut notes = fs::File::options().append(true).create(true).open(notes(&self.dir)).unwrap();
        std::io::Write::write_all(&mut notes, format!("{line}\n").as_bytes()).unwrap();
    }
}

/// Beside the directory of the sandbox, which goes away with it.
fn notes(sandbox_dir: &Path) -> PathBuf {
    sandbox_dir.ancestors().nth(2).unwrap().join("notes")
}

#[async_trait]
impl Agent for FakeAgent {
    async fn hello(&self, _: &TtrpcContext, request: HelloRequest) -> ttrpc::Result<HelloResponse> {
        assert!(request.entropy.len() >= 64 && request.wall_clock_ns > 0);
        Ok(HelloResponse {
            protocol_version: PROTOCOL_VERSION + u32::from(self.manners.other_version),
            agent_started_ns: 1,
            agent_ready_ns: 2,
            ..Default::default()
        })
    }

    async fn create_container(
        &self,
        _: &TtrpcContext,
        request: CreateContainerRequest,
    ) -> ttrpc::Result<CreateContainerResponse> {
        if self.manners.refuse_create {
            let text = "exec: \"nope\":\x1b[2J not\nfound";
            let status = ttrpc::get_status(ttrpc::Code::NOT_FOUND, text);
            return Err(ttrpc::Error::RpcStatus(status));
        }
        if self.manners.too_slow {
            return Err(ttrpc::Error::RpcStatus(ttrpc::get_status(ttrpc::Code::DEADLINE_EXCEEDED, "")));
        }
        if !self.manners.no_streams {
            for (token, text) in [(&request.streams.stdout, "out"), (&request.streams.stderr, "err")] {
                let mut stream = UnixStream::connect(self.dir.join("v_1025")).await.unwrap();
                stream.write_all(token).await.unwrap();
                stream.write_all(text.as_bytes()).await.unwrap();
            }
        }
        Ok(CreateContainerResponse::default())
    }

    async fn start_container(&self, _: &TtrpcContext, _: StartContainerRequest) -> ttrpc::Result<Empty> {
        Ok(Empty::default())
    }

    async fn exec_process(&self, _: &TtrpcContext, request: ExecProcessRequest) -> ttrpc::Result<ExecProcessResponse> {
        match request.exec_id.as_str() {
            "slow" => Err(ttrpc::Error::RpcStatus(ttrpc::get_status(ttrpc::Code::DEADLINE_EXCEEDED, ""))),
            "taken" => Err(ttrpc::Error::RpcStatus(ttrpc::get_status(ttrpc::Code::ALREADY_EXISTS, "taken"))),
            _ => Ok(ExecProcessResponse::default()),
        }
    }

    async fn signal_process(&self, _: &TtrpcContext, request: SignalProcessRequest) -> ttrpc::Result<Empty> {
        self.note(format_args!("signal {} {}", request.signal, request.exec_id));
        Ok(Empty::default())
    }

    async fn delete_container(&self, _: &TtrpcContext, request: DeleteContainerRequest) -> ttrpc::Result<Empty> {
        self.note(format_args!("delete {} {}", request.container_id, request.exec_id));
        Ok(Empty::default())
    }

    async fn wait_process(&self, _: &TtrpcContext, request: WaitProcessRequest) -> ttrpc::Result<WaitProcessResponse> {
        if request.container_id == "forever" {
            std::future::pending::<()>().await;
        }
        Ok(WaitProcessResponse { exit_status: 3, ..Default::default() })
    }
}

/// Plays the guest behind the monitor's vsock socket, until aborted.
async fn guest(dir: PathBuf, manners: Manners) {
    let token = boot_token(&dir).await;
    let listener = UnixListener::bind(dir.join("v")).unwrap();
    let sockets = futures::stream::unfold(listener, |listener| async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut line = [0; 13];
        stream.read_exact(&mut line).await.unwrap();
        assert_eq!(&line, b"CONNECT 1024\n");
        stream.write_all(b"OK 77\n").await.unwrap();
        Some((Ok(stream), listener))
    });
    let agent = FakeAgent { dir: dir.clone(), manners };
    let mut server = Server::new().add_listener(Listener::new(sockets)).register_service(create_agent(Arc::new(agent)));
    server.start().await.unwrap();
    let mut ready = UnixStream::connect(dir.join("v_1024")).await.unwrap();
    let bytes = match manners.wrong_boot_token {
        true => [1; 16],
        false => *token.as_bytes(),
    };
    ready.write_all(&bytes).await.unwrap();
    std::future::pending().await
}

async fn boot_token(dir: &Path) -> Token {
    let config = loop {
        match fs::read_to_string(dir.join("config.json")) {
            Ok(config) => break config,
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    };
    let (_, rest) = config.split_once("hull.boot_token=").unwrap();
    rest[..32].parse().unwrap()
}

async fn booted(scene: &Scene, manners: Manners) -> Result<Sandbox, SandboxError> {
    let guest = tokio::spawn(guest(scene.sandbox_dir(), manners));
    let sandbox = scene.create(Duration::from_secs(2)).await;
    if sandbox.is_err() {
        guest.abort();
    }
    sandbox
}

fn sleeping() -> Scene {
    Scene::new(&format!("{SAVE_CONFIG}; exec sleep 600"))
}

fn container(id: &str) -> ContainerConfig {
    ContainerConfig {
        id: id.into(),
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
async fn a_container_runs_to_its_end_and_nothing_is_left() {
    let scene = sleeping();
    let sandbox = booted(&scene, Manners::default()).await.unwrap();
    let names: Vec<_> = sandbox.timeline().marks().iter().map(|mark| mark.name).collect();
    assert!(names.contains(&"agent started") && names.contains(&"agent ready"), "{names:?}");
    let (container, mut streams) = sandbox.create_container(container("c")).await.unwrap();
    container.start().await.unwrap();
    let mut text = String::new();
    streams.stdout.take().unwrap().read_to_string(&mut text).await.unwrap();
    streams.stderr.take().unwrap().read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "outerr");
    assert!(streams.stdin.is_none());
    assert_eq!(container.process().wait().await.unwrap().status, 3);
    drop(container);
    sandbox.shutdown().await;
    scene.assert_nothing_left();
}

#[tokio::test]
async fn a_vm_that_dies_before_it_is_ready_says_why_at_once() {
    let event =
        r#"{"event":"exited","cause":"panic","message":"","console_tail":"Kernel panic - not syncing: no init\n"}"#;
    let scene = Scene::new(&format!("printf '%s\\n' '{event}' >&$5; exit 1"));
    let start = Instant::now();
    let error = scene.create(Duration::from_secs(600)).await.err().unwrap();
    assert_eq!(error.to_string(), "The guest kernel panicked; console: Kernel panic - not syncing: no init");
    assert!(start.elapsed() < PATIENCE);
    scene.assert_nothing_left();
}

#[tokio::test]
async fn a_monitor_without_a_last_word_is_described_by_its_status() {
    let scene = Scene::new("echo 'bad flag' >&2; exit 2");
    let error = scene.create(Duration::from_secs(600)).await.err().unwrap();
    assert!(error.to_string().contains("status 2") && error.to_string().contains("bad flag"), "{error}");
    let scene = Scene::new("kill -9 $$");
    let error = scene.create(Duration::from_secs(600)).await.err().unwrap();
    assert!(error.to_string().contains("killed by signal 9"), "{error}");
    scene.assert_nothing_left();
}

#[tokio::test]
async fn a_guest_that_never_reports_is_given_up() {
    let scene = sleeping();
    let error = scene.create(Duration::from_millis(200)).await.err().unwrap();
    assert!(matches!(error, SandboxError::NotReady(_)), "{error}");
    scene.assert_nothing_left();
}

#[tokio::test]
async fn a_wrong_boot_token_makes_nobody_ready() {
    let scene = sleeping();
    let manners = Manners { wrong_boot_token: true, ..Manners::default() };
    let error = booted(&scene, manners).await.err().unwrap();
    assert!(matches!(error, SandboxError::NotReady(_)), "{error}");
    scene.assert_nothing_left();
}

#[tokio::test]
async fn an_agent_of_another_version_is_refused() {
    let scene = sleeping();
    let manners = Manners { other_version: true, ..Manners::default() };
    let error = booted(&scene, manners).await.err().unwrap();
    assert!(error.to_string().contains("protocol"), "{error}");
    scene.assert_nothing_left();
}

#[tokio::test]
async fn an_error_of_the_agent_is_one_clean_line_of_a_kind() {
    let scene = sleeping();
    let manners = Manners { refuse_create: true, ..Manners::default() };
    let sandbox = booted(&scene, manners).await.unwrap();
    let Err(SandboxError::Agent(error)) = sandbox.create_container(container("c")).await else {
        panic!("refused");
    };
    assert_eq!(error.kind, AgentErrorKind::NotFound);
    assert_eq!(error.message, "exec: \"nope\": [2J not found");
    sandbox.shutdown().await;
}

#[tokio::test]
async fn streams_that_are_never_connected_are_named() {
    let scene = sleeping();
    let manners = Manners { no_streams: true, ..Manners::default() };
    let sandbox = booted(&scene, manners).await.unwrap();
    let error = sandbox.create_container(container("c")).await.err().unwrap();
    assert!(matches!(error, SandboxError::StreamMissing("standard output")), "{error}");
    sandbox.shutdown().await;
    scene.assert_nothing_left();
}

#[tokio::test]
async fn what_may_be_there_although_it_was_not_made_is_discarded_in_the_guest() {
    let scene = sleeping();
    let sandbox = booted(&scene, Manners { too_slow: true, ..Manners::default() }).await.unwrap();
    let Err(SandboxError::Agent(error)) = sandbox.create_container(container("late")).await else {
        panic!("too slow");
    };
    assert_eq!(error.kind, AgentErrorKind::TimedOut);
    sandbox.shutdown().await;

    let sandbox = booted(&scene, Manners::default()).await.unwrap();
    let (container, _streams) = sandbox.create_container(container("c")).await.unwrap();
    let io = ProcessIo { stdin: false, terminal: None };
    for exec_id in ["mute", "slow", "taken"] {
        assert!(container.exec(exec_id, "{}".into(), "", io).await.is_err());
    }
    drop(container);
    sandbox.shutdown().await;
    let noted = fs::read_to_string(notes(&scene.sandbox_dir())).unwrap();
    let expected = "delete late \nsignal 9 mute\ndelete c mute\nsignal 9 slow\ndelete c slow\n";
    assert_eq!(noted, expected, "the one whose name was taken is another's");
}

#[tokio::test]
async fn a_killed_monitor_ends_every_wait_at_once() {
    let scene = sleeping();
    let sandbox = booted(&scene, Manners::default()).await.unwrap();
    let (container, _streams) = sandbox.create_container(container("forever")).await.unwrap();
    let monitor = i32::try_from(sandbox.record().monitor_pid).unwrap();
    let start = Instant::now();
    let kill = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(monitor), nix::sys::signal::SIGKILL).unwrap();
    };
    let (result, ()) = tokio::join!(container.process().wait(), kill);
    let Err(SandboxError::VmEnded(end)) = result else {
        panic!("ended");
    };
    assert!(end.was_killed() && end.to_string().contains("signal 9"));
    assert!(start.elapsed() < PATIENCE);
    // Calls after the end answer too.
    assert!(matches!(container.start().await, Err(SandboxError::VmEnded(_))));
    drop(container);
    sandbox.shutdown().await;
    scene.assert_nothing_left();
}

#[tokio::test]
async fn dropping_a_sandbox_kills_its_monitor_and_removes_its_directory() {
    let scene = sleeping();
    let sandbox = booted(&scene, Manners::default()).await.unwrap();
    let monitor = format!("/proc/{}/comm", sandbox.record().monitor_pid);
    assert!(Path::new(&monitor).exists());
    drop(sandbox);
    scene.assert_nothing_left();
    let start = Instant::now();
    while Path::new(&monitor).exists() {
        assert!(start.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_missing_monitor_is_named() {
    let scene = sleeping();
    fs::remove_file(scene.dir.path().join("vmm")).unwrap();
    let error = scene.create(Duration::from_secs(1)).await.err().unwrap();
    assert!(matches!(error, SandboxError::Spawn { .. }), "{error}");
    scene.assert_nothing_left();
}
