//! Starts a process in a container through a child of the agent.

use std::fs::File;
use std::io::{Seek, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use hull_protocol::agent::{self, TerminalSize};
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::Pid;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::sync::{Notify, Semaphore, oneshot, watch};
use ttrpc::Code;

use crate::cgroup;
use crate::failure::{Context, Failure};
use crate::helper::reply::{MAX_REPLY_BYTES, Reply};
use crate::process::console::{ConsoleSocket, Terminal};
use crate::process::stream::Streams;
use crate::process::{Exit, Process, copy};
use crate::reaper::{Ended, Reaper};
use crate::sys;

/// Longest wait for a child that has failed to end.
const CLEAN_UP_TIMEOUT: Duration = Duration::from_secs(10);

/// What to start.
pub struct Spawn<'a> {
    /// Collects the exit status.
    pub reaper: &'a Reaper,
    /// The agent's binary.
    pub program: &'a Path,
    /// Role of the child ([`crate::helper`]).
    pub role: &'static str,
    /// The protobuf message that the child works on.
    pub request: Vec<u8>,
    /// More arguments for the child.
    pub arguments: Vec<String>,
    /// Tokens of the wanted streams.
    pub streams: &'a agent::Streams,
    /// The process has a terminal of this size.
    pub terminal: Option<TerminalSize>,
    /// The container's cgroup.
    pub cgroup: PathBuf,
    /// The end of this process ends the container.
    pub is_init: bool,
}

/// Reports from the process's start: the other end closes when the process executes its command.
pub struct StartGate(ReplyReader);

impl StartGate {
    /// Waits until the command executes.
    pub async fn opened(mut self) -> Result<(), Failure> {
        while let Some(reply) = self.0.next().await? {
            if let Reply::Failed(failure) = reply {
                return Err(failure);
            }
        }
        Ok(())
    }
}

/// Processes that are being started at the same time. Making a child takes the agent's one thread for a moment; behind
/// hundreds of them a stream would wait longer for its first bytes than the host does.
static STARTING: Semaphore = Semaphore::const_new(8);

impl Spawn<'_> {
    /// Starts the process. It executes its command when it is told to (a container) or at once (others).
    pub async fn run(self) -> Result<(Process, StartGate), Failure> {
        let _permit = STARTING.acquire().await.context("wait for others to start")?;
        let streams = Streams::open(self.streams).await?;
        let spawning = self.reaper.spawning();

        let (mut replies, terminal, ends) = if let Some(size) = &self.terminal {
            let console = ConsoleSocket::new()?;
            let (child, _) = ChildEnds::null();
            let mut replies = self.start(child, Some(console.path()))?;
            // The terminal's sender connects before the process is reported.
            replies.wait_for_pid().await?;
            let terminal = match console.receive().await {
                Ok(terminal) => terminal,
                // The process may have told why it has none.
                Err(failure) => return Err(replies.failure().await.unwrap_or(failure)),
            };
            if size.columns > 0 && size.rows > 0 {
                terminal.resize(size.columns, size.rows)?;
            }
            let ends = Ends::terminal(&terminal, streams)?;
            (replies, Some(terminal), ends)
        } else {
            let (child, ends) = ChildEnds::pipes(streams)?;
            (self.start(child, None)?, None, ends)
        };

        let pid = replies.wait_for_pid().await?;
        let status = spawning.claim(pid);
        Ok((self.supervise(pid, status, terminal, ends), StartGate(replies)))
    }

    fn start(&self, ends: ChildEnds, console: Option<&Path>) -> Result<ReplyReader, Failure> {
        let mut request = File::from(memfd_create(c"request", MFdFlags::MFD_CLOEXEC).context("hand over the request")?);
        request.write_all(&self.request).context("hand over the request")?;
        request.rewind().context("hand over the request")?;
        let (sender, receiver) = pipe::pipe().context("make a pipe")?;
        let reply = sender.into_blocking_fd().context("make a pipe")?;
        // The agent has one thread: no other child can be started while these two are inheritable.
        for fd in [request.as_fd(), reply.as_fd()] {
            fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty())).context("start a child of the agent")?;
        }
        let mut command = Command::new(self.program);
        command
            .arg(self.role)
            .arg(request.as_raw_fd().to_string())
            .arg(reply.as_raw_fd().to_string())
            .arg(console.unwrap_or(Path::new("")))
            .args(&self.arguments)
            .env_clear()
            .current_dir("/")
            .stdin(ends.stdin)
            .stdout(ends.stdout)
            .stderr(ends.stderr);
        // The reaper collects the child; this handle is only a number.
        drop(command.spawn().context("start a child of the agent")?);
        Ok(ReplyReader { receiver, buffer: Vec::new(), pid: None, detail: None })
    }

    fn supervise(self, pid: Pid, status: oneshot::Receiver<Ended>, terminal: Option<Terminal>, ends: Ends) -> Process {
        let close_stdin = Arc::new(Notify::new());
        let (exit_sender, ended) = watch::channel(None);
        let (end_sender, end) = watch::channel(false);
        let (finish_sender, finished) = watch::channel(false);

        let input = ends.input.map(|(source, sink)| tokio::spawn(copy::input(source, sink, close_stdin.clone())));
        let outputs: Vec<_> = ends
            .outputs
            .into_iter()
            .map(|(source, sink)| {
                let (drain_sender, drained) = watch::channel(false);
                tokio::spawn(copy::output(source, sink, end.clone(), drain_sender));
                drained
            })
            .collect();

        let Spawn { cgroup, is_init, .. } = self;
        tokio::spawn(async move {
            // The reaper never drops a claim; without a status there is nothing to tell.
            let Ok(status) = status.await else { return };
            let oom_killed = cgroup::oom_kills(&cgroup) > 0;
            if is_init {
                // Without a pid namespace of its own, a container's other processes outlive its first.
                let _ = cgroup::kill(&cgroup);
            }
            exit_sender.send_replace(Some(Exit { ended: status, oom_killed }));
            end_sender.send_replace(true);
            if let Some(input) = input {
                input.abort();
            }
            for mut drained in outputs {
                let _ = drained.wait_for(|drained| *drained).await;
            }
            finish_sender.send_replace(true);
        });
        Process { pid, terminal, close_stdin, ended, finished }
    }
}

