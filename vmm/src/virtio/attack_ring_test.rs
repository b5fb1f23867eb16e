//! Attacks through rings and descriptors, each on every device. After each the device works again.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::cast_possible_truncation, reason = "tests")]

use std::sync::Arc;

use super::spec::pci::common;
use super::spec::status;
use super::specimen::{Kind, Specimen};
use super::testing::{DriverQueue, Machine};

/// Memory that no attack names: no device may touch it.
const CANARIES: [(u64, usize); 2] = [(28 << 20, 1 << 20), (64 << 20, 1 << 20)];
const PAINT: u8 = 0xa5;

/// Starts each device, attacks it, and sees that nothing is harmed and that it works after a restart.
pub fn each_device(attack: impl Fn(&mut Specimen)) {
    for kind in Kind::ALL {
        eprintln!("device: {kind:?}");
        let mut specimen = Specimen::new(kind);
        for (start, bytes) in CANARIES {
            specimen.machine.write(start, &vec![PAINT; bytes]);
        }
        specimen.driver.start();
        attack(&mut specimen);
        specimen.restart();
        specimen.works();
        for (start, bytes) in CANARIES {
            assert_painted(&specimen.machine, start, bytes);
        }
    }
}

fn assert_painted(machine: &Machine, start: u64, bytes: usize) {
    let wrong = machine.read(start, bytes).iter().position(|&byte| byte != PAINT);
    assert_eq!(wrong, None, "memory at {start:#x} was touched");
}

/// Attacks each queue of a device, which is started anew for each.
fn each_queue(specimen: &mut Specimen, attack: impl Fn(&mut DriverQueue)) {
    for index in 0..specimen.driver.queues.len() {
        specimen.driver.start();
        attack(&mut specimen.driver.queues[index]);
        specimen.driver.queues[index].kick();
        if index == specimen.kind.request_queue() {
            specimen.settle();
        }
    }
}

/// Attacks the queue whose requests the device always looks at, and expects that it is broken by that.
fn breaks(specimen: &mut Specimen, attack: impl FnOnce(&mut DriverQueue)) {
    specimen.driver.start();
    let queue = &mut specimen.driver.queues[specimen.kind.request_queue()];
    attack(queue);
    queue.kick();
    specimen.driver.wait_needs_reset();
    assert_eq!(specimen.driver.queues[specimen.kind.request_queue()].poll_used(), None, "a broken chain was answered");
}

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

fn raw_descriptor(machine: &Arc<Machine>, table: u64, index: u64, address: u64, len: u32, flags: u16, next: u16) {
    let mut bytes = address.to_le_bytes().to_vec();
    bytes.extend(len.to_le_bytes());
    bytes.extend([flags, next].map(u16::to_le_bytes).concat());
    machine.write(table + 16 * index, &bytes);
}

#[test]
fn descriptor_loops_break_the_queue() {
    each_device(|specimen| {
        let buffer = specimen.machine.allocate(4096);
        for flags in [NEXT, NEXT | WRITE] {
            for links in [&[0u16][..], &[1, 0], &[1, 2, 1], &[u16::MAX], &[1, 0x7fff]] {
                let attack = |queue: &mut DriverQueue| {
                    for (index, next) in (0u16..).zip(links) {
                        queue.descriptor(index, buffer, 64, flags, *next);
                    }
                    queue.offer(0);
                };
                each_queue(specimen, attack);
                breaks(specimen, attack);
            }
            // The whole table in one circle, and a chain that leaves it.
            for wrap in [true, false] {
                breaks(specimen, |queue| {
                    for index in 0..queue.size {
                        let next = if wrap { (index + 1) % queue.size } else { index + 1 };
                        queue.descriptor(index, buffer, 1, flags, next);
                    }
                    queue.offer(0);
                });
            }
        }
    });
}

#[test]
fn bad_indirect_tables_break_the_queue() {
    each_device(|specimen| {
        let machine = Arc::clone(&specimen.machine);
        let (table, buffer) = (machine.allocate(4096), machine.allocate(4096));
        // A loop in the table, one that leaves it, and a table in a table.
        for (flags, next, address) in [(NEXT, 0, buffer), (NEXT, 2, buffer), (INDIRECT, 0, table)] {
            raw_descriptor(&machine, table, 0, address, 16, flags, next);
            raw_descriptor(&machine, table, 1, buffer, 16, 0, 0);
            let attack = |queue: &mut DriverQueue| {
                queue.descriptor(0, table, 32, INDIRECT, 0);
                queue.offer(0);
            };
            each_queue(specimen, attack);
            breaks(specimen, attack);
        }
        raw_descriptor(&machine, table, 0, buffer, 16, 0, 0);
        for (address, len) in [(table, 0), (table, 15), (table, 17), (48 << 20, 16), (table, u32::MAX), (u64::MAX, 16)]
        {
            breaks(specimen, |queue| {
                queue.descriptor(0, address, len, INDIRECT, 0);
                queue.offer(0);
            });
        }
    });
}

