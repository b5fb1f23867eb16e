//! What the VM boots.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{ConfigError, check, check_path};

/// Longest `boot_args`; the whole command line has 2,048 bytes.
pub const MAX_BOOT_ARGS_BYTES: usize = 1800;

/// What the VM boots.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
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

impl BootSource {
    /// Whether there is something to boot.
    pub fn is_set(&self) -> bool {
        !self.kernel_image_path.as_os_str().is_empty()
    }

    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
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
