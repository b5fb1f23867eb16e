//! What can go wrong with a sandbox.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;

use crate::agent::AgentError;
use crate::block_devices::BlockDeviceError;
use crate::bundle::BundleError;
use crate::control::ControlError;
use crate::host_cgroup::HostCgroupError;
use crate::monitor::VmEnd;
use crate::network::NetworkError;
use crate::shared_dir::SharedDirError;

/// A sandbox could not be created, or ended before its time.
#[derive(Debug, Error)]
pub enum SandboxError {
    /// The directory for running sandboxes can't be made or is not ours alone.
    #[error("The runtime directory {path} can't be used")]
    RuntimeDir {
        /// The directory, or the file in it.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Socket addresses hold 107 bytes.
    #[error("The runtime directory {0} is too long for a socket address")]
    PathTooLong(PathBuf),
    /// Names are unique among running sandboxes.
    #[error("The name {name:?} is in use by container {id}")]
    NameTaken {
        /// The name.
        name: String,
        /// Who has it.
        id: String,
    },
    /// A file that comes with Hull is missing.
    #[error("The {what} was not found at {}", searched.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", "))]
    Missing {
        /// Which one.
        what: &'static str,
        /// Where it was looked for.
        searched: Vec<PathBuf>,
    },
    /// The monitor's program can't be started.
    #[error("{program} can't be started")]
    Spawn {
        /// Its path.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A socket of the sandbox can't be used.
    #[error("Socket {path}")]
    Socket {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The VM has ended.
    #[error(transparent)]
    VmEnded(Arc<VmEnd>),
    /// The guest did not come up in time.
    #[error("The guest's agent did not report within {} seconds", .0.as_secs())]
    NotReady(Duration),
    /// The agent refused or failed a call.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// The monitor refused or failed a request.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// A directory or mount for its containers.
    #[error(transparent)]
    SharedDir(#[from] SharedDirError),
    /// A block device for its containers.
    #[error(transparent)]
    BlockDevice(#[from] BlockDeviceError),
    /// A bundle's specification can't be carried out in a guest.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// A specification that can't be written.
    #[error("The specification can't be written as JSON")]
    Specification(#[source] serde_json::Error),
    /// The sandbox was made without a shared directory.
    #[error("The sandbox shares no directory with its guest")]
    NothingShared,
    /// Its container does not run yet.
    #[error("Container {0} is still starting")]
    NotRunning(String),
    /// The VM is held.
    #[error("The VM is paused, so that its guest can't answer")]
    Paused,
    /// The guest did not take a device; it is unplugged again.
    #[error("The guest did not take {what}; it is unplugged again")]
    NotTaken {
        /// Kind and name.
        what: String,
        /// Why.
        source: Box<SandboxError>,
    },
    /// The guest did not take a device, and the monitor did not unplug it again.
    #[error("The guest did not take {what}, and it can't be unplugged again")]
    NotTakenBack {
        /// Kind and name.
        what: String,
        /// Why the guest did not take it.
        source: Box<SandboxError>,
    },
    /// There is none of this name.
    #[error("The VM has no {what}")]
    NoDevice {
        /// Kind and name.
        what: String,
    },
    /// The VM was started without the possibility.
    #[error("The memory of this VM can't be changed: it was started without a maximum (--max-memory)")]
    MemoryFixed,
    /// More or less than possible.
    #[error("The memory of this VM can be {least_mib} to {most_mib} MiB")]
    MemoryRange {
        /// What it was started with.
        least_mib: u32,
        /// What it can grow to.
        most_mib: u32,
    },
    /// The guest did not take all memory; it has as much as before.
    #[error("The guest took memory up to {reached_mib} of {asked_mib} MiB only; it has as much as before")]
    MemoryNotTaken {
        /// What was asked for.
        asked_mib: u32,
        /// How far it came.
        reached_mib: u32,
    },
    /// An answer that makes no sense.
    #[error("The answer of {0} makes no sense")]
    Nonsense(&'static str),
    /// A network namespace can't be used.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// A cgroup of the host can't be used.
    #[error(transparent)]
    HostCgroup(#[from] HostCgroupError),
    /// A standard stream was announced but never connected.
    #[error("The guest's agent did not connect the process's {0}")]
    StreamMissing(&'static str),
    /// The host has no random numbers.
    #[error("The host gave no random numbers")]
    Random(io::Error),
}

impl SandboxError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::RuntimeDir { .. } => Some("set HULL_RUNTIME_DIR to a directory of yours"),
            Self::PathTooLong(_) => Some("set HULL_RUNTIME_DIR to a shorter path"),
            Self::NameTaken { .. } => Some("choose another name or stop that container"),
            Self::Missing { what, .. } if *what == locate_names::MONITOR => {
                Some("install it beside hull or set HULL_VMM")
            }
            Self::Missing { .. } => Some("run `make install` or set HULL_GUEST_DIR"),
            Self::NotReady(_) => Some("HULL_LOG=debug shows the guest's console"),
            Self::VmEnded(end) => end.hint(),
            _ => None,
        }
    }
}

/// Names of what [`crate::locate`] looks for, as they appear in errors.
pub(crate) mod locate_names {
    pub(crate) const MONITOR: &str = "virtual machine monitor hull-vmm";
    pub(crate) const KERNEL: &str = "guest kernel vmlinux";
    pub(crate) const INITRAMFS: &str = "guest initramfs initramfs.cpio";
}
