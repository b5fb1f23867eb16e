//! Work in another network namespace: on a thread of its own, because the namespace is a thread's.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::thread;

use nix::sched::{CloneFlags, setns};
use rtnetlink::Handle;
use tokio::sync::oneshot;

use super::NetworkError;

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
        let path = self.path.clone();
        let failed = move |source| NetworkError::Namespace { path: path.clone(), source };
        let file = self.file.try_clone().map_err(&failed)?;
        let (sender, receiver) = oneshot::channel();
        let failed_inside = failed.clone();
        let inside = move || {
            // The thread ends here: nobody else ever runs in it.
            setns(&file, CloneFlags::CLONE_NEWNET).map_err(|error| failed_inside(error.into()))?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().map_err(&failed_inside)?;
            runtime.block_on(async {
                let (connection, handle, _) = rtnetlink::new_connection().map_err(&failed_inside)?;
                tokio::spawn(connection);
                work(handle).await
            })
        };
        let spawned = thread::Builder::new().name("netns".into()).spawn(move || drop(sender.send(inside())));
        spawned.map_err(&failed)?;
        receiver.await.map_err(|_| failed(std::io::ErrorKind::BrokenPipe.into()))?
    }
}
