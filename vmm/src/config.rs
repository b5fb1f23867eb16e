//! What a VM is made of, as JSON.
//!
//! The names follow Firecracker's configuration file where both have the thing, so that what people know carries over.
//! Parsing refuses unknown fields and names the field of every error; [`VmConfig::validate`] checks what types can't.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use thiserror::Error;

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
        Self {
            vcpu_count: 1,
            mem_size_mib: 128,
            huge_pages: HugePages::default(),
        }
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
