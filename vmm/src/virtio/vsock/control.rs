//! What can be read and changed of a socket device while it runs.

use std::io;
use std::sync::Arc;

use serde::Serialize;

use crate::config;
use crate::virtio::counters::Count;
use crate::virtio::rate_limiter::SharedLimiter;

/// A handle that outlives resets of the device.
pub struct Control {
    /// Limits of the way to the guest.
    pub(super) rx: Arc<SharedLimiter>,
    /// Limits of the way from the guest.
    pub(super) tx: Arc<SharedLimiter>,
    /// What became of streams.
    pub streams: Streams,
}

/// Numbers of streams.
#[derive(Debug, Default, Serialize)]
pub struct Streams {
    /// There are now, with those that are not yet or no longer established.
    pub open: Count,
    /// Asked for by the guest.
    pub from_guest: Count,
    /// Asked for by host processes, with a proper greeting.
    pub from_host: Count,
    /// Asked for by the guest and refused: nobody listens, or there are too many.
    pub refused: Count,
    /// Ended because the guest broke a rule or did not answer.
    pub broken: Count,
}

impl Control {
    pub(super) fn new(rx: Option<&config::RateLimiter>, tx: Option<&config::RateLimiter>) -> io::Result<Arc<Self>> {
        let (rx, tx) = (SharedLimiter::new(rx)?, SharedLimiter::new(tx)?);
        Ok(Arc::new(Self { rx, tx, streams: Streams::default() }))
    }

    /// Changes the limits that are given, also of a device that isn't started.
    pub fn set_limits(&self, rx: Option<&config::RateLimiter>, tx: Option<&config::RateLimiter>) {
        for (limiter, change) in [(&self.rx, rx), (&self.tx, tx)] {
            if let Some(change) = change {
                limiter.update(change);
            }
        }
    }
}
