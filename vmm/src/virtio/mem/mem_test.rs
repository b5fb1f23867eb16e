#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::cast_possible_truncation, reason = "tests")]

use vm_memory::{Bytes, GuestMemory};

use super::*;
use crate::config::HugePages;
use crate::virtio::spec::status;
use crate::virtio::testing::{Driver, FakeSlots, Machine, wait_for};

const MIB: u64 = 1 << 20;
const START: u64 = 4 << 30;
const PLUG: u16 = 0;
const UNPLUG: u16 = 1;
const UNPLUG_ALL: u16 = 2;
const STATE: u16 = 3;
const ACK: u16 = 0;
const NACK: u16 = 1;
const BUSY: u16 = 2;
const ERROR: u16 = 3;

struct Fixture {
    driver: Driver,
    control: Arc<Control>,
    slots: Arc<FakeSlots>,
}

/// 32 MiB in slots of 8 MiB and blocks of 2 MiB.
fn start(requested_mib: u64) -> Fixture {
    let config = MemConfig {
        start: GuestAddress(START),
        total_bytes: 32 * MIB,
        block_bytes: 2 * MIB,
        slot_bytes: 8 * MIB,
        usable_unit_bytes: 8 * MIB,
    };
    let machine = Machine::new();
    let slots = Arc::new(FakeSlots::default());
    let reserve = Reserve::new(config.start, config.total_bytes, HugePages::Transparent).unwrap();
    let mem = Mem::new(config, reserve, machine.memory.clone(), slots.clone()).unwrap();
    let control = Arc::clone(mem.control());
    assert!(control.request(requested_mib * MIB));
    let mut driver = machine.plug(Box::new(mem));
    driver.start();
    Fixture { driver, control, slots }
}

impl Fixture {
    fn ask(&mut self, kind: u16, offset: u64, blocks: u16) -> (u16, u16) {
        self.ask_at(kind, START + offset, blocks)
    }

    fn ask_at(&mut self, kind: u16, address: u64, blocks: u16) -> (u16, u16) {
        let mut request = kind.to_le_bytes().to_vec();
        request.extend([0; 6]);
        request.extend(address.to_le_bytes());
        request.extend(blocks.to_le_bytes());
        request.extend([0; 6]);
        let answer = self.driver.queues[0].request(&request, 10);
        assert_eq!(answer.len(), 10);
        (u16::from_le_bytes([answer[0], answer[1]]), u16::from_le_bytes([answer[8], answer[9]]))
    }

    fn config(&self, offset: u64) -> u64 {
        u64::from_le_bytes(self.driver.machine.device_read(self.driver.device + offset))
    }

    fn open(&self) -> Vec<(u64, u64)> {
        let shown = self.slots.shown.lock().unwrap();
        shown.values().map(|range| ((range.guest.0 - START) / MIB, range.size / MIB)).collect()
    }

    /// What devices see.
    fn regions(&self) -> Vec<(u64, u64)> {
        use vm_memory::GuestMemoryRegion;
        let memory = self.driver.machine.memory.memory();
        let plugged = memory.iter().filter(|region| region.start_addr().0 >= START);
        plugged.map(|region| ((region.start_addr().0 - START) / MIB, region.len() / MIB)).collect()
    }
}

#[test]
fn the_configuration_tells_the_sizes() {
    let mem = start(4);
    let fields: Vec<_> = [0, 8, 16, 24, 32, 40, 48].into_iter().map(|offset| mem.config(offset)).collect();
    assert_eq!(fields, [2 * MIB, 0, START, 32 * MIB, 8 * MIB, 0, 4 * MIB]);
    assert!(!mem.control.request(MIB) && !mem.control.request(34 * MIB) && mem.control.request(18 * MIB));
    wait_for("the driver to be told", || mem.config(48) == 18 * MIB);
    assert_eq!(mem.config(32), 24 * MIB);
    assert!(mem.control.request(0));
    wait_for("the driver to be told", || mem.config(48) == 0);
    assert_eq!(mem.config(32), 24 * MIB, "shrinks under the driver");
}

#[test]
fn slots_open_with_their_first_block_and_close_with_their_last() {
    let mut mem = start(32);
    assert_eq!((mem.open(), mem.regions()), (vec![], vec![]));
    assert_eq!(mem.ask(PLUG, 2 * MIB, 1).0, ACK);
    assert_eq!((mem.open(), mem.regions()), (vec![(0, 8)], vec![(0, 8)]));
    assert_eq!(mem.ask(PLUG, 16 * MIB, 4).0, ACK);
    assert_eq!((mem.open(), mem.regions()), (vec![(0, 8), (16, 8)], vec![(0, 8), (16, 8)]));
    assert_eq!(mem.ask(PLUG, 6 * MIB, 2).0, ACK);
    assert_eq!((mem.open(), mem.regions()), (vec![(0, 8), (8, 8), (16, 8)], vec![(0, 24)]), "one run is one region");
    assert_eq!((mem.config(40), mem.control.status().plugged_size_mib), (14 * MIB, 14));
    assert_eq!(mem.ask(UNPLUG, 8 * MIB, 1).0, ACK);
    assert_eq!((mem.open(), mem.regions()), (vec![(0, 8), (16, 8)], vec![(0, 8), (16, 8)]));
    assert_eq!(mem.ask(UNPLUG_ALL, 0, 0).0, ACK);
    assert_eq!((mem.open(), mem.regions(), mem.config(40)), (vec![], vec![], 0));
}

