//! What a device has done so far.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

/// Counters of one device. They survive resets and may be read at any time.
#[derive(Debug, Default, Serialize)]
pub struct Counters {
    /// Requests taken from a ring.
    pub requests: Count,
    /// Bytes that the device wrote into guest memory.
    pub bytes_to_guest: Count,
    /// Bytes that the device took from guest memory.
    pub bytes_from_guest: Count,
    /// Available buffer notifications received.
    pub notifications: Count,
    /// Used buffer notifications sent.
    pub interrupts: Count,
    /// Requests that failed.
    pub errors: Count,
    /// Times that a rate limit made a queue wait.
    pub throttled: Count,
}

/// A number that only grows.
#[derive(Debug, Default, Serialize)]
#[serde(transparent)]
pub struct Count(AtomicU64);

impl Count {
    /// Adds `n`, wrapping after 2⁶⁴.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// Undoes [`Count::add`]: what was counted didn't happen after all.
    pub fn take_back(&self, n: u64) {
        self.0.fetch_sub(n, Ordering::Relaxed);
    }

    /// The sum so far.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
