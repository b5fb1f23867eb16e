//! Entropy device (virtio 1.2, section 5.4).

use std::io;
use std::sync::Arc;

use vm_memory::{GuestAddressSpace, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;

use super::counters::Counters;
use super::device::{ActivateError, Activation, VirtioDevice};
use super::queue::{Chain, VirtQueue};
use super::spec::device_type;
use super::sys;
use super::worker::{Quiesce, Service, Watch, Workers};
use crate::memory::GuestRam;

const QUEUE_SIZES: &[u16] = &[64];
/// Most bytes of one answer; the driver asks again if it wants more. Keeps one request from taking long.
const MAX_ANSWER_BYTES: usize = 4096;

/// Random bytes from the host's kernel.
#[derive(Default)]
pub struct Rng {
    counters: Arc<Counters>,
    workers: Workers<RngService>,
}

impl Rng {
    /// Makes the device.
    pub fn new() -> Self {
        Self::default()
    }
}

impl VirtioDevice for Rng {
    fn device_type(&self) -> u16 {
        device_type::ENTROPY
    }

    fn queue_max_sizes(&self) -> &[u16] {
        QUEUE_SIZES
    }

    fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        let mut queues = activation.queues(&self.counters);
        let queue = queues.take(0)?;
        let service = RngService { memory: activation.memory, queue, counters: Arc::clone(&self.counters) };
        Ok(self.workers.start("rng", [service])?)
    }

    fn reset(&mut self) {
        self.workers.stop();
    }

    fn workers(&self) -> &dyn Quiesce {
        &self.workers
    }
}

struct RngService {
    memory: GuestRam,
    queue: VirtQueue,
    counters: Arc<Counters>,
}

impl RngService {
    fn serve(&mut self) {
        let memory = self.memory.memory();
        let counters = &self.counters;
        self.queue.drain(&memory, |queue, chain| answer(queue, &memory, chain, counters));
    }
}

impl Service for RngService {
    fn start(&mut self, watch: &Watch) -> io::Result<()> {
        watch.add(self.queue.doorbell(), EventSet::IN, 0)?;
        self.serve();
        Ok(())
    }

    fn fail(&mut self, error: &io::Error) {
        self.queue.fail(error);
    }

    fn handle(&mut self, _watch: &Watch, _token: u64, _events: EventSet) {
        self.queue.acknowledge();
        self.serve();
    }
}

fn answer(queue: &mut VirtQueue, memory: &GuestMemoryMmap, mut chain: Chain<'_>, counters: &Counters) {
    let mut bytes = [0; 256];
    let mut left = chain.writer.remaining().min(MAX_ANSWER_BYTES);
    while left > 0 {
        let piece = bytes.get_mut(..left.min(256)).unwrap_or_default();
        let Ok(got) = sys::random(piece) else {
            counters.errors.add(1);
            break;
        };
        left -= chain.writer.write(piece.get(..got).unwrap_or_default());
    }
    counters.bytes_to_guest.add(u64::from(chain.writer.written()));
    queue.complete(memory, chain.head, chain.writer.written());
}
