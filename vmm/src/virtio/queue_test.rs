//! Broken rings, through a device that answers each request.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::cast_possible_truncation, reason = "tests")]

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use vm_memory::GuestAddressSpace;

use super::counters::Counters;
use super::queue::{Chain, VirtQueue};
use super::rng::Rng;
use super::spec::{feature, status};
use super::testing::{Driver, DriverQueue, Machine, Part, wait_for};

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
const MIB: u64 = 1 << 20;

fn started() -> Driver {
    let machine = Machine::new();
    let mut driver = machine.plug(Box::new(Rng::new()));
    driver.start();
    driver
}

/// The device breaks off, says so once, ignores the ring from then on, and works again after a reset.
fn breaks(what: &str, wrong: impl FnOnce(&mut DriverQueue)) {
    let mut driver = started();
    assert_eq!(driver.queues[0].request(&[], 16).len(), 16);
    driver.machine.fabric.take_messages();
    wrong(&mut driver.queues[0]);
    driver.queues[0].kick();
    wait_for(what, || driver.status() & status::DEVICE_NEEDS_RESET != 0);
    driver.queues[0].kick();
    thread::sleep(Duration::from_millis(5));
    assert_eq!(driver.queues[0].poll_used(), None, "{what}: a broken queue completes something");
    driver.start();
    assert_eq!(driver.queues[0].request(&[], 16).len(), 16, "{what}: after reset");
}

#[test]
fn a_loop_breaks_the_queue() {
    breaks("loop of two", |queue| {
        queue.descriptor(0, 0x1000, 8, NEXT | WRITE, 1);
        queue.descriptor(1, 0x1000, 8, NEXT | WRITE, 0);
        queue.offer(0);
    });
    breaks("loop of one", |queue| {
        queue.descriptor(5, 0x1000, 8, NEXT | WRITE, 5);
        queue.offer(5);
    });
}

#[test]
fn indexes_outside_of_the_table_break_the_queue() {
    breaks("next", |queue| {
        queue.descriptor(0, 0x1000, 8, NEXT | WRITE, queue.size);
        queue.offer(0);
    });
    breaks("head", |queue| queue.offer(queue.size));
    breaks("largest head", |queue| queue.offer(u16::MAX));
}

#[test]
fn an_available_index_too_far_ahead_breaks_the_queue() {
    breaks("one too many", |queue| queue.set_available_index(2 + queue.size));
    breaks("backwards", |queue| queue.set_available_index(0));
    breaks("far", |queue| queue.set_available_index(0x8000));
}

#[test]
fn buffers_outside_of_memory_break_the_queue() {
    for (address, len) in
        [(200 * MIB, 16), (40 * MIB, 16), (32 * MIB - 8, 16), (u64::MAX - 8, 64), (0x1000, u32::MAX), (96 * MIB - 1, 2)]
    {
        breaks("buffer", |queue| {
            queue.descriptor(0, address, len, WRITE, 0);
            queue.offer(0);
        });
    }
}

#[test]
fn a_readable_part_behind_a_writable_one_breaks_the_queue() {
    breaks("order", |queue| {
        queue.add(&[
            Part { address: 0x1000, len: 8, writable: true },
            Part { address: 0x1000, len: 8, writable: false },
        ]);
    });
}

fn with_indirect(flags: u16, table: &[(u64, u32, u16, u16)], bytes: Option<u32>) -> impl FnOnce(&mut DriverQueue) {
    let table: Vec<u8> = table
        .iter()
        .flat_map(|&(address, len, flags, next)| {
            let mut bytes = address.to_le_bytes().to_vec();
            bytes.extend(len.to_le_bytes());
            bytes.extend(flags.to_le_bytes());
            bytes.extend(next.to_le_bytes());
            bytes
        })
        .collect();
    move |queue| {
        let at = 20 * MIB;
        queue.machine().write(at, &table);
        queue.descriptor(0, at, bytes.unwrap_or(table.len() as u32), flags, 1);
        queue.offer(0);
    }
}

#[test]
fn bad_indirect_tables_break_the_queue() {
    let good = (0x1000, 8, WRITE, 0);
    breaks("nested", with_indirect(INDIRECT, &[(20 * MIB, 16, INDIRECT, 0)], None));
    breaks("odd size", with_indirect(INDIRECT, &[good], Some(17)));
    breaks("empty", with_indirect(INDIRECT, &[good], Some(0)));
    breaks("huge", with_indirect(INDIRECT, &[good], Some(16 << 20)));
    breaks("index", with_indirect(INDIRECT, &[(0x1000, 8, NEXT | WRITE, 1)], None));
    breaks("loop", with_indirect(INDIRECT, &[(0x1000, 8, NEXT | WRITE, 0)], None));
    breaks("table outside", |queue| {
        queue.descriptor(0, 200 * MIB, 16, INDIRECT, 0);
        queue.offer(0);
    });
    let long: Vec<_> = (1..=200).map(|i| (0x1000, 1, if i < 200 { NEXT | WRITE } else { WRITE }, i)).collect();
    breaks("longer than the queue", with_indirect(INDIRECT, &long, None));
}

