//! The configuration of the runtime: a TOML file, what containerd's runtime options add to it, and annotations.
//!
//! Each layer sets keys of the same type, [`Config`], and is checked in the same way: the defaults, the file, the options that
//! stand in containerd's own configuration, the annotations of the container or pod that the file allows. It is read anew for
//! each VM, so that a change counts from the next one on.
//!
//! Variables in containerd's environment (`HULL_VMM`, `HULL_GUEST_DIR`, `HULL_RUNTIME_DIR`, `HULL_BOOT_TIMEOUT`) count more
//! than all of them.

mod annotations;
mod layer;
mod options;

use std::env;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use hull_sandbox::runtime_dir::RUNTIME_DIR_VARIABLE;
use hull_sandbox::sandbox::{READY_TIMEOUT, ready_timeout};
use hull_sandbox::{RuntimeRoot, SandboxError, locate, sizing};
use oci_spec::runtime::Spec;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tracing::level_filters::LevelFilter;

use annotations::Adjustable;
pub use options::RuntimeOptions;

/// Where the file is, unless [`PATH_VARIABLE`] or containerd's runtime options name another.
pub const DEFAULT_PATH: &str = "/etc/hull/config.toml";
/// Variable that names the file.
pub const PATH_VARIABLE: &str = "HULL_CONFIG";

const MAX_FILE_BYTES: u64 = 64 << 10;
/// Above every limit with which VMs are started in earnest.
const MAX_OVERHEAD_MIB: u32 = 64 << 10;
const MAX_BOOT_TIMEOUT_S: u16 = 3600;

/// Something in the configuration is wrong. The text names where it stands and what.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("{path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is no TOML.
    #[error("{origin}, line {line}: {reason}")]
    Syntax {
        /// The file, or what else it is.
        origin: String,
        /// Counted from 1.
        line: usize,
        /// Why.
        reason: String,
    },
    /// A key doesn't exist, or its value is not possible.
    #[error("{origin}: {key}: {reason}")]
    Value {
        /// The file, or what else it is.
        origin: String,
        /// The key.
        key: String,
        /// Why not.
        reason: String,
    },
    /// An annotation is not allowed, or its value is not possible.
    #[error("Annotation {name}: {reason}")]
    Annotation {
        /// Its name.
        name: String,
        /// Why not.
        reason: String,
    },
    /// What containerd sent is no message of its runtime options.
    #[error("containerd's runtime options can't be read")]
    Options(#[source] protobuf::Error),
}

/// Levels of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Failures.
    Error,
    /// And what is not as it should be.
    Warn,
    /// And what happens rarely.
    Info,
    /// And each step, and the guest's console.
    Debug,
    /// And what libraries say.
    Trace,
}

/// Which processes of a VM are in the cgroup that its container's specification names, in Kubernetes below the pod's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SandboxCgroup {
    /// The monitor and the shim.
    All,
    /// The monitor; the shim stays where containerd is.
    Vm,
    /// None: all stay where containerd is.
    None,
}

/// All keys. An empty path means what its comment in `config.toml.example` says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Program of the virtual machine monitor.
    pub monitor: PathBuf,
    /// The guest's kernel.
    pub kernel: PathBuf,
    /// The guest's initramfs.
    pub initramfs: PathBuf,
    /// Directory of running sandboxes.
    pub runtime_dir: PathBuf,
    /// Processors of a VM whose container has no processor limit.
    pub default_vcpus: u8,
    /// Most processors that a VM can have in use later, unless it has more at the start. 0: as many as the host has, up to 8.
    pub max_vcpus: u8,
    /// Memory of a VM whose container has no memory limit.
    pub default_memory_mib: u32,
    /// Most memory that a VM can have later, unless it has more at the start. 0: the host's.
    pub max_memory_mib: u32,
    /// What a VM has beside the limit of its container.
    pub overhead_mib: u32,
    /// Size of the `/dev/shm` of pods; 0: as large as containerd made it on the host.
    pub shm_size_mib: u32,
    /// What is in the cgroup of the container or pod.
    pub sandbox_cgroup: SandboxCgroup,
    /// End a VM whose guest hangs.
    pub watchdog: bool,
    /// How long a guest may take until its agent reports.
    pub boot_timeout_s: u16,
    /// How much is logged.
    pub log_level: LogLevel,
    /// Keys that annotations may set.
    pub enable_annotations: Vec<Adjustable>,
}

impl Default for Config {
    fn default() -> Self {
        let sizes = sizing::Defaults::default();
        Self {
            monitor: PathBuf::new(),
            kernel: PathBuf::new(),
            initramfs: PathBuf::new(),
            runtime_dir: PathBuf::new(),
            default_vcpus: sizes.vcpus,
            max_vcpus: 0,
            default_memory_mib: sizes.memory_mib,
            max_memory_mib: 0,
            overhead_mib: sizes.overhead_mib,
            shm_size_mib: 0,
            sandbox_cgroup: SandboxCgroup::All,
            watchdog: false,
            boot_timeout_s: u16::try_from(READY_TIMEOUT.as_secs()).unwrap_or(MAX_BOOT_TIMEOUT_S),
            log_level: LogLevel::Info,
            enable_annotations: Vec::new(),
        }
    }
}

/// Programs and files that a VM is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parts {
    /// The monitor's program.
    pub monitor: PathBuf,
    /// Guest kernel.
    pub kernel: PathBuf,
    /// Guest initramfs.
    pub initramfs: PathBuf,
}

