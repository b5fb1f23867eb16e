//! Standard streams of processes: what containerd names, and how bytes get there.
//!
//! Each stream is pumped by a task of its own, so that a reader that is slow, or never comes, holds up its own stream only.

mod fifo;
mod logger;
mod pump;
mod uri;

use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use hull_sandbox::ProcessStreams;
use thiserror::Error;
use tokio::fs::File;
use tokio::net::unix::pipe;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use logger::Logger;
pub use logger::Loggers;
use pump::Stage;
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
    /// Those programs.
    pub loggers: &'a Loggers,
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
    stage: watch::Sender<Stage>,
    /// True when all output is where it goes, and the program for logs has ended.
    done: watch::Receiver<bool>,
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
        let stage = watch::Sender::new(Stage::Open);
        let (finished, done) = watch::channel(false);
        let outputs: Vec<_> = [(streams.stdout, self.stdout), (streams.stderr, self.stderr)]
            .into_iter()
            .filter_map(|(from, to)| Some(tokio::spawn(pump::output(from?, to, stage.subscribe()))))
            .collect();
        let logger = self.logger;
        tokio::spawn(async move {
            for output in outputs {
                let _ = output.await;
            }
            if let Some(logger) = logger {
                logger.finish().await;
            }
            finished.send_replace(true);
        });
        let (stdin, keep_open) = match (self.stdin, streams.stdin) {
            (Some(input), Some(to)) => {
                let (from, keep_open) = input.split();
                (Some(tokio::spawn(pump::input(from, to))), Some(keep_open))
            }
            _ => (None, None),
        };
        Pumps { stdin: Mutex::new(stdin), keep_open: Mutex::new(keep_open), stage, done }
    }
}

impl Pumps {
    /// Standard input ends when its writers are gone, after what they wrote has been delivered.
    pub fn close_stdin(&self) {
        take(&self.keep_open);
    }

    /// The process has ended: so does its standard input. Its output goes on to its reader, however late that reads.
    pub fn process_ended(&self) {
        take(&self.keep_open);
        if let Some(stdin) = take(&self.stdin) {
            stdin.abort();
        }
        self.advance(Stage::Ending);
    }

    /// After the process's end: returns when its output has reached its reader. What has not after `limit` is dropped.
    pub async fn finish(&self, limit: Duration) {
        self.process_ended();
        let mut done = self.done.clone();
        if timeout(limit, done.wait_for(|done| *done)).await.is_err() {
            self.advance(Stage::Dropped);
        }
    }

    fn advance(&self, to: Stage) {
        self.stage.send_if_modified(|stage| {
            let later = to > *stage;
            *stage = to.max(*stage);
            later
        });
    }
}

impl Drop for Pumps {
    fn drop(&mut self) {
        if let Some(stdin) = take(&self.stdin) {
            stdin.abort();
        }
        self.advance(Stage::Dropped);
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