#[test]
fn good_indirect_tables_work() {
    let mut driver = started();
    let table = [(25 * MIB, 8, NEXT | WRITE, 1), (26 * MIB, 24, WRITE, 0)];
    with_indirect(INDIRECT, &table, None)(&mut driver.queues[0]);
    driver.queues[0].kick();
    assert_eq!(driver.queues[0].wait_used(), (0, 32));
}

#[test]
fn a_buffer_across_two_descriptors_and_an_empty_one_work() {
    let mut driver = started();
    let part = |address, len| Part { address, len, writable: true };
    driver.queues[0].add(&[part(25 * MIB, 7), part(26 * MIB, 0), part(64 * MIB, 9)]);
    driver.queues[0].kick();
    assert_eq!(driver.queues[0].wait_used(), (0, 16));
}

#[test]
fn indexes_wrap() {
    let mut driver = started();
    let queue = &mut driver.queues[0];
    for _ in 0..70_000 / 64 {
        for _ in 0..64 {
            queue.add(&[Part { address: 25 * MIB, len: 1, writable: true }]);
        }
        queue.kick();
        for _ in 0..64 {
            assert_eq!(queue.wait_used().1, 1);
        }
    }
}

#[test]
fn a_driver_that_wants_no_interrupts_gets_none() {
    let mut driver = started();
    let machine = driver.machine.clone();
    machine.write(driver.queues[0].available, &1u16.to_le_bytes());
    driver.queues[0].request(&[], 1);
    thread::sleep(Duration::from_millis(5));
    assert_eq!(machine.fabric.take_messages(), []);
    machine.write(driver.queues[0].available, &0u16.to_le_bytes());
    driver.queues[0].request(&[], 1);
    wait_for("interrupt", || machine.fabric.take_messages() == [(1, 1)]);
}

#[test]
fn with_event_index_one_interrupt_is_enough_for_many_completions() {
    let machine = Machine::new();
    let mut driver = machine.plug(Box::new(Rng::new()));
    driver.start_with(driver.device_features());
    assert_ne!(driver.device_features() & feature::RING_EVENT_IDX, 0);
    let queue = &mut driver.queues[0];
    // used_event: tell me when the tenth is done.
    machine.write(queue.available + 4 + 2 * u64::from(queue.size), &9u16.to_le_bytes());
    for _ in 0..9 {
        queue.request(&[], 1);
    }
    thread::sleep(Duration::from_millis(5));
    assert_eq!(machine.fabric.take_messages(), []);
    queue.request(&[], 1);
    wait_for("interrupt", || machine.fabric.take_messages() == [(1, 1)]);
}

/// A queue without a device: both sides of it.
fn bare_queue() -> (Arc<Machine>, DriverQueue, VirtQueue, Arc<Counters>) {
    bare_queue_with(|_| {})
}

fn bare_queue_with(change: impl FnOnce(&mut DriverQueue)) -> (Arc<Machine>, DriverQueue, VirtQueue, Arc<Counters>) {
    let driver = started();
    let mut ring = driver.make_queue(0, 64);
    change(&mut ring);
    let counters = Arc::new(Counters::default());
    let queue = ring.device_side(&counters);
    (driver.machine.clone(), ring, queue, counters)
}

#[test]
fn an_available_ring_that_is_partly_gone_breaks_the_queue() {
    // Flags and index are the last words before the hole; the elements are in it, as if they had been unplugged.
    let (machine, mut ring, mut queue, _) = bare_queue_with(|ring| ring.available = 32 * MIB - 4);
    ring.set_available_index(1);
    let worker = thread::spawn(move || {
        queue.drain(&machine.memory.memory(), |_, _| {});
        queue.is_broken()
    });
    wait_for("the device to see it", || worker.is_finished());
    assert!(worker.join().unwrap());
}

#[test]
fn an_index_that_goes_to_and_fro_keeps_nobody_busy() {
    let (machine, mut ring, mut queue, _) = bare_queue();
    ring.set_available_index(1);
    // At each look the ring is empty, and right after it is not.
    let worker = thread::spawn(move || {
        queue.drain_as(&machine.memory.memory(), |_, _| None::<Chain<'_>>, |_, _| {});
        queue.doorbell().read().is_ok()
    });
    wait_for("the end of the turn", || worker.is_finished());
    assert!(worker.join().unwrap(), "nobody goes on later");
}

#[test]
fn a_driver_hears_of_completions_while_its_ring_is_busy() {
    let (machine, mut ring, mut queue, counters) = bare_queue();
    for _ in 0..5 {
        ring.add(&[Part { address: 25 * MIB, len: 1, writable: true }]);
    }
    let memory = machine.memory.memory();
    let mut told = Vec::new();
    queue.drain(&memory, |queue, chain| {
        thread::sleep(Duration::from_millis(2));
        told.push(counters.interrupts.get());
        queue.complete(&memory, chain.head, 0);
    });
    assert_eq!(told, [0, 1, 2, 3, 4]);
    assert_eq!(counters.interrupts.get(), 5);
}
