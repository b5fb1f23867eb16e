//! Rate limits that a device's workers keep and that may change while they run.
//!
//! A device makes one [`SharedLimiter`] for each direction and keeps it over resets. Each worker has a [`Gate`] on it:
//!
//! ```ignore
//! fn start(&mut self, watch) { self.gate.watch(watch, LIMITS_TOKEN)?; .. }
//! fn deadline(&self) -> Option<Instant> { self.gate.deadline() }
//! fn timeout(&mut self, ..) { self.gate.retry(); self.serve() }
//! fn handle(&mut self, .., token, ..) { if token == LIMITS_TOKEN { self.gate.retry(); self.serve() } }
//! // before an item: if it has to wait, keep it (`VirtQueue::unpop`) and stop taking more
//! if !self.gate.admit(bytes, 1) { .. }
//! ```

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::counters::Counters;
use super::token_bucket::TokenBucket;
use super::worker::Watch;
use crate::config;

/// Limits for bytes and for operations. Time is an argument.
#[derive(Debug, Default)]
pub struct RateLimiter {
    bandwidth: Option<TokenBucket>,
    ops: Option<TokenBucket>,
}

impl RateLimiter {
    /// Changes the limits that `config` has; such a bucket starts full.
    pub fn update(&mut self, config: &config::RateLimiter, now: Instant) {
        if let Some(bucket) = &config.bandwidth {
            self.bandwidth = TokenBucket::new(bucket, now);
        }
        if let Some(bucket) = &config.ops {
            self.ops = TokenBucket::new(bucket, now);
        }
    }

    /// There is a limit.
    pub fn is_limited(&self) -> bool {
        self.bandwidth.is_some() || self.ops.is_some()
    }

    /// Takes what an item needs from both buckets, or nothing from either and says when to try again.
    pub fn take(&mut self, bytes: u64, ops: u64, now: Instant) -> Result<(), Instant> {
        let wait = |bucket: &mut Option<TokenBucket>, count| bucket.as_mut().and_then(|it| it.ready_at(count, now));
        match wait(&mut self.bandwidth, bytes).max(wait(&mut self.ops, ops)) {
            Some(at) => Err(at),
            None => {
                self.bandwidth.iter_mut().for_each(|bucket| bucket.take(bytes));
                self.ops.iter_mut().for_each(|bucket| bucket.take(ops));
                Ok(())
            }
        }
    }
}

/// A limiter for several workers that another thread may change.
pub struct SharedLimiter {
    limiter: Mutex<RateLimiter>,
    /// So that a device without limits takes no lock.
    limited: AtomicBool,
    /// Written to at each change and never read: the workers wait for its edges, so each of them gets every change.
    changed: EventFd,
}

impl SharedLimiter {
    /// A limiter; without limits for `None`.
    pub fn new(config: Option<&config::RateLimiter>) -> io::Result<Arc<Self>> {
        let mut limiter = RateLimiter::default();
        if let Some(config) = config {
            limiter.update(config, Instant::now());
        }
        let limited = AtomicBool::new(limiter.is_limited());
        let changed = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        Ok(Arc::new(Self { limiter: Mutex::new(limiter), limited, changed }))
    }

    /// Changes the limits that `config` has and wakes the workers. A bucket of size 0 takes a limit away.
    pub fn update(&self, config: &config::RateLimiter) {
        let mut limiter = self.lock();
        limiter.update(config, Instant::now());
        self.limited.store(limiter.is_limited(), Ordering::Release);
        drop(limiter);
        // Can't fail: the counter is never near its end.
        let _ = self.changed.write(1);
    }

    fn lock(&self) -> MutexGuard<'_, RateLimiter> {
        self.limiter.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A worker's way through a limiter: it stays shut from an item that must wait until [`Gate::retry`].
pub struct Gate {
    limiter: Arc<SharedLimiter>,
    counters: Arc<Counters>,
    shut_until: Option<Instant>,
}

impl Gate {
    /// An open gate.
    pub fn new(limiter: Arc<SharedLimiter>, counters: Arc<Counters>) -> Self {
        Self { limiter, counters, shut_until: None }
    }

    /// Has the worker called with `token` whenever the limits have changed, and once at the start.
    pub fn watch(&self, watch: &Watch, token: u64) -> io::Result<()> {
        watch.add(&self.limiter.changed, EventSet::IN | EventSet::EDGE_TRIGGERED, token)
    }

    /// Asks for an item of `bytes` that makes `ops` operations. False if it has to wait: the gate is shut then.
    pub fn admit(&mut self, bytes: u64, ops: u64) -> bool {
        if self.shut_until.is_some() {
            return false;
        }
        if !self.limiter.limited.load(Ordering::Acquire) {
            return true;
        }
        match self.limiter.lock().take(bytes, ops, Instant::now()) {
            Ok(()) => true,
            Err(at) => {
                self.counters.throttled.add(1);
                self.shut_until = Some(at);
                false
            }
        }
    }

    /// An item waits.
    pub fn is_shut(&self) -> bool {
        self.shut_until.is_some()
    }

    /// When to [`retry`](Gate::retry).
    pub fn deadline(&self) -> Option<Instant> {
        self.shut_until
    }

    /// Opens the gate: the deadline has passed, or the limits have changed.
    pub fn retry(&mut self) {
        self.shut_until = None;
    }
}

#[cfg(test)]
#[path = "rate_limiter_test.rs"]
mod rate_limiter_test;
