//! What the control API sees of a balloon, and what it can change.

use std::io;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::Statistics;
use crate::virtio::counters::Count;

/// Pages of [`crate::discard::PAGE_BYTES`].
const PAGES_PER_MIB: u32 = 256;

/// State of a balloon, shared by the device, its worker and the control API.
#[derive(Debug)]
pub struct Control {
    target_pages: AtomicU32,
    actual_pages: AtomicU32,
    interval_s: AtomicU16,
    statistics: Mutex<Option<Statistics>>,
    /// Wakes the worker after a change of the interval.
    pub(super) wake: EventFd,
    /// What the balloon has done for the host.
    pub reclaim: Reclaim,
}

/// Memory given back to the host, in all.
#[derive(Debug, Default, Serialize)]
pub struct Reclaim {
    /// By inflating, in bytes.
    pub inflated_bytes: Count,
    /// By free page reporting, in bytes.
    pub reported_bytes: Count,
    /// Pages that the driver named and that were not given back: outside of memory, or not of a kind that can be.
    pub ignored_pages: Count,
}

impl Control {
    /// A balloon with a target of `amount_mib`.
    pub(super) fn new(amount_mib: u32, interval_s: u16) -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            target_pages: AtomicU32::new(amount_mib.saturating_mul(PAGES_PER_MIB)),
            actual_pages: AtomicU32::new(0),
            interval_s: AtomicU16::new(interval_s),
            statistics: Mutex::default(),
            wake: EventFd::new(EFD_NONBLOCK)?,
            reclaim: Reclaim::default(),
        }))
    }

    /// Size that the balloon shall have, in pages of 4 KiB (`num_pages`).
    pub fn target_pages(&self) -> u32 {
        self.target_pages.load(Ordering::Relaxed)
    }

    /// Size that the driver says it has, in pages of 4 KiB. A guest's word: it may be anything.
    pub fn actual_pages(&self) -> u32 {
        self.actual_pages.load(Ordering::Relaxed)
    }

    /// Size that the balloon shall have, in MiB.
    pub fn target_mib(&self) -> u32 {
        self.target_pages() / PAGES_PER_MIB
    }

    /// Size that the driver says it has, in MiB.
    pub fn actual_mib(&self) -> u32 {
        self.actual_pages() / PAGES_PER_MIB
    }

    /// Changes the target; show it to the guest afterwards.
    pub fn set_target_mib(&self, amount_mib: u32) {
        self.target_pages.store(amount_mib.saturating_mul(PAGES_PER_MIB), Ordering::Relaxed);
    }

    pub(super) fn set_actual_pages(&self, pages: u32) {
        self.actual_pages.store(pages, Ordering::Relaxed);
    }

    /// How often the guest is asked for statistics; `None` if it can't be, because the device was made without.
    pub fn interval(&self) -> Option<Duration> {
        match self.interval_s.load(Ordering::Relaxed) {
            0 => None,
            seconds => Some(Duration::from_secs(u64::from(seconds))),
        }
    }

    /// Changes how often the guest is asked for statistics. False if that isn't possible: a device made without statistics never
    /// has any, and one made with them always does.
    pub fn set_interval_s(&self, seconds: u16) -> bool {
        if self.interval().is_none() || seconds == 0 {
            return false;
        }
        self.interval_s.store(seconds, Ordering::Relaxed);
        // Can't fail: the counter can't be full.
        let _ = self.wake.write(1);
        true
    }

    /// The guest's last statistics.
    pub fn statistics(&self) -> Option<Statistics> {
        *self.statistics.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set_statistics(&self, statistics: Statistics) {
        *self.statistics.lock().unwrap_or_else(PoisonError::into_inner) = Some(statistics);
    }
}
