//! What a VM is made of, as JSON.
//!
//! The names follow Firecracker's configuration file where both have the thing, so that what people know carries over.
//! Parsing refuses unknown fields and names the field of every error; [`VmConfig::validate`] checks what types can't.

use std::collections::HashSet;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Longest configuration.
pub const MAX_CONFIG_BYTES: u64 = 1 << 20;
/// Most drives: bus 0 has 31 slots, and three may be taken by console, vsock and entropy.
pub const MAX_DRIVES: usize = 28;
/// Longest name of a drive (VIRTIO_BLK_ID_BYTES).
pub const MAX_DRIVE_ID_BYTES: usize = 20;
/// Longest path of a Unix socket (`sun_path` without its NUL).
pub const MAX_SOCKET_PATH_BYTES: usize = 107;
/// Longest vsock path: `_<port>` is put behind it.
pub const MAX_UDS_PATH_BYTES: usize = 100;
/// Longest `boot_args`; the whole command line has 2,048 bytes.
pub const MAX_BOOT_ARGS_BYTES: usize = 1800;
/// Smallest context identifier of a guest: 0 to 2 are the hypervisor, local and the host.
pub const MIN_GUEST_CID: u32 = 3;
/// A writer that doesn't write holds up the start this long.
const READ_TIMEOUT: Duration = Duration::from_secs(10);

/// Everything that `hull-vmm` needs to build one VM.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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
    /// Socket device between host and guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vsock: Option<Vsock>,
    /// Random number device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entropy: Option<Entropy>,
    /// virtio console, where the guest's kernel and init write their log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub console: Option<Console>,
    /// Control socket: HTTP/1.1 with JSON on a Unix socket at this path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub control_socket: Option<PathBuf>,
}

/// What the VM boots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BootSource {
    /// Linux kernel: an ELF `vmlinux` or a bzImage.
    pub kernel_image_path: PathBuf,
    /// Initial RAM file system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd_path: Option<PathBuf>,
    /// Words for the end of the kernel command line; the monitor puts those that its platform needs before them.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub boot_args: String,
}

/// Processors and memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MachineConfig {
    /// Number of virtual processors, 1 to [`MachineConfig::MAX_VCPUS`].
    pub vcpu_count: u8,
    /// Guest memory in MiB, at least [`MachineConfig::MIN_MEM_SIZE_MIB`].
    pub mem_size_mib: u32,
    /// Pages behind the guest's memory.
    pub huge_pages: HugePages,
}

impl MachineConfig {
    /// Most virtual processors of one VM.
    pub const MAX_VCPUS: u8 = 64;
    /// Smallest guest memory in MiB.
    pub const MIN_MEM_SIZE_MIB: u32 = 32;
    /// Largest guest memory in MiB: 1 TiB.
    pub const MAX_MEM_SIZE_MIB: u32 = 1 << 20;
}

impl Default for MachineConfig {
    fn default() -> Self {
        Self { vcpu_count: 1, mem_size_mib: 128, huge_pages: HugePages::default() }
    }
}

/// Pages behind the guest's memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum HugePages {
    /// The host's kernel merges pages where it can (transparent huge pages).
    #[default]
    Transparent,
    /// Small pages only.
    None,
    /// 2 MiB pages of the host's hugetlbfs pool, all taken at start.
    #[serde(rename = "2M")]
    Hugetlb2M,
}

/// A block device over a raw file or host block device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Drive {
    /// Name in errors and calls; also the serial number that the guest reads (VIRTIO_BLK_T_GET_ID), so at most 20 bytes
    /// of letters, digits, `-` and `_`.
    pub drive_id: String,
    /// Raw image.
    pub path_on_host: PathBuf,
    /// Refuse writes.
    #[serde(default)]
    pub is_read_only: bool,
}

/// Socket device; the host's side is a Unix socket with the `CONNECT <port>` handshake.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vsock {
    /// Context identifier of the guest, at least 3.
    pub guest_cid: u32,
    /// The monitor listens here; connections from the guest to port P go to `<uds_path>_P`.
    pub uds_path: PathBuf,
}

