//! Sockets between host and guest.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{ConfigError, RateLimiter, check, check_path};

/// Longest vsock path: `_<port>` is put behind it.
pub const MAX_UDS_PATH_BYTES: usize = 100;
/// Smallest context identifier of a guest: 0 to 2 are the hypervisor, local and the host.
pub const MIN_GUEST_CID: u32 = 3;

/// Socket device; the host's side is a Unix socket with the `CONNECT <port>` handshake.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vsock {
    /// Context identifier of the guest, at least 3.
    pub guest_cid: u32,
    /// The monitor listens here; connections from the guest to port P go to `<uds_path>_P`.
    pub uds_path: PathBuf,
    /// Ignored: Firecracker's clients may give the device a name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vsock_id: Option<String>,
    /// Limits for packets to the guest and their bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rx_rate_limiter: Option<RateLimiter>,
    /// Limits for packets from the guest and their bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tx_rate_limiter: Option<RateLimiter>,
}

impl Vsock {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        let cids = MIN_GUEST_CID..u32::MAX;
        check(cids.contains(&self.guest_cid), "vsock.guest_cid", "must be at least 3 and not 4294967295")?;
        for (name, limiter) in [("rx_rate_limiter", self.rx_rate_limiter), ("tx_rate_limiter", self.tx_rate_limiter)] {
            limiter.map_or(Ok(()), |limiter| limiter.validate(&format!("vsock.{name}")))?;
        }
        check_path(&self.uds_path, "vsock.uds_path", MAX_UDS_PATH_BYTES)
    }
}