#[test]
fn wrong_lengths_are_answered_or_break_the_queue() {
    each_device(|specimen| {
        let machine = Arc::clone(&specimen.machine);
        let before = machine.allocate(4096);
        let buffers = [machine.allocate(20480), machine.allocate(4096), machine.allocate(20480)];
        let after = machine.allocate(4096);
        for guard in [before, buffers[1], after] {
            machine.write(guard, &[PAINT; 4096]);
        }
        for len in [0, 1, 3, 15, 16, 17, 39, 40, 43, 44, 45, 4095, 20480] {
            let (from, to) = (buffers[0] + 20480 - u64::from(len), buffers[2] + 20480 - u64::from(len));
            for (readable, writable) in [(true, false), (false, true), (true, true)] {
                each_queue(specimen, |queue| {
                    queue.descriptor(0, from, len, if writable { NEXT } else { 0 }, 1);
                    queue.descriptor(1, to, len, WRITE, 0);
                    queue.offer(u16::from(!readable));
                });
            }
        }
        for guard in [before, buffers[1], after] {
            assert_painted(&machine, guard, 4096);
        }
        for (len, flags) in [(u32::MAX, 0), (u32::MAX, WRITE), (1 << 31, WRITE), ((32 << 20) + 1, WRITE)] {
            breaks(specimen, |queue| {
                queue.descriptor(0, 0, len, flags, 0);
                queue.offer(0);
            });
        }
    });
}

#[test]
fn buffers_outside_of_memory_break_the_queue() {
    let (hole, end) = (32u64 << 20, 96u64 << 20);
    each_device(|specimen| {
        let window = specimen.driver.common;
        for address in [hole, hole - 8, 48 << 20, (64 << 20) - 8, end, end - 8, window, 1 << 40, u64::MAX - 8, u64::MAX]
        {
            for flags in [0, WRITE] {
                breaks(specimen, |queue| {
                    queue.descriptor(0, address, 64, flags, 0);
                    queue.offer(0);
                });
            }
        }
    });
}

#[test]
fn readable_parts_behind_writable_ones_break_the_queue() {
    each_device(|specimen| {
        let buffer = specimen.machine.allocate(4096);
        breaks(specimen, |queue| {
            queue.descriptor(0, buffer, 64, WRITE | NEXT, 1);
            queue.descriptor(1, buffer, 64, 0, 0);
            queue.offer(0);
        });
    });
}

#[test]
fn ring_indexes_and_heads_out_of_range_break_the_queue() {
    each_device(|specimen| {
        let queue = &specimen.driver.queues[specimen.kind.request_queue()];
        let size = queue.size;
        for index in [size + 1, 0x7fff, 0x8000, u16::MAX] {
            let attack = |queue: &mut DriverQueue| queue.set_available_index(index);
            each_queue(specimen, attack);
            breaks(specimen, attack);
        }
        for head in [size, size + 1, 0x7fff, u16::MAX] {
            let attack = |queue: &mut DriverQueue| queue.offer(head);
            each_queue(specimen, attack);
            breaks(specimen, attack);
        }
        // Forwards and back again, while the device looks.
        each_queue(specimen, |queue| {
            for index in [1, 0, u16::MAX, 2, 0x8000, size, 0] {
                queue.set_available_index(index);
                queue.kick();
            }
            queue.offer(u16::MAX);
        });
    });
}

#[test]
fn rings_over_each_other_and_over_buffers_do_no_harm() {
    each_device(|specimen| {
        for overlap in 0..6 {
            let driver = &mut specimen.driver;
            let queues = driver.queues.len() as u16;
            driver.queues.clear();
            driver.negotiate(None);
            let buffer = driver.machine.allocate(65536);
            for index in 0..queues {
                driver.put16(common::QUEUE_SELECT, index);
                let size = driver.get16(common::QUEUE_SIZE);
                let mut queue = driver.make_queue(index, size);
                match overlap {
                    0 => queue.used = queue.descriptors,
                    1 => queue.used = queue.available,
                    2 => queue.available = queue.descriptors,
                    3 => (queue.available, queue.used) = (queue.descriptors, queue.descriptors),
                    // The device fills its own ring, and its descriptors.
                    4 => queue.used = buffer,
                    _ => (queue.descriptors, queue.available, queue.used) = (buffer, buffer + 8192, buffer + 16384),
                }
                driver.enable_queue(queue);
            }
            driver.driver_ok();
            for (round, index) in (0u16..20).zip((0..usize::from(queues)).cycle()) {
                let queue = &mut driver.queues[index];
                queue.descriptor(0, buffer, 64, NEXT, 1);
                queue.descriptor(1, buffer, 32768, WRITE, 0);
                queue.offer(round % 2);
                queue.kick();
            }
        }
    });
}

#[test]
fn queue_sizes_that_are_no_sizes_are_refused() {
    each_device(|specimen| {
        let driver = &mut specimen.driver;
        for index in 0..driver.queues.len() as u16 {
            let largest = driver.queues[usize::from(index)].size;
            for size in [0, 3, largest - 1, largest * 2, 0x7fff, 0x8000, u16::MAX] {
                driver.negotiate(None);
                let mut queue = driver.make_queue(index, largest);
                queue.size = size;
                driver.enable_queue(queue);
                driver.queues.pop();
                assert_eq!(driver.get16(common::QUEUE_ENABLE), 0, "{size}");
                assert_ne!(driver.status() & status::DEVICE_NEEDS_RESET, 0, "{size}");
                driver.driver_ok();
            }
        }
    });
}

#[test]
fn small_rings_are_as_good_as_large_ones() {
    each_device(|specimen| {
        let driver = &mut specimen.driver;
        let queues = driver.queues.len() as u16;
        driver.queues.clear();
        driver.negotiate(Some(driver.device_features() & !super::spec::feature::RING_EVENT_IDX));
        for index in 0..queues {
            let queue = driver.make_queue(index, 4);
            driver.enable_queue(queue);
        }
        driver.driver_ok();
        specimen.works();
    });
}
