//! The balloon's worker.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use vm_memory::{GuestAddressSpace, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;

use super::{Control, Statistics, pages};
use crate::discard::{PAGE_BYTES, discard};
use crate::memory::GuestRam;
use crate::virtio::counters::Counters;
use crate::virtio::queue::{Chain, Head, VirtQueue};
use crate::virtio::worker::{Service, Watch};

const INFLATE: u64 = 0;
const DEFLATE: u64 = 1;
const STATISTICS: u64 = 2;
const REPORTING: u64 = 3;
const WAKE: u64 = 4;

/// Owns the queues while the driver is ready.
pub struct BalloonService {
    pub(super) memory: GuestRam,
    pub(super) inflate: VirtQueue,
    pub(super) deflate: VirtQueue,
    pub(super) statistics: Option<VirtQueue>,
    pub(super) reporting: Option<VirtQueue>,
    pub(super) control: Arc<Control>,
    pub(super) counters: Arc<Counters>,
    /// The driver's buffer for statistics. It fills a new one when it gets this back (section 5.5.6.3).
    pub(super) held: Option<Head>,
    pub(super) next_poll: Option<Instant>,
}

impl BalloonService {
    fn serve_inflate(&mut self) {
        let memory = self.memory.memory();
        let (control, counters) = (&self.control, &self.counters);
        self.inflate.drain(&memory, |queue, chain| inflate(queue, &memory, chain, control, counters));
    }

    /// Nothing to do for the host: pages come back by being touched.
    fn serve_deflate(&mut self) {
        let memory = self.memory.memory();
        self.deflate.drain(&memory, |queue, chain| queue.complete(&memory, chain.head, 0));
    }

    fn serve_statistics(&mut self) {
        let memory = self.memory.memory();
        let Some(queue) = &mut self.statistics else { return };
        let (control, held) = (&self.control, &mut self.held);
        queue.drain(&memory, |queue, mut chain| {
            control.set_statistics(Statistics::read(&mut chain.reader));
            // A driver has one buffer; if it offers another, the first is not needed any more.
            if let Some(before) = held.replace(chain.head) {
                queue.complete(&memory, before, 0);
            }
        });
        if self.next_poll.is_none() {
            self.plan_poll();
        }
    }

    /// Asks for new statistics by giving the buffer back.
    fn poll_statistics(&mut self) {
        let memory = self.memory.memory();
        if let (Some(queue), Some(held)) = (&mut self.statistics, self.held.take()) {
            queue.complete(&memory, held, 0);
            queue.signal(&memory);
        }
        self.plan_poll();
    }

    fn plan_poll(&mut self) {
        self.next_poll = self.control.interval().and_then(|interval| Instant::now().checked_add(interval));
    }

    fn serve_reporting(&mut self) {
        let memory = self.memory.memory();
        let Some(queue) = &mut self.reporting else { return };
        let (control, counters) = (&self.control, &self.counters);
        queue.drain(&memory, |queue, mut chain| {
            let named = chain.writer.remaining() as u64;
            let given = chain.writer.discard(&memory);
            control.reclaim.reported_bytes.add(given);
            note_ignored(control, counters, named.saturating_sub(given) / PAGE_BYTES);
            queue.complete(&memory, chain.head, 0);
        });
    }
}

fn inflate(
    queue: &mut VirtQueue,
    memory: &GuestMemoryMmap,
    mut chain: Chain<'_>,
    control: &Control,
    counters: &Counters,
) {
    let pages = pages::read(&mut chain.reader, memory);
    let mut kept = 0;
    for &(start, bytes) in &pages.ranges {
        let given = discard(memory, start, bytes);
        control.reclaim.inflated_bytes.add(given);
        kept += (bytes - given) / PAGE_BYTES;
    }
    note_ignored(control, counters, pages.ignored + kept);
    queue.complete(memory, chain.head, 0);
}

fn note_ignored(control: &Control, counters: &Counters, pages: u64) {
    if pages > 0 {
        control.reclaim.ignored_pages.add(pages);
        counters.errors.add(1);
    }
}

impl Service for BalloonService {
    fn start(&mut self, watch: &Watch) -> io::Result<()> {
        watch.add(self.inflate.doorbell(), EventSet::IN, INFLATE)?;
        watch.add(self.deflate.doorbell(), EventSet::IN, DEFLATE)?;
        if let Some(queue) = &self.statistics {
            watch.add(queue.doorbell(), EventSet::IN, STATISTICS)?;
            watch.add(&self.control.wake, EventSet::IN, WAKE)?;
        }
        if let Some(queue) = &self.reporting {
            watch.add(queue.doorbell(), EventSet::IN, REPORTING)?;
        }
        self.serve_inflate();
        self.serve_deflate();
        self.serve_statistics();
        self.serve_reporting();
        Ok(())
    }

    fn fail(&mut self, error: &io::Error) {
        self.inflate.fail(error);
    }

    fn handle(&mut self, _watch: &Watch, token: u64, _events: EventSet) {
        match token {
            INFLATE => {
                self.inflate.acknowledge();
                self.serve_inflate();
            }
            DEFLATE => {
                self.deflate.acknowledge();
                self.serve_deflate();
            }
            STATISTICS => {
                self.statistics.iter().for_each(VirtQueue::acknowledge);
                self.serve_statistics();
            }
            REPORTING => {
                self.reporting.iter().for_each(VirtQueue::acknowledge);
                self.serve_reporting();
            }
            WAKE => {
                let _ = self.control.wake.read();
                self.plan_poll();
            }
            _ => {}
        }
    }

    fn deadline(&self) -> Option<Instant> {
        self.next_poll
    }

    fn timeout(&mut self, _watch: &Watch) {
        self.poll_statistics();
    }
}
