//! Token bucket: how much may be done by when. Time is an argument, and no fraction of a token is lost.

use std::time::{Duration, Instant};

use crate::config;

const NANOS_PER_MILLI: u128 = 1_000_000;

/// A bucket of tokens that fills at a steady rate, never above its size.
#[derive(Debug, Clone)]
pub struct TokenBucket {
    size: u64,
    refill_ns: u128,
    /// Tokens that don't come back.
    burst: u64,
    /// Tokens there are; below zero after an item that is larger than the bucket.
    level: i128,
    /// What is earned of the next token, in units of `1 / refill_ns` token.
    fraction: u128,
    /// Until when tokens are counted.
    counted: Instant,
}

impl TokenBucket {
    /// A full bucket; `None` if the configuration stands for no limit.
    pub fn new(config: &config::TokenBucket, now: Instant) -> Option<Self> {
        let refill_ns = u128::from(config.refill_time) * NANOS_PER_MILLI;
        (config.size > 0 && refill_ns > 0).then(|| Self {
            size: config.size,
            refill_ns,
            burst: config.one_time_burst.unwrap_or(0),
            level: i128::from(config.size),
            fraction: 0,
            counted: now,
        })
    }

    /// When `count` tokens can be taken: `None` for now. An item that is larger than the bucket goes when the bucket is full, so
    /// that nothing waits for ever.
    pub fn ready_at(&mut self, count: u64, now: Instant) -> Option<Instant> {
        self.refill(now);
        let missing = i128::from(count.saturating_sub(self.burst).min(self.size)) - self.level;
        let missing = u128::try_from(missing).ok().filter(|missing| *missing > 0)?;
        let wait_ns =
            missing.saturating_mul(self.refill_ns).saturating_sub(self.fraction).div_ceil(u128::from(self.size));
        Some(later(self.counted, wait_ns))
    }

    /// Takes tokens, those of the burst first. What isn't there is owed: the caller has asked [`TokenBucket::ready_at`].
    pub fn take(&mut self, count: u64) {
        let from_burst = count.min(self.burst);
        self.burst -= from_burst;
        self.level -= i128::from(count - from_burst);
    }

    fn refill(&mut self, now: Instant) {
        let elapsed_ns = now.saturating_duration_since(self.counted).as_nanos();
        self.counted = self.counted.max(now);
        let earned = elapsed_ns.saturating_mul(u128::from(self.size)).saturating_add(self.fraction);
        let level = self.level.saturating_add(i128::try_from(earned / self.refill_ns).unwrap_or(i128::MAX));
        let full = i128::from(self.size);
        (self.level, self.fraction) = if level >= full { (full, 0) } else { (level, earned % self.refill_ns) };
    }
}

/// An instant that can't be expressed is far enough away as a day from now.
fn later(from: Instant, ns: u128) -> Instant {
    const FAR: Duration = Duration::from_secs(86_400);
    let wait = Duration::from_nanos(u64::try_from(ns).unwrap_or(u64::MAX));
    from.checked_add(wait).unwrap_or_else(|| from.checked_add(FAR).unwrap_or(from))
}
