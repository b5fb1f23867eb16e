//! Standard streams of processes: what containerd names, and how bytes get there.
//!
//! Each stream is pumped by a task of its own, so that a reader that is slow, or never comes, holds up its own stream only.

mod fifo;
mod logger;
mod pump;
mod uri;

use std::io;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use hull_sandbox::ProcessStreams;
use thiserror::Error;
use tokio::fs::File;
use tokio::net::unix::pipe;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use logger::Logger;
use uri::Target;

/// The streams of a process as the task API names them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stdio {
    /// FIFO of standard input, or empty.
    pub stdin: String,
    /// FIFO or URI of standard output, or empty.
    pub stdout: String,
    /// FIFO or URI of standard error, or empty. With a terminal there is none.
    pub stderr: String,
    /// The process has a terminal.
    pub terminal: bool,
}

/// A stream can't be opened.
#[derive(Debug, Error)]
pub enum StdioError {
    /// The URI is none that the task API knows.
    #[error("{uri:?} is no place for a stream: there are paths of FIFOs, file:// and binary://")]
    Uri {
        /// What was asked for.
        uri: String,
    },
    /// A file or FIFO can't be opened.
    #[error("Stream {path}")]
    Open {
        /// Its path.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// A program for logs can't be started.
    #[error("The program for logs, {path},")]
    Logger {
        /// Its path.
        path: String,
        /// Why.
        source: io::Error,
    },
}

/// Who the streams belong to, for programs that take logs.
#[derive(Debug, Clone, Copy)]
pub struct Owner<'a> {
    /// containerd's namespace.
    pub namespace: &'a str,
    /// The container.
    pub container_id: &'a str,
}

/// Opened ends on the host's side.
#[derive(Debug)]
pub struct Opened {
    stdin: Option<fifo::Input>,
    stdout: Sink,
    stderr: Sink,
    logger: Option<Logger>,
}

/// Where output goes.
#[derive(Debug)]
enum Sink {
    Discard,
    Pipe(pipe::Sender),
    File(File),
}

/// Running pumps of a process.
#[derive(Debug)]
pub struct Pumps {
    stdin: Mutex<Option<JoinHandle<()>>>,
    keep_open: Mutex<Option<fifo::KeepOpen>>,
    outputs: Mutex<Vec<JoinHandle<()>>>,
    abandoned: watch::Sender<bool>,
    logger: Mutex<Option<Logger>>,
}

impl Stdio {
    /// Standard input is connected.
    pub fn has_stdin(&self) -> bool {
        !self.stdin.is_empty()
    }

    /// Opens what was named. It never waits for the other side.
    pub async fn open(&self, owner: Owner<'_>) -> Result<Opened, StdioError> {
        let stdin = match self.stdin.as_str() {
            "" => None,
            path => Some(fifo::Input::open(path).map_err(|source| opening(path, source))?),
        };
        let stderr = if self.terminal { "" } else { &self.stderr };
        let (stdout, stderr, logger) = match uri::parse(&self.stdout)? {
            Target::Binary { program, arguments } => {
                let failed = |source| StdioError::Logger { path: program.clone(), source };
                let started = Logger::start(&program, &arguments, owner).await.map_err(failed)?;
                (Sink::Pipe(started.stdout), Sink::Pipe(started.stderr), Some(started.logger))
            }
            // One file takes both, as containerd's own runtime has it.
            Target::File(path) => (append(&path).await?, append(&path).await?, None),
            target => (sink(target).await?, sink(uri::parse(stderr)?).await?, None),
        };
        Ok(Opened { stdin, stdout, stderr, logger })
    }
}

impl Opened {
    /// Starts pumping between the host's ends and the process's.
    pub fn connect(self, streams: ProcessStreams) -> Pumps {
        let (abandoned, watch) = watch::channel(false);
        let mut outputs = Vec::new();
        for (from, to) in [(streams.stdout, self.stdout), (streams.stderr, self.stderr)] {
            if let Some(from) = from {
                outputs.push(tokio::spawn(pump::output(from, to, watch.clone())));
            }
        }
        let (stdin, keep_open) = match (self.stdin, streams.stdin) {
            (Some(input), Some(to)) => {
                let (from, keep_open) = input.split();
                (Some(tokio::spawn(pump::input(from, to))), Some(keep_open))
            }
            _ => (None, None),
        };
        Pumps {
            stdin: Mutex::new(stdin),
            keep_open: Mutex::new(keep_open),
            outputs: Mutex::new(outputs),
            abandoned,
            logger: Mutex::new(self.logger),
        }
    }
}

impl Pumps {
    /// Standard input ends when its writers are gone, after what they wrote has been delivered.
    pub fn close_stdin(&self) {
        take(&self.keep_open);
    }

    /// Nobody will read the rest of the output: drop it, so that the process can end.
    pub fn abandon_output(&self) {
        self.abandoned.send_replace(true);
    }

    /// After the process's end: standard input is closed, output is pumped to its end for at most `limit`.
    pub async fn finish(&self, limit: Duration) {
        take(&self.keep_open);
        if let Some(stdin) = take(&self.stdin) {
            stdin.abort();
        }
        let outputs = std::mem::take(&mut *self.outputs.lock().unwrap_or_else(PoisonError::into_inner));
        let deadline = tokio::time::Instant::now() + limit;
        for mut output in outputs {
            if tokio::time::timeout_at(deadline, &mut output).await.is_err() {
                output.abort();
            }
        }
        if let Some(logger) = take(&self.logger) {
            let _ = timeout(limit, logger.finish()).await;
        }
    }
}

impl Drop for Pumps {
    fn drop(&mut self) {
        if let Some(stdin) = take(&self.stdin) {
            stdin.abort();
        }
        for output in self.outputs.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            output.abort();
        }
    }
}

fn take<T>(slot: &Mutex<Option<T>>) -> Option<T> {
    slot.lock().unwrap_or_else(PoisonError::into_inner).take()
}

fn opening(path: &str, source: io::Error) -> StdioError {
    StdioError::Open { path: path.into(), source }
}

async fn sink(target: Target) -> Result<Sink, StdioError> {
    match target {
        Target::Nowhere => Ok(Sink::Discard),
        Target::Fifo(path) => fifo::output(&path).map(Sink::Pipe).map_err(|source| opening(&path, source)),
        Target::File(path) => append(&path).await,
        // Standard error of another place than standard output's: the program would have to be two.
        Target::Binary { program, .. } => Err(StdioError::Uri { uri: format!("binary://{program}") }),
    }
}

async fn append(path: &str) -> Result<Sink, StdioError> {
    if let Some(directory) = std::path::Path::new(path).parent() {
        tokio::fs::create_dir_all(directory).await.map_err(|source| opening(path, source))?;
    }
    let mut options = File::options();
    let file = options.append(true).create(true).mode(0o644).open(path).await;
    file.map(Sink::File).map_err(|source| opening(path, source))
}

#[cfg(test)]
mod stdio_test;