/// Random number device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entropy {}

/// virtio console.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Console {
    /// File that receives what the guest writes; without it only the last part is kept in memory, for error reports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_path: Option<PathBuf>,
    /// Also copy the output to the monitor's standard error.
    #[serde(default)]
    pub to_stderr: bool,
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
        self.machine_config.validate()?;
        validate_drives(&self.drives)?;
        if let Some(vsock) = &self.vsock {
            let cids = MIN_GUEST_CID..u32::MAX;
            check(cids.contains(&vsock.guest_cid), "vsock.guest_cid", "must be at least 3 and not 4294967295")?;
            check_path(&vsock.uds_path, "vsock.uds_path", MAX_UDS_PATH_BYTES)?;
        }
        if let Some(path) = self.console.as_ref().and_then(|console| console.log_path.as_ref()) {
            check_path(path, "console.log_path", libc::PATH_MAX as usize)?;
        }
        if let Some(path) = &self.control_socket {
            check_path(path, "control_socket", MAX_SOCKET_PATH_BYTES)?;
        }
        Ok(())
    }
}

impl BootSource {
    fn validate(&self) -> Result<(), ConfigError> {
        check_path(&self.kernel_image_path, "boot-source.kernel_image_path", libc::PATH_MAX as usize)?;
        if let Some(path) = &self.initrd_path {
            check_path(path, "boot-source.initrd_path", libc::PATH_MAX as usize)?;
        }
        let printable = self.boot_args.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic());
        check(printable, "boot-source.boot_args", "must be printable ASCII on one line")?;
        let fits = self.boot_args.len() <= MAX_BOOT_ARGS_BYTES;
        check(fits, "boot-source.boot_args", &format!("must have at most {MAX_BOOT_ARGS_BYTES} bytes"))
    }
}

impl MachineConfig {
    fn validate(&self) -> Result<(), ConfigError> {
        let vcpus = 1..=Self::MAX_VCPUS;
        check(
            vcpus.contains(&self.vcpu_count),
            "machine-config.vcpu_count",
            &format!("must be {} to {}, not {}", vcpus.start(), vcpus.end(), self.vcpu_count),
        )?;
        let sizes = Self::MIN_MEM_SIZE_MIB..=Self::MAX_MEM_SIZE_MIB;
        check(
            sizes.contains(&self.mem_size_mib),
            "machine-config.mem_size_mib",
            &format!("must be {} to {}, not {}", sizes.start(), sizes.end(), self.mem_size_mib),
        )?;
        let whole = self.huge_pages != HugePages::Hugetlb2M || self.mem_size_mib.is_multiple_of(2);
        check(whole, "machine-config.mem_size_mib", "must be a multiple of 2 with 2M huge pages")
    }
}

fn validate_drives(drives: &[Drive]) -> Result<(), ConfigError> {
    check(drives.len() <= MAX_DRIVES, "drives", &format!("at most {MAX_DRIVES} are possible, not {}", drives.len()))?;
    let mut ids = HashSet::new();
    for (index, drive) in drives.iter().enumerate() {
        let id = drive.drive_id.as_str();
        let field = format!("drives[{index}].drive_id");
        let valid = (1..=MAX_DRIVE_ID_BYTES).contains(&id.len())
            && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
        check(valid, &field, &format!("must have 1 to {MAX_DRIVE_ID_BYTES} letters, digits, - or _"))?;
        check(ids.insert(id), &field, &format!("another drive is called {id} already"))?;
        check_path(&drive.path_on_host, &format!("drives[{index}].path_on_host"), libc::PATH_MAX as usize)?;
    }
    Ok(())
}

fn check_path(path: &Path, field: &str, max_bytes: usize) -> Result<(), ConfigError> {
    let bytes = path.as_os_str().as_bytes();
    check(!bytes.is_empty(), field, "must not be empty")?;
    check(!bytes.contains(&0), field, "must not contain a NUL byte")?;
    check(bytes.len() <= max_bytes, field, &format!("must have at most {max_bytes} bytes, not {}", bytes.len()))
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
