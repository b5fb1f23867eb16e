//! Random numbers.

use serde::{Deserialize, Serialize};

/// Random number device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entropy {}
