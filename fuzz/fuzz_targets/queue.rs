//! Rings and descriptor chains: guest memory is what the input says.
#![no_main]

use std::sync::Arc;

use hull_fuzz::Input;
use hull_vmm::virtio::counters::Counters;
use hull_vmm::virtio::device::{ActiveQueue, Interrupt};
use hull_vmm::virtio::queue::VirtQueue;
use libfuzzer_sys::fuzz_target;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const DESCRIPTORS: u64 = 0x1000;
const AVAILABLE: u64 = 0x2000;
const USED: u64 = 0x3000;
const TABLE: u64 = 0x4000;
const SIZE: u16 = 8;

struct Silent;

impl Interrupt for Silent {
    fn signal_used(&self, _queue_index: u16) {}
    fn signal_config(&self) {}
    fn show_config(&self, _offset: u64, _bytes: &[u8]) {}
    fn signal_needs_reset(&self, _reason: &str) {}
}

fn queue(overlap: u8, event_index: bool) -> Queue {
    let mut queue = Queue::new(SIZE).expect("a power of two");
    let used = match overlap {
        0 => DESCRIPTORS,
        1 => AVAILABLE,
        2 => TABLE,
        _ => USED,
    };
    queue.set_desc_table_address(Some(DESCRIPTORS as u32), Some(0));
    queue.set_avail_ring_address(Some(AVAILABLE as u32), Some(0));
    queue.set_used_ring_address(Some(used as u32), Some(0));
    queue.set_event_idx(event_index);
    queue.set_ready(true);
    queue
}

fuzz_target!(init: hull_fuzz::prepare(), |data: &[u8]| {
    let mut input = Input(data);
    let ranges = [(GuestAddress(0), 0x10000), (GuestAddress(0x20000), 0x8000)];
    let memory: GuestMemoryMmap = GuestMemoryMmap::from_ranges(&ranges).expect("a little memory");
    let (control, index) = (input.byte(), input.byte());
    let mut put = |address: u64, bytes: usize| {
        memory.write_slice(input.take(bytes), GuestAddress(address)).expect("inside of memory");
    };
    put(AVAILABLE + 4, 2 * usize::from(SIZE));
    put(DESCRIPTORS, 16 * usize::from(SIZE));
    put(TABLE, 512);
    let index = if control & 0x40 == 0 { u16::from(index) % (SIZE + 1) } else { u16::from(index) << 8 };
    memory.write_obj(index.to_le(), GuestAddress(AVAILABLE + 2)).expect("inside of memory");

    let doorbell = EventFd::new(EFD_NONBLOCK).expect("an eventfd");
    let active = ActiveQueue { index: 0, queue: queue(control & 7, control & 8 != 0), doorbell };
    let mut queue = VirtQueue::new(active, Arc::new(Silent), Arc::new(Counters::default()));
    if control & 0x10 != 0 {
        while let Some(chain) = queue.pop_pieces(&memory) {
            let bytes: u64 = chain.readable.iter().chain(&chain.writable).map(|piece| u64::from(piece.len_bytes)).sum();
            assert!(bytes <= u64::from(SIZE) * 0x10000 * 64, "a chain has at most {SIZE} parts, each in memory");
            queue.complete(&memory, chain.head, 0);
            if queue.is_broken() || control & 0x20 != 0 {
                break;
            }
        }
        return;
    }
    let mut rounds = 0u32;
    queue.drain(&memory, |queue, mut chain| {
        rounds += 1;
        let mut buffer = [0; 300];
        let read = chain.reader.read(&mut buffer);
        let mut tail = chain.writer.split_tail(1);
        let written = chain.writer.write(&buffer[..read.max(17)]);
        if let Some(tail) = &mut tail {
            tail.write(&[7]);
            chain.writer.count_tail(tail);
        }
        assert!(chain.writer.written() as usize >= written);
        queue.complete(&memory, chain.head, chain.writer.written());
    });
    assert!(rounds <= 4 * u32::from(SIZE), "a driver keeps the worker busy");
});
