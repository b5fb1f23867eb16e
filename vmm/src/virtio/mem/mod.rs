//! Memory device (virtio 1.2, section 5.15): memory that the guest plugs and unplugs in blocks, up to a size that the host asks for.
//!
//! Blocks lie in slots. A slot without a plugged block doesn't exist for the guest's processors and for other devices; the unplugged
//! blocks of the others are zeros that take no memory until a guest that breaks the rules touches them. No slot is opened beyond the
//! requested size, rounded up to the usable unit. A slot closes with its last block only: when the requested size is lowered, a guest
//! that leaves a block in each slot keeps the use of all that it had.

mod blocks;
mod control;
mod region;
mod request;

use std::io;
use std::sync::Arc;

use vm_memory::{GuestAddress, GuestAddressSpace};
use vmm_sys_util::epoll::EventSet;

use self::blocks::Blocks;
use self::control::CONFIG_BYTES;
pub use self::control::{Control, Sizes, Status};
use self::region::Region;
use self::request::{Kind, Memory, REQUEST_BYTES, RESPONSE_BYTES, Request};
use super::counters::Counters;
use super::device::{ActivateError, Activation, Interrupt, VirtioDevice};
use super::queue::{Chain, VirtQueue};
use super::spec::device_type;
use super::worker::{Quiesce, Service, Watch, Workers};
use crate::memory::{GuestRam, Reserve};
use crate::memory_slots::MemorySlots;

const QUEUE_SIZES: &[u16] = &[64];
/// Feature bit (section 5.15.3): the driver doesn't touch unplugged memory.
const F_UNPLUGGED_INACCESSIBLE: u64 = 1 << 1;
const DOORBELL: u64 = 0;
const WAKE: u64 = 1;

/// What a memory device is made of; all sizes divide the next larger one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemConfig {
    /// First address.
    pub start: GuestAddress,
    /// Most that can be plugged.
    pub total_bytes: u64,
    /// Unit of plugging.
    pub block_bytes: u64,
    /// Unit of protection.
    pub slot_bytes: u64,
    /// What is usable is a multiple of this: the unit in which the guest's kernel takes on memory.
    pub usable_unit_bytes: u64,
}

/// A request or its answer doesn't fit into its buffers.
#[derive(Debug, thiserror::Error)]
#[error("A request has less than {REQUEST_BYTES} bytes or less than {RESPONSE_BYTES} for the answer")]
struct TooSmall;

/// The memory device.
pub struct Mem {
    control: Arc<Control>,
    counters: Arc<Counters>,
    /// With the worker while the device is active.
    memory: Option<Memory>,
    workers: Workers<MemService>,
}

impl Mem {
    /// Makes the device over `reserve`, which begins at `config.start` and has `config.total_bytes`.
    pub fn new(config: MemConfig, reserve: Reserve, ram: GuestRam, slots: Arc<dyn MemorySlots>) -> io::Result<Self> {
        let MemConfig { total_bytes, block_bytes, slot_bytes, .. } = config;
        let count = |bytes: u64, unit: u64| {
            let count = bytes.checked_div(unit).filter(|count| count.checked_mul(unit) == Some(bytes));
            count.and_then(|count| usize::try_from(count).ok()).ok_or(io::ErrorKind::InvalidInput)
        };
        let blocks = Blocks::new(count(total_bytes, block_bytes)?, count(slot_bytes, block_bytes)?);
        let control = Control::new(config)?;
        let region = Region::new(reserve, ram, slots, slot_bytes);
        let memory = Some(Memory { blocks, region, control: Arc::clone(&control) });
        Ok(Self { control, counters: Arc::default(), memory, workers: Workers::default() })
    }

    /// For changes while the VM runs.
    pub fn control(&self) -> &Arc<Control> {
        &self.control
    }
}

impl VirtioDevice for Mem {
    fn device_type(&self) -> u16 {
        device_type::MEMORY
    }

    fn queue_max_sizes(&self) -> &[u16] {
        QUEUE_SIZES
    }

    fn device_features(&self) -> u64 {
        F_UNPLUGGED_INACCESSIBLE
    }

    fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    fn config_space(&self) -> Vec<u8> {
        self.control.config_space().to_vec()
    }

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        if activation.driver_features & F_UNPLUGGED_INACCESSIBLE == 0 {
            return Err(ActivateError("The driver doesn't accept VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE".to_owned()));
        }
        let queue = activation.queues(&self.counters).take(0)?;
        // It is lost when a worker that had it panicked.
        let memory = self.memory.take().ok_or_else(|| ActivateError("Its memory is lost".to_owned()))?;
        let service = MemService {
            ram: activation.memory,
            queue,
            memory,
            interrupt: activation.interrupt,
            counters: Arc::clone(&self.counters),
        };
        Ok(self.workers.start("mem", [service])?)
    }

    fn reset(&mut self) {
        if let Some(service) = self.workers.stop().pop() {
            self.memory = Some(service.memory);
        }
    }

    fn workers(&self) -> &dyn Quiesce {
        &self.workers
    }
}

struct MemService {
    ram: GuestRam,
    queue: VirtQueue,
    memory: Memory,
    interrupt: Arc<dyn Interrupt>,
    counters: Arc<Counters>,
}

impl MemService {
    fn serve(&mut self) {
        let ram = self.ram.memory();
        let Self { queue, memory, interrupt, counters, .. } = self;
        queue.drain(&ram, |queue, mut chain| match answer(memory, &mut chain, counters) {
            Some(()) => {
                // Before the driver looks for the answer. It knows of the change, so it isn't told.
                interrupt.show_config(0, &memory.control.config_space());
                queue.complete(&ram, chain.head, chain.writer.written());
            }
            None => queue.fail(&TooSmall),
        });
    }
}

/// Executes a request; `None` if it or its answer doesn't fit.
fn answer(memory: &mut Memory, chain: &mut Chain<'_>, counters: &Counters) -> Option<()> {
    let mut request = [0; REQUEST_BYTES];
    if chain.reader.read(&mut request) != REQUEST_BYTES || chain.writer.remaining() < RESPONSE_BYTES {
        return None;
    }
    let response = memory.execute(&Request::from_bytes(request));
    if matches!(response.kind, Kind::Error | Kind::Busy) {
        counters.errors.add(1);
    }
    chain.writer.write(&response.to_bytes());
    Some(())
}

impl Service for MemService {
    fn start(&mut self, watch: &Watch) -> io::Result<()> {
        watch.add(self.queue.doorbell(), EventSet::IN, DOORBELL)?;
        watch.add(&self.memory.control.wake, EventSet::IN, WAKE)?;
        self.serve();
        Ok(())
    }

    fn fail(&mut self, error: &io::Error) {
        self.queue.fail(error);
    }

    fn handle(&mut self, _watch: &Watch, token: u64, _events: EventSet) {
        match token {
            DOORBELL => {
                self.queue.acknowledge();
                self.serve();
            }
            _ => {
                let _ = self.memory.control.wake.read();
                let config: [u8; CONFIG_BYTES] = self.memory.control.config_space();
                self.interrupt.show_config(0, &config);
                self.interrupt.signal_config();
            }
        }
    }
}

#[cfg(test)]
#[path = "mem_test.rs"]
mod mem_test;
