//! Where things are for this user.

use std::env;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use hull_sandbox::{RuntimeRoot, SandboxError};

use crate::args::Global;

/// Directories of this call.
#[derive(Debug)]
pub struct Context {
    /// Image store.
    pub store_root: PathBuf,
    /// Directory of running sandboxes.
    pub runtime_root: PathBuf,
}

impl Context {
    pub fn new(global: &Global) -> Self {
        Self {
            store_root: absolute(global.root.clone().unwrap_or_else(default_store_root)),
            runtime_root: RuntimeRoot::default_path(),
        }
    }

    /// The runtime directory, made if it is missing.
    pub fn runtime(&self) -> Result<RuntimeRoot, SandboxError> {
        RuntimeRoot::open(&self.runtime_root)
    }
}

/// Other processes, with other working directories, open what is in it.
fn absolute(path: PathBuf) -> PathBuf {
    std::path::absolute(&path).unwrap_or(path)
}

/// /var/lib/hull for root, else `$XDG_DATA_HOME/hull` or ~/.local/share/hull.
fn default_store_root() -> PathBuf {
    let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty());
    if nix::unistd::geteuid().is_root() {
        return "/var/lib/hull".into();
    }
    match (set("XDG_DATA_HOME"), set("HOME")) {
        (Some(data), _) => Path::new(&data).join("hull"),
        (None, Some(home)) => Path::new(&home).join(".local/share/hull"),
        (None, None) => format!("/tmp/hull-store-{}", nix::unistd::geteuid()).into(),
    }
}

/// How long the build of an image that was interrupted may take to remove what it has written.
const CLEAN_UP_TIMEOUT: Duration = Duration::from_secs(2);

/// Runs a future on this thread. What it left running is dropped before this returns; the runtime's threads that block are
/// waited for a little, so that they clean up.
pub fn block_on<T>(future: impl Future<Output = T>) -> anyhow::Result<T> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting the event loop")?;
    let result = runtime.block_on(future);
    runtime.shutdown_timeout(CLEAN_UP_TIMEOUT);
    Ok(result)
}