#[test]
fn unplugged_memory_is_given_back() {
    let mut mem = start(32);
    assert_eq!(mem.ask(PLUG, 0, 8).0, ACK);
    let memory = mem.driver.machine.memory.memory();
    for block in 0..8 {
        memory.write_obj(7u8, GuestAddress(START + block * 2 * MIB)).unwrap();
    }
    assert_eq!(mem.ask(UNPLUG, 2 * MIB, 2).0, ACK);
    let bytes: Vec<u8> = (0..8).map(|block| memory.read_obj(GuestAddress(START + block * 2 * MIB)).unwrap()).collect();
    assert_eq!(bytes, [7, 0, 0, 7, 7, 7, 7, 7]);
    assert_eq!(mem.ask(UNPLUG_ALL, 0, 0).0, ACK);
    assert!(memory.read_obj::<u8>(GuestAddress(START)).is_ok_and(|byte| byte == 0), "an old view sees zeros");
    assert!(mem.driver.machine.memory.memory().read_obj::<u8>(GuestAddress(START)).is_err());
}

#[test]
fn requests_are_checked() {
    let mut mem = start(8);
    assert_eq!(mem.ask(PLUG, 0, 2).0, ACK);
    for (kind, address, blocks) in [
        (PLUG, START + MIB, 1),
        (PLUG, START + 4 * MIB, 0),
        (PLUG, START - 2 * MIB, 1),
        (PLUG, START + 8 * MIB, 1),
        (PLUG, START + 6 * MIB, 2),
        (PLUG, START, u16::MAX),
        (PLUG, u64::MAX - 2 * MIB + 1, 1),
        (PLUG, START + 2 * MIB, 1),
        (PLUG, START + 2 * MIB, 2),
        (UNPLUG, START + 4 * MIB, 1),
        (UNPLUG, START + 2 * MIB, 2),
        (UNPLUG, START + 8 * MIB, 1),
        (STATE, START + 8 * MIB, 1),
        (STATE, START, 0),
        (4, START, 1),
        (u16::MAX, START, 1),
    ] {
        assert_eq!(mem.ask_at(kind, address, blocks).0, ERROR, "{kind} {address:#x} {blocks}");
    }
    assert_eq!(mem.ask(STATE, 0, 2), (ACK, 0));
    assert_eq!(mem.ask(STATE, 4 * MIB, 2), (ACK, 1));
    assert_eq!(mem.ask(STATE, 0, 4), (ACK, 2));
    assert!(mem.control.request(4 * MIB));
    assert_eq!(mem.ask(PLUG, 4 * MIB, 1).0, NACK, "more than requested");
    assert_eq!(mem.driver.status() & status::DEVICE_NEEDS_RESET, 0);
}

#[test]
fn a_host_that_has_no_slot_says_busy_and_changes_nothing() {
    let mut mem = start(32);
    *mem.slots.limit.lock().unwrap() = Some(1);
    assert_eq!(mem.ask(PLUG, 0, 8).0, BUSY);
    assert_eq!((mem.open(), mem.regions(), mem.ask(STATE, 0, 16)), (vec![], vec![], (ACK, 1)));
    assert_eq!(mem.ask(PLUG, 0, 4).0, ACK);
    *mem.slots.limit.lock().unwrap() = None;
    assert_eq!(mem.ask(PLUG, 8 * MIB, 4).0, ACK);
    assert_eq!(mem.regions(), [(0, 16)]);
}

#[test]
fn a_guest_that_keeps_its_slots_open_opens_no_more_than_requested() {
    let mut mem = start(32);
    for slot in 0..3 {
        assert_eq!(mem.ask(PLUG, slot * 8 * MIB, 1).0, ACK);
    }
    assert!(mem.control.request(16 * MIB));
    assert_eq!(mem.ask(PLUG, 24 * MIB, 1).0, BUSY);
    assert_eq!(mem.ask(PLUG, 22 * MIB, 2).0, BUSY);
    assert_eq!(mem.open(), [(0, 8), (8, 8), (16, 8)]);
    assert_eq!(mem.ask(PLUG, 2 * MIB, 3).0, ACK, "in open slots");
    assert!(mem.control.request(32 * MIB));
    assert_eq!(mem.ask(PLUG, 24 * MIB, 1).0, ACK);
}

#[test]
fn a_reset_leaves_blocks_as_they_are() {
    let mut mem = start(16);
    assert_eq!(mem.ask(PLUG, 0, 3).0, ACK);
    mem.driver.start();
    assert_eq!((mem.config(40), mem.ask(STATE, 0, 3)), (6 * MIB, (ACK, 0)));
    assert!(mem.control.request(0));
    assert_eq!(mem.ask(UNPLUG_ALL, 0, 0).0, ACK);
    assert_eq!((mem.config(32), mem.config(40)), (0, 0));
}

#[test]
fn a_request_or_an_answer_that_does_not_fit_breaks_the_device() {
    for (readable, writable) in [(23, 10), (24, 9), (0, 10), (24, 0)] {
        let mut mem = start(8);
        let from = mem.driver.machine.allocate(64);
        let part = |len, writable| crate::virtio::testing::Part { address: from, len, writable };
        let parts: Vec<_> = [part(readable, false), part(writable, true)].into_iter().filter(|p| p.len > 0).collect();
        mem.driver.queues[0].add(&parts);
        mem.driver.queues[0].kick();
        mem.driver.wait_needs_reset();
    }
}

#[test]
fn a_driver_that_would_touch_unplugged_memory_is_refused() {
    let mem = start(8);
    let driver = &mem.driver;
    driver.negotiate(Some(driver.device_features() & !F_UNPLUGGED_INACCESSIBLE));
    let mut driver = mem.driver;
    driver.queues.clear();
    driver.add_queue(0);
    driver.driver_ok();
    driver.wait_needs_reset();
}
