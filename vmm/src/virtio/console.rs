//! Console device (virtio 1.2, section 5.3): one port, output only for now.

use std::io;
use std::sync::Arc;

use vm_memory::GuestAddressSpace;
use vmm_sys_util::epoll::EventSet;

use super::buffers::Reader;
use super::counters::Counters;
use super::device::{ActivateError, Activation, VirtioDevice};
use super::queue::VirtQueue;
use super::spec::device_type;
use super::worker::{Quiesce, Service, Watch, Workers};
use crate::memory::GuestRam;

/// Receive queue and transmit queue of port 0 (section 5.3.2). Linux sends a line or less at once.
const QUEUE_SIZES: &[u16] = &[32, 32];
const TRANSMIT: u16 = 1;

/// Receives what the guest writes to its console. Called from the device's worker: an implementation must not block for long.
pub trait ConsoleSink: Send {
    /// Takes all bytes.
    fn write(&mut self, bytes: &[u8]);
}

/// A console with one port.
pub struct Console {
    counters: Arc<Counters>,
    /// Where the output goes, while no worker has it.
    sink: Option<Box<dyn ConsoleSink>>,
    workers: Workers<ConsoleService>,
}

impl Console {
    /// Makes a console that writes to `sink`.
    pub fn new(sink: Box<dyn ConsoleSink>) -> Self {
        Self { counters: Arc::default(), sink: Some(sink), workers: Workers::default() }
    }
}

impl VirtioDevice for Console {
    fn device_type(&self) -> u16 {
        device_type::CONSOLE
    }

    fn queue_max_sizes(&self) -> &[u16] {
        QUEUE_SIZES
    }

    fn device_features(&self) -> u64 {
        0
    }

    fn msix_vectors(&self) -> u16 {
        2
    }

    fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        let mut queues = activation.queues(&self.counters);
        let transmit = queues.take(TRANSMIT)?;
        let Some(sink) = self.sink.take() else {
            return Err(ActivateError("The console's output is gone".to_owned()));
        };
        let counters = Arc::clone(&self.counters);
        let service = ConsoleService { memory: activation.memory, transmit, sink, counters };
        Ok(self.workers.start("console", [service])?)
    }

    fn reset(&mut self) {
        self.sink = self.workers.stop().pop().map(|service| service.sink).or(self.sink.take());
    }

    fn workers(&self) -> &dyn Quiesce {
        &self.workers
    }
}

struct ConsoleService {
    memory: GuestRam,
    transmit: VirtQueue,
    sink: Box<dyn ConsoleSink>,
    counters: Arc<Counters>,
}

impl ConsoleService {
    fn serve(&mut self) {
        let memory = self.memory.memory();
        let Self { transmit, sink, counters, .. } = self;
        transmit.drain(&memory, |queue, mut chain| {
            counters.bytes_from_guest.add(copy(&mut chain.reader, sink.as_mut()));
            queue.complete(&memory, chain.head, 0);
        });
    }
}

impl Service for ConsoleService {
    fn start(&mut self, watch: &Watch) -> io::Result<()> {
        watch.add(self.transmit.doorbell(), EventSet::IN, 0)?;
        self.serve();
        Ok(())
    }

    fn handle(&mut self, _watch: &Watch, _token: u64, _events: EventSet) {
        self.transmit.acknowledge();
        self.serve();
    }
}

/// Bytes of one request that reach the sink; a driver that sends more at once loses the rest.
const MAX_REQUEST_BYTES: usize = 1 << 20;

fn copy(reader: &mut Reader<'_>, sink: &mut dyn ConsoleSink) -> u64 {
    let mut total = 0;
    let mut buffer = [0; 4096];
    while total < MAX_REQUEST_BYTES {
        let count = reader.read(&mut buffer);
        let bytes = buffer.get(..count).unwrap_or_default();
        if bytes.is_empty() {
            break;
        }
        sink.write(bytes);
        total += count;
    }
    total as u64
}
