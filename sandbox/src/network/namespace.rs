//! Work in another network namespace: on a thread of its own, because the namespace is a thread's.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::thread;

use nix::sched::{CloneFlags, setns};
use rtnetlink::Handle;
use tokio::sync::oneshot;

use super::NetworkError;
use super::changes::{self, Changes};
use super::forward::Forwarder;

/// An open network namespace.
#[derive(Debug)]
pub struct Namespace {
    path: PathBuf,
    file: File,
}

impl Namespace {
    pub fn open(path: &Path) -> Result<Self, NetworkError> {
        let file = File::open(path).map_err(|source| NetworkError::Namespace { path: path.to_owned(), source })?;
        Ok(Self { path: path.to_owned(), file })
    }

    /// Runs `work` with a netlink connection of the namespace.
    pub async fn run<T, Work, Running>(&self, work: Work) -> Result<T, NetworkError>
    where
        T: Send + 'static,
        Work: FnOnce(Handle) -> Running + Send + 'static,
        Running: Future<Output = Result<T, NetworkError>>,
    {
        let failed = self.failed();
        let inside = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().map_err(&failed)?;
            runtime.block_on(async {
                let (connection, handle, _) = rtnetlink::new_connection().map_err(&failed)?;
                tokio::spawn(connection);
                work(handle).await
            })
        };
        self.enter(inside).await
    }

    /// Listens for changes from now on.
    pub async fn changes(&self) -> Result<Changes, NetworkError> {
        let failed = self.failed();
        let socket = self.enter(move || changes::listen().map_err(failed)).await?;
        Changes::new(socket).map_err(self.failed())
    }

    /// Takes its connections to 127.0.0.1.
    pub async fn forwarder(&self) -> Result<Forwarder, NetworkError> {
        let failed = self.failed();
        let namespace = self.file.try_clone().map_err(&failed)?;
        self.enter(move || Forwarder::start(namespace.as_fd()).map_err(failed)).await
    }

    /// Runs `work` in the namespace.
    pub async fn enter<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, NetworkError> + Send + 'static,
    ) -> Result<T, NetworkError> {
        let failed = self.failed();
        let file = self.file.try_clone().map_err(&failed)?;
        let (sender, receiver) = oneshot::channel();
        let failed_inside = failed.clone();
        let inside = move || {
            // The thread ends here: nobody else ever runs in it.
            setns(&file, CloneFlags::CLONE_NEWNET).map_err(|error| failed_inside(error.into()))?;
            work()
        };
        let spawned = thread::Builder::new().name("netns".into()).spawn(move || drop(sender.send(inside())));
        spawned.map_err(&failed)?;
        receiver.await.map_err(|_| failed(io::ErrorKind::BrokenPipe.into()))?
    }

    fn failed(&self) -> impl Fn(io::Error) -> NetworkError + Clone + Send + use<> {
        let path = self.path.clone();
        move |source| NetworkError::Namespace { path: path.clone(), source }
    }
}
