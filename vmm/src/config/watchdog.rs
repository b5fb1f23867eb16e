//! Watchdog.

use serde::{Deserialize, Serialize};

/// Watchdog timer of Intel's 6300ESB. The guest starts it, says how long it may be silent, and has to be heard of from then on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Watchdog {
    /// What happens when the guest is silent for too long.
    pub action: WatchdogAction,
}

/// What happens when a guest is silent for too long.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum WatchdogAction {
    /// The VM ends.
    #[default]
    Stop,
    /// It is counted in the metrics and logged.
    Report,
}
