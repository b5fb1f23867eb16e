//! What a VM is made of, as JSON.
//!
//! The names follow Firecracker's configuration file where both have the thing, so that what people know carries over.
//! Parsing refuses unknown fields and names the field of every error; [`VmConfig::validate`] checks what types can't.

mod balloon;
mod boot;
mod console;
mod drive;
mod entropy;
mod limiter;
mod machine;
mod memory_hotplug;
mod network;
mod pmem;
mod share;
mod vsock;
mod watchdog;

use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use self::balloon::Balloon;
pub use self::boot::{BootSource, MAX_BOOT_ARGS_BYTES};
pub use self::console::{Console, ConsolePort, MAX_PORT_NAME_BYTES};
pub use self::drive::{Drive, DriveFormat, IoEngine, MAX_DRIVE_ID_BYTES, MAX_DRIVES, root_device_words};
pub use self::entropy::Entropy;
pub use self::limiter::{MAX_BUCKET_SIZE, MAX_REFILL_TIME_MS, RateLimiter, TokenBucket};
pub use self::machine::{CpuTemplate, HugePages, MachineConfig};
pub use self::memory_hotplug::MemoryHotplug;
pub use self::network::{MAX_IFACE_ID_BYTES, MAX_INTERFACES, MIN_MTU, MacAddress, NetworkInterface};
pub use self::pmem::Pmem;
pub use self::share::{IdRange, MAX_SHARES, MAX_TAG_BYTES, Share, ShareCache};
pub use self::vsock::{MAX_UDS_PATH_BYTES, MIN_GUEST_CID, Vsock};
pub use self::watchdog::{Watchdog, WatchdogAction};

/// Longest configuration.
pub const MAX_CONFIG_BYTES: u64 = 1 << 20;
/// Longest path of a Unix socket (`sun_path` without its NUL).
pub const MAX_SOCKET_PATH_BYTES: usize = 107;
/// A writer that doesn't write holds up the start this long.
const READ_TIMEOUT: Duration = Duration::from_secs(10);

/// Everything that `hull-vmm` needs to build one VM.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmConfig {
    /// Kernel, initramfs and command line.
    #[serde(rename = "boot-source")]
    pub boot_source: BootSource,
    /// Processors and memory.
    #[serde(rename = "machine-config", default)]
    pub machine_config: MachineConfig,
    /// Block devices, in the order in which the guest finds them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub drives: Vec<Drive>,
    /// Network interfaces, in the order in which the guest finds them.
    #[serde(rename = "network-interfaces", default, skip_serializing_if = "Vec::is_empty")]
    pub network_interfaces: Vec<NetworkInterface>,
    /// Directories of the host that the guest can mount.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shares: Vec<Share>,
    /// Socket device between host and guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vsock: Option<Vsock>,
    /// Random number device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entropy: Option<Entropy>,
    /// Memory balloon.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub balloon: Option<Balloon>,
    /// Memory that can be plugged while the VM runs.
    #[serde(rename = "memory-hotplug", default, skip_serializing_if = "Option::is_none")]
    pub memory_hotplug: Option<MemoryHotplug>,
    /// Files that the guest sees as memory, in the order in which it finds them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pmem: Vec<Pmem>,
    /// Watchdog that notices a guest that hangs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub watchdog: Option<Watchdog>,
    /// virtio console, where the guest's kernel and init write their log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub console: Option<Console>,
    /// Control socket: HTTP/1.1 with JSON on a Unix socket at this path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub control_socket: Option<PathBuf>,
}

/// A configuration that can't be used.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ConfigError {
    /// The text is not JSON of the right shape. The message has the field, line and column.
    #[error("Field {field}: {problem}")]
    Parse {
        /// Path to the field, such as `machine-config.vcpu_count`.
        field: String,
        /// What is wrong.
        problem: String,
    },
    /// A value is out of its range.
    #[error("Field {field}: {problem}")]
    Value {
        /// Path to the field.
        field: String,
        /// What is wrong and what is allowed.
        problem: String,
    },
}

