//! The life of a sandbox with a shell script as monitor and a ttrpc server in this process as guest.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use hull_protocol::agent::*;
use hull_protocol::agent_ttrpc::Agent;
use hull_protocol::{PROTOCOL_VERSION, Token};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use ttrpc::asynchronous::TtrpcContext;

use crate::container::ProcessIo;
use crate::sandbox::Sandbox;
use crate::testing::{Stage, container, guest};
use crate::{AgentErrorKind, SandboxError};

const PATIENCE: Duration = Duration::from_secs(20);

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

async fn booted(scene: &Stage, manners: Manners) -> Result<Sandbox, SandboxError> {
    let agent = FakeAgent { dir: scene.sandbox_dir(), manners };
    let prove = move |token: Token| if manners.wrong_boot_token { [1; Token::LENGTH] } else { *token.as_bytes() };
    let guest = tokio::spawn(guest(scene.sandbox_dir(), agent, prove));
    let sandbox = scene.create(Duration::from_secs(2)).await;
    if sandbox.is_err() {
        guest.abort();
    }
    sandbox
}

#[tokio::test]
async fn a_container_runs_to_its_end_and_nothing_is_left() {
    let scene = Stage::sleeping();
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
    let scene = Stage::new(&format!("printf '%s\\n' '{event}' >&$5; exit 1"));
    let start = Instant::now();
    let error = scene.create(Duration::from_secs(600)).await.err().unwrap();
    assert_eq!(error.to_string(), "The guest kernel panicked; console: Kernel panic - not syncing: no init");
    assert!(start.elapsed() < PATIENCE);
    scene.assert_nothing_left();
}

#[tokio::test]
async fn a_monitor_without_a_last_word_is_described_by_its_status() {
    let scene = Stage::new("echo 'bad flag' >&2; exit 2");
    let error = scene.create(Duration::from_secs(600)).await.err().unwrap();
    assert!(error.to_string().contains("status 2") && error.to_string().contains("bad flag"), "{error}");
    let scene = Stage::new("kill -9 $$");
    let error = scene.create(Duration::from_secs(600)).await.err().unwrap();
    assert!(error.to_string().contains("killed by signal 9"), "{error}");
    scene.assert_nothing_left();
}

#[tokio::test]
async fn a_guest_that_never_reports_is_given_up() {
    let scene = Stage::sleeping();
    let error = scene.create(Duration::from_millis(200)).await.err().unwrap();
    assert!(matches!(error, SandboxError::NotReady(_)), "{error}");
    scene.assert_nothing_left();
}

#[tokio::test]
async fn a_wrong_boot_token_makes_nobody_ready() {
    let scene = Stage::sleeping();
    let manners = Manners { wrong_boot_token: true, ..Manners::default() };
    let error = booted(&scene, manners).await.err().unwrap();
    assert!(matches!(error, SandboxError::NotReady(_)), "{error}");
    scene.assert_nothing_left();
}

#[tokio::test]
async fn an_agent_of_another_version_is_refused() {
    let scene = Stage::sleeping();
    let manners = Manners { other_version: true, ..Manners::default() };
    let error = booted(&scene, manners).await.err().unwrap();
    assert!(error.to_string().contains("protocol"), "{error}");
    scene.assert_nothing_left();
}

#[tokio::test]
async fn an_error_of_the_agent_is_one_clean_line_of_a_kind() {
    let scene = Stage::sleeping();
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
    let scene = Stage::sleeping();
    let manners = Manners { no_streams: true, ..Manners::default() };
    let sandbox = booted(&scene, manners).await.unwrap();
    let error = sandbox.create_container(container("c")).await.err().unwrap();
    assert!(matches!(error, SandboxError::StreamMissing("standard output")), "{error}");
    sandbox.shutdown().await;
    scene.assert_nothing_left();
}

#[tokio::test]
async fn what_may_be_there_although_it_was_not_made_is_discarded_in_the_guest() {
    let scene = Stage::sleeping();
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
    let scene = Stage::sleeping();
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
    let scene = Stage::sleeping();
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
    let scene = Stage::sleeping();
    fs::remove_file(scene.path().join("vmm")).unwrap();
    let error = scene.create(Duration::from_secs(1)).await.err().unwrap();
    assert!(matches!(error, SandboxError::Spawn { .. }), "{error}");
    scene.assert_nothing_left();
}
