//! Annotations: `io.hull.KEY` of a container or pod sets a key for its VM, if the configuration allows it.
//!
//! Who may create pods is mostly not who runs the nodes. So nothing is allowed unless the configuration names it, and keys that
//! name files of the host never are.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use super::{Config, ConfigError};

/// What all names begin with.
const PREFIX: &str = "io.hull.";

/// Keys that annotations can be allowed to set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Adjustable {
    /// [`Config::default_vcpus`].
    DefaultVcpus,
    /// [`Config::max_vcpus`].
    MaxVcpus,
    /// [`Config::default_memory_mib`].
    DefaultMemoryMib,
    /// [`Config::max_memory_mib`].
    MaxMemoryMib,
    /// [`Config::overhead_mib`].
    OverheadMib,
    /// [`Config::shm_size_mib`].
    ShmSizeMib,
    /// [`Config::watchdog`].
    Watchdog,
    /// [`Config::boot_timeout_s`].
    BootTimeoutS,
}

impl Adjustable {
    fn key(self) -> &'static str {
        match self {
            Self::DefaultVcpus => "default_vcpus",
            Self::MaxVcpus => "max_vcpus",
            Self::DefaultMemoryMib => "default_memory_mib",
            Self::MaxMemoryMib => "max_memory_mib",
            Self::OverheadMib => "overhead_mib",
            Self::ShmSizeMib => "shm_size_mib",
            Self::Watchdog => "watchdog",
            Self::BootTimeoutS => "boot_timeout_s",
        }
    }
}

/// `config` with the annotations of Hull among `annotations`, all of them at once.
pub(super) fn apply(config: Config, annotations: &HashMap<String, String>) -> Result<Config, ConfigError> {
    let mut ours: Vec<_> =
        annotations.iter().filter_map(|(name, value)| Some((name.strip_prefix(PREFIX)?, value))).collect();
    // Of several errors always the same one is told.
    ours.sort_unstable();
    let mut layer = Table::new();
    for (key, value) in ours {
        let refused = |reason: String| ConfigError::Annotation { name: format!("{PREFIX}{key}"), reason };
        if !config.enable_annotations.iter().any(|allowed| allowed.key() == key) {
            return Err(refused(format!("This host's configuration doesn't list {key} in enable_annotations")));
        }
        layer.insert(key.into(), parse(value).ok_or_else(|| refused(format!("{value:?} is no value of this key")))?);
    }
    config.with(layer).map_err(|(key, reason)| ConfigError::Annotation { name: format!("{PREFIX}{key}"), reason })
}

/// Annotations are texts; the keys that they can set are numbers and switches.
fn parse(text: &str) -> Option<Value> {
    match text.parse::<bool>() {
        Ok(switch) => Some(Value::Boolean(switch)),
        Err(_) => text.parse().ok().map(Value::Integer),
    }
}
