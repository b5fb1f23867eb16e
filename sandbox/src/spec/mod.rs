//! OCI runtime specifications with Docker's defaults.

mod capabilities;
mod files;
mod image;
mod linux;
mod mounts;
mod process;
mod seccomp;
mod syscalls;

use oci_spec::image::ImageConfiguration;
use serde_json::json;
use thiserror::Error;

use crate::container::InjectedFile;
use crate::parse::{Cpus, EnvVar, MemorySize, Sysctl, Tmpfs, Ulimit};

pub use capabilities::{CapabilitySet, parse_capability};

/// Smallest memory limit of a container, Docker's.
pub const MIN_MEMORY_BYTES: u64 = 6 << 20;

/// What the user asks of a container, over the defaults of its image.
#[derive(Debug, Clone, Default)]
pub struct ContainerOptions {
    /// Short identifier; also the default host name.
    pub id: String,
    /// Command and arguments; empty for the image's.
    pub command: Vec<String>,
    /// Replaces the image's entrypoint; an empty text removes it.
    pub entrypoint: Option<String>,
    /// Environment, in order; later ones win.
    pub env: Vec<EnvVar>,
    /// Working directory.
    pub workdir: Option<String>,
    /// User and group.
    pub user: Option<String>,
    /// Host name.
    pub hostname: Option<String>,
    /// A terminal.
    pub terminal: bool,
    /// The root file system is read-only.
    pub read_only: bool,
    /// Capabilities.
    pub capabilities: CapabilitySet,
    /// No seccomp filter.
    pub seccomp_unconfined: bool,
    /// Set-user-ID programs and file capabilities give nothing.
    pub no_new_privileges: bool,
    /// Resource limits of the process.
    pub ulimits: Vec<Ulimit>,
    /// Kernel parameters.
    pub sysctls: Vec<Sysctl>,
    /// tmpfs mounts.
    pub tmpfs: Vec<Tmpfs>,
    /// Memory limit.
    pub memory: Option<MemorySize>,
    /// Processor limit.
    pub cpus: Option<Cpus>,
    /// Limit of processes.
    pub pids_limit: Option<u32>,
    /// Stop signal by name or number.
    pub stop_signal: Option<String>,
}

/// What becomes of options and image.
#[derive(Debug, Clone)]
pub struct ContainerPlan {
    /// OCI runtime specification as JSON.
    pub spec_json: String,
    /// Command line.
    pub command: Vec<String>,
    /// User to look up in the container; empty for root.
    pub user: String,
    /// Files to write.
    pub files: Vec<InjectedFile>,
    /// Signal that asks the container to stop.
    pub stop_signal: i32,
}

/// Options and image don't make a container.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum SpecError {
    /// Neither the user nor the image says what to run.
    #[error("No command was given and the image has none")]
    NoCommand,
    /// The working directory is not absolute.
    #[error("The working directory {0:?} is not an absolute path")]
    Workdir(String),
    /// Unknown stop signal.
    #[error("{0:?} is not a signal")]
    StopSignal(String),
    /// Too little memory to start anything.
    #[error("The memory limit {0} is below the minimum of 6 MiB")]
    Memory(MemorySize),
}

/// Merges `options` with the image's configuration and Docker's defaults.
pub fn plan(options: &ContainerOptions, image: &ImageConfiguration) -> Result<ContainerPlan, SpecError> {
    if let Some(limit) = options.memory
        && limit.bytes() < MIN_MEMORY_BYTES
    {
        return Err(SpecError::Memory(limit));
    }
    let merged = image::merge(options, image)?;
    let hostname = options.hostname.clone().unwrap_or_else(|| options.id.clone());
    let spec = json!({
        "ociVersion": "1.0.2",
        "hostname": hostname,
        "root": { "path": "rootfs", "readonly": options.read_only },
        "process": process::process(options, &merged, &hostname),
        "mounts": mounts::mounts(options, &merged.volumes),
        "linux": linux::linux(options),
    });
    Ok(ContainerPlan {
        spec_json: spec.to_string(),
        command: merged.args,
        user: merged.user,
        files: files::injected(&hostname),
        stop_signal: merged.stop_signal,
    })
}

/// A signal by name (`SIGTERM`, `term`) or number.
pub fn parse_signal(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse::<i32>() {
        return (1..=64).contains(&number).then_some(number);
    }
    let name = text.to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    if let Some(offset) = name.strip_prefix("RTMIN+") {
        return offset.parse().ok().map(|n: i32| 34 + n).filter(|n| (34..=64).contains(n));
    }
    format!("SIG{name}").parse::<nix::sys::signal::Signal>().ok().map(|signal| signal as i32)
}

#[cfg(test)]
#[path = "spec_test.rs"]
mod tests;