impl Config {
    /// The configuration on this host, with what containerd's runtime options say.
    pub fn load(options: &RuntimeOptions) -> Result<Self, ConfigError> {
        let named = options
            .config_path
            .clone()
            .or_else(|| env::var_os(PATH_VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from));
        let path = named.as_deref().unwrap_or(Path::new(DEFAULT_PATH));
        let config = match read(path) {
            Ok(text) => Self::default().with_text(&text, &path.display().to_string())?,
            // Nobody has to have one, but who names one has to have it.
            Err(error) if error.kind() == io::ErrorKind::NotFound && named.is_none() => Self::default(),
            Err(source) => return Err(ConfigError::Read { path: path.to_owned(), source }),
        };
        match options.config_body.as_str() {
            "" => Ok(config),
            body => config.with_text(body, "Runtime options in containerd's configuration"),
        }
    }

    /// The configuration of one VM: with the annotations of the container or pod that it is for.
    pub fn for_spec(self, spec: &Spec) -> Result<Self, ConfigError> {
        match spec.annotations() {
            Some(annotations) => annotations::apply(self, annotations),
            None => Ok(self),
        }
    }

    /// What a VM is made of. Each part must be there.
    pub fn parts(&self) -> Result<Parts, SandboxError> {
        let part = |variable: &str, named: &Path, find: fn() -> Result<PathBuf, SandboxError>| {
            let overridden = env::var_os(variable).is_some();
            if overridden || named.as_os_str().is_empty() { find() } else { Ok(named.to_owned()) }
        };
        Ok(Parts {
            monitor: part(locate::MONITOR_VARIABLE, &self.monitor, locate::monitor)?,
            kernel: part(locate::GUEST_DIR_VARIABLE, &self.kernel, locate::kernel)?,
            initramfs: part(locate::GUEST_DIR_VARIABLE, &self.initramfs, locate::initramfs)?,
        })
    }

    /// Where running sandboxes are recorded.
    pub fn runtime_root(&self) -> Result<RuntimeRoot, SandboxError> {
        let overridden = env::var_os(RUNTIME_DIR_VARIABLE).is_some_and(|path| !path.is_empty());
        match overridden || self.runtime_dir.as_os_str().is_empty() {
            true => RuntimeRoot::open(&RuntimeRoot::default_path()),
            false => RuntimeRoot::open(&self.runtime_dir),
        }
    }

    /// How large VMs are whose containers don't say it.
    pub fn sizes(&self) -> sizing::Defaults {
        sizing::Defaults {
            vcpus: self.default_vcpus,
            memory_mib: self.default_memory_mib,
            overhead_mib: self.overhead_mib,
        }
    }

    /// How long a guest may take until its agent reports.
    pub fn ready_timeout(&self) -> Duration {
        ready_timeout(Duration::from_secs(self.boot_timeout_s.into()))
    }

    /// Size of a pod's `/dev/shm`, if it is not the one that containerd chose.
    pub fn shm_size_bytes(&self) -> Option<u64> {
        (self.shm_size_mib > 0).then_some(u64::from(self.shm_size_mib) << 20)
    }

    /// What the types can't say. The error is a key, and what is wrong with its value.
    fn validate(&self) -> Result<(), (&'static str, String)> {
        for (key, path) in [("monitor", &self.monitor), ("kernel", &self.kernel), ("initramfs", &self.initramfs)] {
            absolute(key, path)?;
            if !path.as_os_str().is_empty() && !path.is_file() {
                return Err((key, format!("{} is no file", path.display())));
            }
        }
        absolute("runtime_dir", &self.runtime_dir)?;
        within("default_vcpus", self.default_vcpus, 1, sizing::MAX_VCPUS)?;
        within("max_vcpus", self.max_vcpus, 0, sizing::MAX_VCPUS)?;
        within("default_memory_mib", self.default_memory_mib, sizing::MIN_MEMORY_MIB, sizing::MAX_MEMORY_MIB)?;
        within("max_memory_mib", self.max_memory_mib, 0, sizing::MAX_MEMORY_MIB)?;
        // The smallest limit of a container plus this has to be a VM that starts.
        within("overhead_mib", self.overhead_mib, sizing::MIN_MEMORY_MIB, MAX_OVERHEAD_MIB)?;
        within("shm_size_mib", self.shm_size_mib, 0, sizing::MAX_MEMORY_MIB)?;
        within("boot_timeout_s", self.boot_timeout_s, 1, MAX_BOOT_TIMEOUT_S)
    }
}

impl From<LogLevel> for LevelFilter {
    fn from(level: LogLevel) -> Self {
        match level {
            LogLevel::Error => Self::ERROR,
            LogLevel::Warn => Self::WARN,
            LogLevel::Info => Self::INFO,
            LogLevel::Debug => Self::DEBUG,
            LogLevel::Trace => Self::TRACE,
        }
    }
}

fn absolute(key: &'static str, path: &Path) -> Result<(), (&'static str, String)> {
    match path.as_os_str().is_empty() || path.is_absolute() {
        true => Ok(()),
        false => Err((key, format!("{} is not an absolute path", path.display()))),
    }
}

fn within<T: PartialOrd + std::fmt::Display>(
    key: &'static str,
    value: T,
    least: T,
    most: T,
) -> Result<(), (&'static str, String)> {
    match value >= least && value <= most {
        true => Ok(()),
        false => Err((key, format!("{value} is not from {least} to {most}"))),
    }
}

fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    let length = File::open(path)?.take(MAX_FILE_BYTES + 1).read_to_string(&mut text)?;
    match u64::try_from(length) {
        Ok(length) if length <= MAX_FILE_BYTES => Ok(text),
        _ => Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it has more than {MAX_FILE_BYTES} bytes"))),
    }
}

#[cfg(test)]
#[path = "config_test.rs"]
mod tests;
