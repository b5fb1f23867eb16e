//! Stands in for `hull-vmm` in tests without a VM: its "guest" runs the command on the host as an ordinary process.
//!
//! It speaks everything that the front door sees: configuration and events on descriptors, the ready token, ttrpc behind
//! the vsock socket, and a token in front of every stream. It contains nothing and must never be installed.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a tool of the tests")]

use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use hull_protocol::agent::*;
use hull_protocol::agent_ttrpc::{Agent, create_agent};
use nix::pty::{Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use ttrpc::asynchronous::transport::Listener;
use ttrpc::asynchronous::{Server, TtrpcContext};
use ttrpc::{Code, get_status};

#[tokio::main]
async fn main() {
    if std::env::args().nth(1).as_deref() == Some("probe") {
        println!(r#"{{"checks":[{{"name":"/dev/kvm","ok":true,"detail":"fake","hint":null}}],"can_run_guests":true}}"#);
        return;
    }
    let config: Value = serde_json::from_reader(inherited(3)).unwrap();
    let uds = PathBuf::from(config["vsock"]["uds_path"].as_str().unwrap());
    let boot_args = config["boot-source"]["boot_args"].as_str().unwrap();
    let token = boot_args.split_whitespace().find_map(|word| word.strip_prefix("hull.boot_token=")).unwrap();
    event(r#"{"event":"phase","phase":"monitor_started","at_ns":1}"#);
    if std::env::var_os("FAKE_PANIC").is_some() {
        event(r#"{"event":"exited","cause":"panic","message":"","console_tail":"Kernel panic - not syncing: fake"}"#);
        std::process::exit(1);
    }
    serve(&uds).await;
    let mut ready = UnixStream::connect(beside(&uds, 1024)).await.unwrap();
    let token: hull_protocol::Token = token.parse().unwrap();
    ready.write_all(token.as_bytes()).await.unwrap();
    // The front door is gone when the event stream hangs up.
    let mut events = inherited(5);
    let _ = tokio::task::spawn_blocking(move || events.read(&mut [0])).await.unwrap();
    let _ = std::fs::remove_dir_all(uds.parent().unwrap());
    std::process::exit(0);
}

fn event(line: &str) {
    writeln!(inherited(5), "{line}").unwrap();
}

/// run --config-fd N --events-fd N ...
#[allow(unsafe_code, reason = "a number on the command line has to become a descriptor")]
fn inherited(argument: usize) -> std::fs::File {
    use std::os::fd::BorrowedFd;
    let number = std::env::args().nth(argument).unwrap().parse().unwrap();
    // SAFETY: the front door left this descriptor open for us, and nothing here closes it.
    let fd = unsafe { BorrowedFd::borrow_raw(number) };
    // What the guest runs shall not hold it.
    nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC)).unwrap();
    fd.try_clone_to_owned().unwrap().into()
}

fn beside(uds: &Path, port: u32) -> PathBuf {
    format!("{}_{port}", uds.display()).into()
}

async fn serve(uds: &Path) {
    let listener = UnixListener::bind(uds).unwrap();
    let sockets = futures::stream::unfold(listener, |listener| async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut line = [0; 13];
        stream.read_exact(&mut line).await.unwrap();
        assert_eq!(&line, b"CONNECT 1024\n");
        stream.write_all(b"OK 77\n").await.unwrap();
        Some((Ok(stream), listener))
    });
    let agent = FakeAgent { streams: beside(uds, 1025), ..FakeAgent::default() };
    let mut server = Server::new().add_listener(Listener::new(sockets)).register_service(create_agent(Arc::new(agent)));
    server.start().await.unwrap();
    std::mem::forget(server);
}

#[derive(Default)]
struct FakeAgent {
    streams: PathBuf,
    container: Mutex<Option<Prepared>>,
    running: Mutex<HashMap<&'static str, i32>>,
    terminal: Mutex<Option<OwnedFd>>,
    ended: Mutex<Option<watch::Receiver<Option<WaitProcessResponse>>>>,
}

struct Prepared {
    process: Value,
    stdin: Option<UnixStream>,
    stdout: Option<UnixStream>,
    stderr: Option<UnixStream>,
}

fn fail<T>(code: Code, text: String) -> ttrpc::Result<T> {
    Err(ttrpc::Error::RpcStatus(get_status(code, text)))
}

impl FakeAgent {
    async fn dial(&self, token: &[u8]) -> Option<UnixStream> {
        if token.is_empty() {
            return None;
        }
        let mut stream = UnixStream::connect(&self.streams).await.unwrap();
        stream.write_all(token).await.unwrap();
        Some(stream)
    }
}

#[async_trait]
impl Agent for FakeAgent {
    async fn hello(&self, _: &TtrpcContext, request: HelloRequest) -> ttrpc::Result<HelloResponse> {
        let protocol_version = request.protocol_version;
        Ok(HelloResponse { protocol_version, agent_started_ns: 1, agent_ready_ns: 2, ..Default::default() })
    }

    async fn create_container(
        &self,
        _: &TtrpcContext,
        request: CreateContainerRequest,
    ) -> ttrpc::Result<CreateContainerResponse> {
        let spec: Value = serde_json::from_slice(&request.oci_spec_json).unwrap();
        let program = spec["process"]["args"][0].as_str().unwrap();
        if program.contains("missing") {
            return fail(Code::NOT_FOUND, format!("exec {program:?}: not found"));
        }
        if program.starts_with('/') && Path::new(program).is_file() && program.contains("passwd") {
            return fail(Code::PERMISSION_DENIED, format!("exec {program:?}: permission denied"));
        }
        if request.user == "nobody-here" {
            return fail(Code::INVALID_ARGUMENT, format!("user {:?} does not exist", request.user));
        }
        let prepared = Prepared {
            process: spec["process"].clone(),
            stdin: self.dial(&request.streams.stdin).await,
            stdout: self.dial(&request.streams.stdout).await,
            stderr: self.dial(&request.streams.stderr).await,
        };
        *self.container.lock().unwrap() = Some(prepared);
        Ok(CreateContainerResponse::default())
    }

    async fn start_container(&self, _: &TtrpcContext, _: StartContainerRequest) -> ttrpc::Result<Empty> {
        let mut prepared = self.container.lock().unwrap().take().unwrap();
        let words = |value: &Value| -> Vec<String> {
            value.as_array().unwrap().iter().map(|word| word.as_str().unwrap().to_owned()).collect()
        };
        let args = words(&prepared.process["args"]);
        let terminal = prepared.process["terminal"] == true;
        let mut command = match terminal {
            true => Command::new("setsid"),
            false => Command::new(&args[0]),
        };
        if terminal {
            command.arg("-c").args(&args);
        } else {
            // As `setsid` does it for a terminal.
            command.args(&args[1..]).process_group(0);
        }
        command.env_clear();
        for variable in words(&prepared.process["env"]) {
            let (name, value) = variable.split_once('=').unwrap();
            command.env(name, value);
        }
        let mut pumps = Vec::new();
        if terminal {
            let pty = openpty(None, None).unwrap();
            for stdio in [Command::stdin, Command::stdout, Command::stderr] {
                stdio(&mut command, Stdio::from(pty.slave.try_clone().unwrap()));
            }
            let (reader, writer) = (pty.master.try_clone().unwrap(), pty.master.try_clone().unwrap());
            *self.terminal.lock().unwrap() = Some(pty.master);
            pumps.push(copy(std::fs::File::from(reader), blocking(prepared.stdout.take().unwrap())));
            if let Some(stdin) = prepared.stdin.take() {
                copy(blocking(stdin), std::fs::File::from(writer));
            }
        } else {
            command.stdin(if prepared.stdin.is_some() { Stdio::piped() } else { Stdio::null() });
            command.stdout(Stdio::piped()).stderr(Stdio::piped());
        }
        let mut child = command.spawn().unwrap();
        drop(command);
        let mut guard = guard(child.id().unwrap());
        self.running.lock().unwrap().insert("pid", child.id().unwrap().try_into().unwrap());
        if !terminal {
            let stdout = child.stdout.take().unwrap().into_owned_fd().unwrap();
            pumps.push(copy(std::fs::File::from(stdout), blocking(prepared.stdout.take().unwrap())));
            let stderr = child.stderr.take().unwrap().into_owned_fd().unwrap();
            pumps.push(copy(std::fs::File::from(stderr), blocking(prepared.stderr.unwrap())));
            if let (Some(stdin), Some(pipe)) = (prepared.stdin.take(), child.stdin.take()) {
                copy(blocking(stdin), std::fs::File::from(pipe.into_owned_fd().unwrap()));
            }
        }
        let (sender, ended) = watch::channel(None);
        *self.ended.lock().unwrap() = Some(ended);
        tokio::spawn(async move {
            let status = child.wait().await.unwrap();
            // A container's other processes end with its first.
            drop(guard.stdin.take());
            guard.wait().await.unwrap();
            for pump in pumps {
                let _ = pump.await;
            }
            let signal = status.signal().unwrap_or(0);
            let exit_status = status.code().unwrap_or(128 + signal).try_into().unwrap();
            let signal = signal.try_into().unwrap();
            let oom_killed = std::env::var_os("FAKE_OOM").is_some();
            let _ = sender.send(Some(WaitProcessResponse { exit_status, signal, oom_killed, ..Default::default() }));
        });
        Ok(Empty::default())
    }

    async fn wait_process(&self, _: &TtrpcContext, _: WaitProcessRequest) -> ttrpc::Result<WaitProcessResponse> {
        let mut ended = self.ended.lock().unwrap().clone().unwrap();
        let answer = ended.wait_for(Option::is_some).await.unwrap().clone();
        Ok(answer.unwrap())
    }

    async fn signal_process(&self, _: &TtrpcContext, request: SignalProcessRequest) -> ttrpc::Result<Empty> {
        let pid = *self.running.lock().unwrap().get("pid").unwrap();
        kill(Pid::from_raw(pid), Signal::try_from(i32::try_from(request.signal).unwrap()).unwrap()).unwrap();
        Ok(Empty::default())
    }

    async fn resize_terminal(&self, _: &TtrpcContext, request: ResizeTerminalRequest) -> ttrpc::Result<Empty> {
        let size = Winsize {
            ws_row: request.size.rows.try_into().unwrap(),
            ws_col: request.size.columns.try_into().unwrap(),
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        set_size(self.terminal.lock().unwrap().as_ref().unwrap(), &size);
        Ok(Empty::default())
    }
}

/// Kills a process group when this process closes the guard's input, and so also when it is killed itself.
fn guard(group: u32) -> Child {
    let mut command = Command::new("sh");
    command.args(["-c", "read _; kill -s KILL -- -$0", &group.to_string()]).process_group(0);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

#[allow(missing_docs, reason = "generated")]
mod ioctl {
    use super::*;
    nix::ioctl_write_ptr_bad!(tiocswinsz, libc::TIOCSWINSZ, Winsize);
}

#[allow(unsafe_code, reason = "no safe wrapper sets a window size")]
fn set_size(terminal: &OwnedFd, size: &Winsize) {
    use std::os::fd::AsRawFd;
    // SAFETY: the descriptor is open and the call only reads `size`.
    unsafe { ioctl::tiocswinsz(terminal.as_raw_fd(), size) }.unwrap();
}

fn blocking(stream: UnixStream) -> std::os::unix::net::UnixStream {
    let stream = stream.into_std().unwrap();
    stream.set_nonblocking(false).unwrap();
    stream
}

fn copy(mut from: impl Read + Send + 'static, mut to: impl Write + Send + 'static) -> tokio::task::JoinHandle<()> {
    tokio::task::spawn_blocking(move || {
        let _ = std::io::copy(&mut from, &mut to);
    })
}
