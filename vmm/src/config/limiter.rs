//! Rate limits of devices.

use serde::{Deserialize, Serialize};

use super::{ConfigError, check};

/// Largest bucket: far more than a host moves, and far from where arithmetic ends.
pub const MAX_BUCKET_SIZE: u64 = 1 << 50;
/// Longest time to fill a bucket: a day.
pub const MAX_REFILL_TIME_MS: u64 = 86_400_000;

/// Limits of one device or direction. What is absent is not limited; in a change at run time, it stays as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateLimiter {
    /// Bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<TokenBucket>,
    /// Operations: requests or packets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ops: Option<TokenBucket>,
}

/// How many tokens there are and how fast they come back. A size or refill time of 0 stands for no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenBucket {
    /// Most tokens that are saved up: bytes, or operations.
    pub size: u64,
    /// Tokens that exist once, on top, and are used up first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub one_time_burst: Option<u64>,
    /// Milliseconds in which an empty bucket fills.
    pub refill_time: u64,
}

impl RateLimiter {
    pub(super) fn validate(&self, field: &str) -> Result<(), ConfigError> {
        for (name, bucket) in [("bandwidth", self.bandwidth), ("ops", self.ops)] {
            let Some(bucket) = bucket else { continue };
            for (part, value, most) in [
                ("size", bucket.size, MAX_BUCKET_SIZE),
                ("one_time_burst", bucket.one_time_burst.unwrap_or(0), MAX_BUCKET_SIZE),
                ("refill_time", bucket.refill_time, MAX_REFILL_TIME_MS),
            ] {
                check(value <= most, &format!("{field}.{name}.{part}"), &format!("at most {most}, not {value}"))?;
            }
        }
        Ok(())
    }
}
