//! Console.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{ConfigError, check_path};

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

impl Console {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        self.log_path.as_deref().map_or(Ok(()), |path| check_path(path, "console.log_path", libc::PATH_MAX as usize))
    }
}
