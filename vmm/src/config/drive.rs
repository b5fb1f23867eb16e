//! Block devices.

use std::collections::HashSet;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{ConfigError, RateLimiter, check, check_identifier, check_path};

/// Most drives: bus 0 has 31 slots, and three may be taken by console, vsock and entropy.
pub const MAX_DRIVES: usize = 28;
/// Longest name of a drive (VIRTIO_BLK_ID_BYTES).
pub const MAX_DRIVE_ID_BYTES: usize = 20;

/// A block device over an image file or host block device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Drive {
    /// Name in errors and calls; also the serial number that the guest reads (VIRTIO_BLK_T_GET_ID), so at most 20 bytes
    /// of letters, digits, `-` and `_`.
    pub drive_id: String,
    /// Image.
    pub path_on_host: PathBuf,
    /// Refuse writes.
    #[serde(default)]
    pub is_read_only: bool,
    /// Format of the image. It is never guessed from content, which a guest may have written.
    #[serde(default, skip_serializing_if = "is_default")]
    pub format: DriveFormat,
    /// How requests are done.
    #[serde(default, skip_serializing_if = "is_default")]
    pub io_engine: IoEngine,
    /// Past the host's page cache (`O_DIRECT`).
    #[serde(default, skip_serializing_if = "is_default")]
    pub direct: bool,
    /// Limits for requests and their bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<RateLimiter>,
    /// The guest's kernel mounts this drive as its root (`root=` and `ro` or `rw` before the `boot_args`). At most one drive.
    #[serde(default)]
    pub is_root_device: bool,
}

/// The words for the kernel's command line, if a drive is the root device. Linux names drives in the order in which it finds them.
pub fn root_device_words(drives: &[Drive]) -> Option<String> {
    let index = drives.iter().position(|drive| drive.is_root_device)?;
    let mode = if drives.get(index)?.is_read_only { "ro" } else { "rw" };
    Some(format!("root=/dev/{} {mode}", disk_name(index)))
}

/// `vda` to `vdz`, then `vdaa`.
fn disk_name(index: usize) -> String {
    let letter = |number: usize| char::from(b"abcdefghijklmnopqrstuvwxyz".get(number % 26).copied().unwrap_or(b'a'));
    match index / 26 {
        0 => format!("vd{}", letter(index)),
        tens => format!("vd{}{}", letter(tens - 1), letter(index)),
    }
}

/// How the bytes of a disk lie in its image.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DriveFormat {
    /// As they are.
    #[default]
    Raw,
    /// qcow2, read-only. Backing files have to lie in the directory of the image, and the image has to say their format.
    Qcow2,
}

/// How a block device does its requests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum IoEngine {
    /// One after the other in each queue.
    #[default]
    Sync,
    /// Many at once, by io_uring; where the host refuses that, as with `Sync`. For raw images.
    Async,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

pub(super) fn validate_all(drives: &[Drive]) -> Result<(), ConfigError> {
    check(drives.len() <= MAX_DRIVES, "drives", &format!("at most {MAX_DRIVES} are possible, not {}", drives.len()))?;
    let mut ids = HashSet::new();
    for (index, drive) in drives.iter().enumerate() {
        let id = drive.drive_id.as_str();
        let field = format!("drives[{index}].drive_id");
        check_identifier(id, &field, MAX_DRIVE_ID_BYTES)?;
        check(ids.insert(id), &field, &format!("another drive is called {id} already"))?;
        let roots = drives.iter().take(index + 1).filter(|drive| drive.is_root_device).count();
        let field_root = format!("drives[{index}].is_root_device");
        check(roots <= 1 || !drive.is_root_device, &field_root, "another drive is the root device already")?;
        check_path(&drive.path_on_host, &format!("drives[{index}].path_on_host"), libc::PATH_MAX as usize)?;
        let possible = drive.io_engine == IoEngine::Sync || drive.format == DriveFormat::Raw;
        check(possible, &format!("drives[{index}].io_engine"), "Async needs an image of format raw")?;
        let possible = drive.is_read_only || drive.format == DriveFormat::Raw;
        check(
            possible,
            &format!("drives[{index}].format"),
            "qcow2 images can only be read: is_read_only must be true",
        )?;
        drive.rate_limiter.iter().try_for_each(|limiter| limiter.validate(&format!("drives[{index}].rate_limiter")))?;
    }
    Ok(())
}