/// A process's own standard streams.
struct ChildEnds {
    stdin: Stdio,
    stdout: Stdio,
    stderr: Stdio,
}

/// The agent's side of a process's standard streams: where bytes come from and where they go.
#[derive(Default)]
struct Ends {
    input: Option<(copy::Fd, copy::Fd)>,
    outputs: Vec<(copy::Fd, Option<copy::Fd>)>,
}

impl ChildEnds {
    fn null() -> (Self, Ends) {
        let ends = Self { stdin: Stdio::null(), stdout: Stdio::null(), stderr: Stdio::null() };
        (ends, Ends::default())
    }

    /// A pipe for each stream that the host wants, nothing for the others.
    fn pipes(streams: Streams) -> Result<(Self, Ends), Failure> {
        let (mut child, mut ends) = Self::null();
        if let Some(source) = streams.stdin {
            let (reader, writer) = new_pipe()?;
            child.stdin = reader.into();
            ends.input = Some((source, own_end(writer)?));
        }
        for (sink, slot) in [(streams.stdout, &mut child.stdout), (streams.stderr, &mut child.stderr)] {
            if sink.is_some() {
                let (reader, writer) = new_pipe()?;
                *slot = writer.into();
                ends.outputs.push((own_end(reader)?, sink));
            }
        }
        Ok((child, ends))
    }
}

impl Ends {
    fn terminal(terminal: &Terminal, streams: Streams) -> Result<Self, Failure> {
        let end = || own_end(terminal.duplicate()?);
        Ok(Self {
            input: streams.stdin.map(|source| Ok((source, end()?))).transpose()?,
            outputs: vec![(end()?, streams.stdout)],
        })
    }
}

fn new_pipe() -> Result<(OwnedFd, OwnedFd), Failure> {
    nix::unistd::pipe2(OFlag::O_CLOEXEC).context("make a pipe")
}

/// Makes a descriptor of ours non-blocking and known to the runtime.
fn own_end(fd: OwnedFd) -> Result<copy::Fd, Failure> {
    let flags = fcntl(&fd, FcntlArg::F_GETFL).context("set up a pipe")?;
    let flags = OFlag::from_bits_retain(flags) | OFlag::O_NONBLOCK;
    fcntl(&fd, FcntlArg::F_SETFL(flags)).context("set up a pipe")?;
    sys::register(fd).context("set up a pipe")
}

/// What the child reports, line by line.
struct ReplyReader {
    receiver: pipe::Receiver,
    buffer: Vec<u8>,
    pid: Option<Pid>,
    /// Of a failure that follows: the first, which is the deepest cause.
    detail: Option<String>,
}

impl ReplyReader {
    async fn wait_for_pid(&mut self) -> Result<Pid, Failure> {
        if let Some(pid) = self.pid {
            return Ok(pid);
        }
        match self.next().await? {
            Some(Reply::Started(pid)) => {
                self.pid = Some(pid);
                Ok(pid)
            }
            Some(Reply::Failed(failure)) => {
                self.wait_for_end().await;
                Err(failure)
            }
            Some(Reply::Detail(_)) | None => Err(Failure::internal("the child of the agent ended without a report")),
        }
    }

    /// The failure that a process reports which is known to have failed.
    async fn failure(&mut self) -> Option<Failure> {
        match tokio::time::timeout(CLEAN_UP_TIMEOUT, self.next()).await {
            Ok(Ok(Some(Reply::Failed(failure)))) => Some(failure),
            _ => None,
        }
    }

    /// Waits until nobody can report any more: libcontainer cleans up after a failure, and the agent must not do it at the
    /// same time.
    async fn wait_for_end(&mut self) {
        let end = async { while let Ok(Some(_)) = self.next().await {} };
        let _ = tokio::time::timeout(CLEAN_UP_TIMEOUT, end).await;
    }

    /// The next report; `None` when no more can come.
    async fn next(&mut self) -> Result<Option<Reply>, Failure> {
        loop {
            if let Some(end) = self.buffer.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                match Reply::parse(&line)? {
                    Reply::Detail(text) => self.detail = self.detail.take().or(Some(text)),
                    Reply::Failed(failure) => return Ok(Some(Reply::Failed(self.with_detail(failure)))),
                    started => return Ok(Some(started)),
                }
                continue;
            }
            if self.buffer.len() > MAX_REPLY_BYTES {
                return Err(Failure::internal("the child of the agent reports too much"));
            }
            let count = self.receiver.read_buf(&mut self.buffer).await.context("read a report")?;
            if count == 0 {
                return Ok(None);
            }
        }
    }

    /// A failure whose own text says everything is not lengthened.
    fn with_detail(&self, failure: Failure) -> Failure {
        match &self.detail {
            Some(detail) if failure.code == Code::INTERNAL => {
                Failure::new(failure.code, format!("{failure} ({detail})"))
            }
            _ => failure,
        }
    }
}
