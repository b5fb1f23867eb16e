//! Persistent memory.

use std::collections::HashSet;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{ConfigError, Drive, check, check_identifier, check_path};

/// Most devices: bus 0 has 31 slots.
const MAX_PMEM: usize = 24;
/// Longest name.
const MAX_ID_BYTES: usize = 64;

/// A file that the guest sees as memory: virtio persistent memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pmem {
    /// Name in errors and calls: letters, digits, `-` and `_`.
    pub id: String,
    /// Regular file or block device.
    pub path_on_host: PathBuf,
    /// The guest's root file system is on it: adds `root=` to the command line.
    #[serde(default)]
    pub root_device: bool,
    /// The guest can't write. What it tries to write is dropped.
    #[serde(default)]
    pub read_only: bool,
}

pub(super) fn validate_all(devices: &[Pmem], drives: &[Drive]) -> Result<(), ConfigError> {
    check(devices.len() <= MAX_PMEM, "pmem", &format!("at most {MAX_PMEM} are possible, not {}", devices.len()))?;
    let mut ids = HashSet::new();
    for (index, device) in devices.iter().enumerate() {
        let id = device.id.as_str();
        let field = format!("pmem[{index}].id");
        check_identifier(id, &field, MAX_ID_BYTES)?;
        check(ids.insert(id), &field, &format!("another device is called {id} already"))?;
        check_path(&device.path_on_host, &format!("pmem[{index}].path_on_host"), libc::PATH_MAX as usize)?;
    }
    let roots = devices.iter().filter(|device| device.root_device).count();
    check(roots <= 1, "pmem", "only one can be the root device")?;
    let other = drives.iter().any(|drive| drive.is_root_device);
    check(roots == 0 || !other, "pmem", "a drive is the root device already")
}
