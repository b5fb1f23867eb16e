//! Console.

use std::collections::HashSet;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{ConfigError, MAX_SOCKET_PATH_BYTES, check, check_path};
use crate::virtio::console::MAX_PORTS;

/// Longest name of a port.
pub const MAX_PORT_NAME_BYTES: usize = 64;

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
    /// The monitor listens here: one process at a time may type into the console and see what it says from then on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket_path: Option<PathBuf>,
    /// Columns that the guest takes its console to have; 0 for unknown.
    #[serde(default)]
    pub cols: u16,
    /// Rows that the guest takes its console to have; 0 for unknown.
    #[serde(default)]
    pub rows: u16,
    /// Further ports between guest and host.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<ConsolePort>,
}

/// A named port: a device in the guest, a Unix socket on the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConsolePort {
    /// Name that the guest reads in `/sys/class/virtio-ports/*/name`: letters, digits, `.`, `-` and `_`.
    pub name: String,
    /// The monitor listens here: one process at a time is connected to the port, others wait.
    pub socket_path: PathBuf,
}

impl Console {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        if let Some(path) = &self.log_path {
            check_path(path, "console.log_path", libc::PATH_MAX as usize)?;
        }
        if let Some(path) = &self.socket_path {
            check_path(path, "console.socket_path", MAX_SOCKET_PATH_BYTES)?;
        }
        let count = self.ports.len();
        check(count <= MAX_PORTS, "console.ports", &format!("at most {MAX_PORTS} are possible, not {count}"))?;
        let mut names = HashSet::new();
        for (index, port) in self.ports.iter().enumerate() {
            let name = port.name.as_str();
            let valid = (1..=MAX_PORT_NAME_BYTES).contains(&name.len())
                && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'));
            let field = format!("console.ports[{index}].name");
            check(valid, &field, &format!("must have 1 to {MAX_PORT_NAME_BYTES} letters, digits, ., - or _"))?;
            check(names.insert(name), &field, &format!("another port is called {name} already"))?;
            check_path(&port.socket_path, &format!("console.ports[{index}].socket_path"), MAX_SOCKET_PATH_BYTES)?;
        }
        Ok(())
    }
}