/// A configuration that can't be read.
#[derive(Debug, Error)]
pub enum ReadError {
    /// Not readable.
    #[error("Can't read the configuration")]
    Io(#[from] io::Error),
    /// Too long.
    #[error("The configuration is longer than {MAX_CONFIG_BYTES} bytes")]
    TooLong,
    /// The writer of the pipe doesn't close it.
    #[error("The configuration did not arrive within {} s", READ_TIMEOUT.as_secs())]
    Timeout,
}

/// Reads a configuration from a file, pipe or socket, bounded in size and time.
pub fn read_bounded(mut source: impl Read + AsFd) -> Result<Vec<u8>, ReadError> {
    let mut text = Vec::new();
    let mut chunk = [0; 8192];
    let deadline = std::time::Instant::now() + READ_TIMEOUT;
    loop {
        let left = deadline.saturating_duration_since(std::time::Instant::now());
        let mut fds = [PollFd::new(source.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO)) {
            Ok(0) => return Err(ReadError::Timeout),
            Ok(_) => {}
            Err(nix::Error::EINTR) => continue,
            Err(error) => return Err(ReadError::Io(error.into())),
        }
        let count = source.read(&mut chunk)?;
        if count == 0 {
            return Ok(text);
        }
        text.extend_from_slice(chunk.get(..count).unwrap_or_default());
        if text.len() as u64 > MAX_CONFIG_BYTES {
            return Err(ReadError::TooLong);
        }
    }
}

impl VmConfig {
    /// Parses and validates.
    pub fn from_json(text: &[u8]) -> Result<Self, ConfigError> {
        let mut json = serde_json::Deserializer::from_slice(text);
        let config: Self = serde_path_to_error::deserialize(&mut json).map_err(|error| {
            let field = error.path().to_string();
            ConfigError::Parse { field, problem: error.into_inner().to_string() }
        })?;
        json.end().map_err(|error| ConfigError::Parse { field: ".".to_owned(), problem: error.to_string() })?;
        config.validate()?;
        Ok(config)
    }

    /// Checks what types can't express.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.boot_source.validate()?;
        self.validate_draft()
    }

    /// [`VmConfig::validate`] for a configuration that is put together piece by piece and may lack its boot source.
    pub fn validate_draft(&self) -> Result<(), ConfigError> {
        if self.boot_source.is_set() {
            self.boot_source.validate()?;
        }
        self.machine_config.validate()?;
        pmem::validate_all(&self.pmem, &self.drives)?;
        drive::validate_all(&self.drives)?;
        self.balloon.as_ref().map_or(Ok(()), |balloon| balloon.validate(self.machine_config.mem_size_mib))?;
        network::validate_all(&self.network_interfaces)?;
        share::validate_all(&self.shares)?;
        if let Some(memory) = &self.memory_hotplug {
            memory.validate(&self.machine_config)?;
            network::validate_with_memory_hotplug(&self.network_interfaces)?;
        }
        self.vsock.as_ref().map_or(Ok(()), Vsock::validate)?;
        self.console.as_ref().map_or(Ok(()), Console::validate)?;
        if let Some(path) = &self.control_socket {
            check_path(path, "control_socket", MAX_SOCKET_PATH_BYTES)?;
        }
        Ok(())
    }
}

fn check_path(path: &Path, field: &str, max_bytes: usize) -> Result<(), ConfigError> {
    let bytes = path.as_os_str().as_bytes();
    check(!bytes.is_empty(), field, "must not be empty")?;
    check(!bytes.contains(&0), field, "must not contain a NUL byte")?;
    check(bytes.len() <= max_bytes, field, &format!("must have at most {max_bytes} bytes, not {}", bytes.len()))
}

/// Whether a name is one that devices have: 1 to `max_bytes` letters, digits, `-` and `_`.
pub fn is_identifier(text: &str, max_bytes: usize) -> bool {
    (1..=max_bytes).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
}

fn check_identifier(text: &str, field: &str, max_bytes: usize) -> Result<(), ConfigError> {
    check(is_identifier(text, max_bytes), field, &format!("must have 1 to {max_bytes} letters, digits, - or _"))
}

fn check(holds: bool, field: &str, problem: &str) -> Result<(), ConfigError> {
    if holds {
        return Ok(());
    }
    Err(ConfigError::Value { field: field.to_owned(), problem: problem.to_owned() })
}

#[cfg(test)]
#[path = "config_test.rs"]
mod tests;
