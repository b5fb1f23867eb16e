//! Memory balloon (virtio 1.2, section 5.5): the guest gives memory back to the host, on request by inflating the balloon, and on
//! its own by reporting free pages.
//!
//! What the guest names is given back only where it is guest memory; anything else is counted and ignored. A page given back is
//! zeros when the guest touches it again, so nothing has to be done to deflate.

mod control;
mod pages;
mod service;
mod statistics;

use std::io;
use std::sync::Arc;

pub use self::control::{Control, Reclaim};
use self::service::BalloonService;
pub use self::statistics::Statistics;
use super::counters::Counters;
use super::device::{ActivateError, Activation, VirtioDevice};
use super::spec::device_type;
use super::worker::{Quiesce, Workers};

/// Feature bits (section 5.5.3).
const F_STATS_VQ: u64 = 1 << 1;
const F_DEFLATE_ON_OOM: u64 = 1 << 2;
const F_REPORTING: u64 = 1 << 5;
/// Linux puts 256 page numbers into a request and reports up to 32 ranges at once.
const QUEUE_SIZE: u16 = 128;
/// Offset of `actual` in configuration space, the one field that the driver writes (section 5.5.4).
const ACTUAL_OFFSET: u64 = 4;

/// What a balloon is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BalloonConfig {
    /// Target at the start.
    pub amount_mib: u32,
    /// The guest may take pages out of the balloon when it has no others left.
    pub deflate_on_oom: bool,
    /// How often the guest is asked for statistics; never if 0.
    pub stats_polling_interval_s: u16,
    /// The guest reports free pages.
    pub free_page_reporting: bool,
}

/// The balloon.
pub struct Balloon {
    features: u64,
    queue_sizes: Vec<u16>,
    control: Arc<Control>,
    counters: Arc<Counters>,
    workers: Workers<BalloonService>,
}

impl Balloon {
    /// Makes the device.
    pub fn new(config: BalloonConfig) -> io::Result<Self> {
        let mut features = 0;
        let mut optional_queues = 0;
        if config.deflate_on_oom {
            features |= F_DEFLATE_ON_OOM;
        }
        if config.stats_polling_interval_s > 0 {
            features |= F_STATS_VQ;
            optional_queues += 1;
        }
        if config.free_page_reporting {
            features |= F_REPORTING;
            optional_queues += 1;
        }
        Ok(Self {
            features,
            queue_sizes: vec![QUEUE_SIZE; 2 + optional_queues],
            control: Control::new(config.amount_mib, config.stats_polling_interval_s)?,
            counters: Arc::default(),
            workers: Workers::default(),
        })
    }

    /// For changes while the VM runs.
    pub fn control(&self) -> &Arc<Control> {
        &self.control
    }
}

impl VirtioDevice for Balloon {
    fn device_type(&self) -> u16 {
        device_type::BALLOON
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn device_features(&self) -> u64 {
        self.features
    }

    /// One for configuration changes, one for all queues: none of them is busy.
    fn msix_vectors(&self) -> u16 {
        2
    }

    fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// `num_pages` and `actual`; the fields behind them belong to features that are not offered.
    fn config_space(&self) -> Vec<u8> {
        [self.control.target_pages(), self.control.actual_pages()].map(u32::to_le_bytes).concat()
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        if let [a, b, c, d] = *data
            && offset == ACTUAL_OFFSET
        {
            self.control.set_actual_pages(u32::from_le_bytes([a, b, c, d]));
        }
    }

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        let mut queues = activation.queues(&self.counters);
        let accepted = |feature: u64| activation.driver_features & feature != 0;
        // Drivers number the queues that they use without gaps, whatever the specification's table says (section 5.5.2).
        let mut next = 2;
        let mut optional = |wanted: bool| {
            let index = next;
            next += u16::from(wanted);
            wanted.then(|| queues.take(index)).transpose()
        };
        let statistics = optional(accepted(F_STATS_VQ))?;
        let reporting = optional(accepted(F_REPORTING))?;
        let service = BalloonService {
            memory: activation.memory,
            inflate: queues.take(0)?,
            deflate: queues.take(1)?,
            statistics,
            reporting,
            control: Arc::clone(&self.control),
            counters: Arc::clone(&self.counters),
            held: None,
            next_poll: None,
        };
        Ok(self.workers.start("balloon", [service])?)
    }

    fn reset(&mut self) {
        self.workers.stop();
        // A driver that starts anew has an empty balloon.
        self.control.set_actual_pages(0);
    }

    fn workers(&self) -> &dyn Quiesce {
        &self.workers
    }
}

#[cfg(test)]
#[path = "balloon_test.rs"]
mod balloon_test;
