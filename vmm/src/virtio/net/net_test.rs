//! The network device through its rings, with a peer that speaks frames over a socket.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "tests"
)]

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;

use super::spec::{HEADER_BYTES, MAX_FRAME_BYTES, feature};
use super::{Backend, Net, NetConfig, NetControl};
use crate::config::{RateLimiter, TokenBucket};
use crate::virtio::counters::Counters;
use crate::virtio::device::VirtioDevice;
use crate::virtio::spec::feature as ring_feature;
use crate::virtio::spec::pci::common;
use crate::virtio::testing::{Driver, Machine, Part, wait_for};

const RX: usize = 0;
const TX: usize = 1;
const UP: [u8; 2] = [1, 0];

struct Guest {
    machine: Arc<Machine>,
    driver: Driver,
    control: NetControl,
    counters: Arc<Counters>,
    peer: UnixStream,
    _directory: TempDir,
}

fn config(directory: &TempDir) -> NetConfig {
    NetConfig {
        id: "eth0".to_owned(),
        backend: Backend::Socket(directory.path().join("s")),
        mac: Some([2, 0, 0, 0, 0, 9]),
        mtu: Some(9000),
        vhost: false,
        pairs: 1,
        rx_limits: None,
        tx_limits: None,
    }
}

impl Guest {
    fn new() -> Self {
        Self::with(|_| {}, u64::MAX)
    }

    /// A device that is configured by `change`, and a driver without the features that `mask` lacks.
    fn with(change: impl FnOnce(&mut NetConfig), mask: u64) -> Self {
        let directory = TempDir::new().unwrap();
        let listener = UnixListener::bind(directory.path().join("s")).unwrap();
        let mut config = config(&directory);
        change(&mut config);
        let net = Net::new(&config).unwrap();
        let peer = listener.accept().unwrap().0;
        peer.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let (control, counters) = (net.control(), Arc::clone(net.counters()));
        let machine = Machine::new();
        let mut driver = machine.plug(Box::new(net));
        let features = driver.device_features() & !ring_feature::RING_EVENT_IDX & mask;
        driver.start_with(features);
        Self { machine, driver, control, counters, peer, _directory: directory }
    }

    /// Gives a receive buffer and returns its address.
    fn give(&mut self, bytes: u32) -> u64 {
        let address = self.machine.allocate(u64::from(bytes));
        self.machine.write(address, &vec![0xee; bytes as usize]);
        self.driver.queues[RX].add(&[Part { address, len: bytes, writable: true }]);
        address
    }

    /// Sends a frame behind a header.
    fn transmit(&mut self, header: [u8; HEADER_BYTES], frame: &[u8]) {
        let bytes = [&header, frame].concat();
        let address = self.machine.allocate(bytes.len() as u64);
        self.machine.write(address, &bytes);
        // The header in two parts, to be nasty.
        let parts = [(0u64, 5), (5, 10), (15, bytes.len() - 15)].map(|(at, len)| Part {
            address: address + at,
            len: len as u32,
            writable: false,
        });
        self.driver.queues[TX].add(&parts);
        self.driver.queues[TX].kick();
    }

    fn peer_sends(&mut self, frame: &[u8]) {
        self.peer.write_all(&framed(frame)).unwrap();
    }

    fn peer_receives(&mut self) -> Vec<u8> {
        let mut length = [0; 4];
        self.peer.read_exact(&mut length).unwrap();
        let mut frame = vec![0; u32::from_be_bytes(length) as usize];
        self.peer.read_exact(&mut frame).unwrap();
        frame
    }

    fn status(&self) -> [u8; 2] {
        self.machine.device_read(self.driver.device + 6)
    }
}

fn framed(frame: &[u8]) -> Vec<u8> {
    [&(frame.len() as u32).to_be_bytes(), frame].concat()
}

fn frame(bytes: usize, seed: u8) -> Vec<u8> {
    (0..bytes).map(|i| (i as u8).wrapping_mul(7).wrapping_add(seed)).collect()
}

fn num_buffers(count: u8) -> [u8; HEADER_BYTES] {
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, count, 0]
}

#[test]
fn the_configuration_has_address_link_pairs_and_mtu() {
    let guest = Guest::new();
    let bytes: [u8; 12] = guest.machine.device_read(guest.driver.device);
    assert_eq!(bytes, [2, 0, 0, 0, 0, 9, 1, 0, 1, 0, 0x28, 0x23]);
    let features = guest.driver.device_features();
    assert_eq!(
        features & (feature::MAC | feature::MTU | feature::STATUS),
        feature::MAC | feature::MTU | feature::STATUS
    );
    assert_eq!(features & (feature::HOST_OFFLOADS | feature::GUEST_OFFLOADS), 0, "a socket has no offloads");
}

#[test]
fn a_frame_from_the_peer_arrives_behind_a_header() {
    let mut guest = Guest::new();
    let address = guest.give(2048);
    guest.driver.queues[RX].kick();
    guest.peer_sends(&frame(60, 1));
    let (_, used) = guest.driver.queues[RX].wait_used();
    assert_eq!(used as usize, HEADER_BYTES + 60);
    assert_eq!(guest.machine.read(address, used as usize), [&num_buffers(1)[..], &frame(60, 1)].concat());
}

#[test]
fn without_mergeable_buffers_the_header_still_counts_one() {
    let mut guest = Guest::with(|_| {}, !feature::MRG_RXBUF);
    let small = guest.give(64);
    let address = guest.give(2048);
    guest.driver.queues[RX].kick();
    // Too long for the first buffer: dropped, and the buffer is not lost.
    guest.peer_sends(&frame(60, 1));
    guest.peer_sends(&frame(20, 2));
    guest.peer_sends(&frame(1500, 3));
    assert_eq!(guest.driver.queues[RX].wait_used().1, 32);
    assert_eq!(guest.machine.read(small, 32), [&num_buffers(1)[..], &frame(20, 2)].concat());
    assert_eq!(guest.driver.queues[RX].wait_used().1, 1512);
    assert_eq!(guest.machine.read(address, 1512), [&num_buffers(1)[..], &frame(1500, 3)].concat());
    assert_eq!(guest.counters.errors.get(), 1);
}

#[test]
fn a_large_frame_fills_several_buffers_one_after_the_other() {
    let mut guest = Guest::new();
    // The first is tiny but holds more than a header; the header of the next frame lies behind.
    let addresses: Vec<_> =
        [14, 1000, 2000, 3000, 3000, 3000, 3000, 3000].map(|bytes| (guest.give(bytes), bytes)).into();
    guest.driver.queues[RX].kick();
    guest.peer_sends(&frame(9000, 5));
    let mut got = Vec::new();
    for (address, bytes) in &addresses[..5] {
        let (_, used) = guest.driver.queues[RX].wait_used();
        assert!(used == *bytes || got.len() + used as usize == HEADER_BYTES + 9000);
        got.extend(guest.machine.read(*address, used as usize));
    }
    assert_eq!(got[..HEADER_BYTES], num_buffers(5));
    assert_eq!(got[HEADER_BYTES..], frame(9000, 5));
    guest.peer_sends(&frame(100, 6));
    guest.driver.queues[RX].wait_used();
    assert_eq!(guest.machine.read(addresses[5].0, 12), num_buffers(1));
    assert_eq!(guest.counters.bytes_to_guest.get(), 9100);
}

#[test]
fn frames_wait_for_buffers_and_stay_in_order() {
    let mut guest = Guest::new();
    for seed in 0..10 {
        guest.peer_sends(&frame(3000, seed));
    }
    // Not enough for one frame: nothing is given away.
    let first = guest.give(1000);
    guest.driver.queues[RX].kick();
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(guest.driver.queues[RX].poll_used(), None);
    let mut addresses = vec![first];
    for seed in 0..10 {
        while guest.driver.queues[RX].poll_used().is_none() {
            addresses.push(guest.give(1000));
            guest.driver.queues[RX].kick();
            std::thread::sleep(Duration::from_millis(2));
        }
        // Four buffers together.
        for _ in 0..3 {
            assert!(guest.driver.queues[RX].poll_used().is_some(), "the buffers of a frame come together");
        }
        let mut got = Vec::new();
        for address in addresses.drain(..4) {
            got.extend(guest.machine.read(address, 1000));
        }
        assert_eq!(got[..HEADER_BYTES], num_buffers(4));
        assert_eq!(got[HEADER_BYTES..HEADER_BYTES + 3000], frame(3000, seed));
    }
}

#[test]
fn buffers_that_come_while_the_device_waits_ring_with_event_index_too() {
    let directory = TempDir::new().unwrap();
    let listener = UnixListener::bind(directory.path().join("s")).unwrap();
    let net = Net::new(&config(&directory)).unwrap();
    let mut peer = listener.accept().unwrap().0;
    let machine = Machine::new();
    let mut driver = machine.plug(Box::new(net));
    driver.start_with(driver.device_features());
    peer.write_all(&framed(&frame(2500, 1))).unwrap();
    // Rings as a driver does: when the entry that the device asked for is among the new ones.
    let queue = &mut driver.queues[RX];
    for given in 0u16..3 {
        let address = machine.allocate(1000);
        std::thread::sleep(Duration::from_millis(20));
        let event = machine.read(queue.used + 4 + 8 * u64::from(queue.size), 2);
        queue.add(&[Part { address, len: 1000, writable: true }]);
        if u16::from_le_bytes([event[0], event[1]]) == given {
            queue.kick();
        }
    }
    for _ in 0..3 {
        queue.wait_used();
    }
}

#[test]
fn a_frame_that_no_ring_can_hold_is_dropped() {
    let mut guest = Guest::new();
    for _ in 0..guest.driver.queues[RX].size {
        guest.give(100);
    }
    guest.driver.queues[RX].kick();
    guest.peer_sends(&frame(60_000, 1));
    guest.peer_sends(&frame(80, 2));
    assert_eq!(guest.driver.queues[RX].wait_used().1, 92);
    assert_eq!(guest.counters.errors.get(), 1);
}

#[test]
fn useless_buffers_come_back_empty() {
    let mut guest = Guest::new();
    guest.give(HEADER_BYTES as u32);
    guest.give(3);
    let address = guest.give(2048);
    guest.driver.queues[RX].kick();
    guest.peer_sends(&frame(60, 1));
    assert_eq!(guest.driver.queues[RX].wait_used().1, 0);
    assert_eq!(guest.driver.queues[RX].wait_used().1, 0);
    assert_eq!(guest.driver.queues[RX].wait_used().1, 72);
    assert_eq!(guest.machine.read(address + 12, 60), frame(60, 1));
}

#[test]
fn frames_may_come_in_pieces_or_many_at_once() {
    let mut guest = Guest::new();
    let addresses: Vec<_> = (0..20).map(|_| guest.give(2048)).collect();
    guest.driver.queues[RX].kick();
    for byte in framed(&frame(30, 0)) {
        guest.peer.write_all(&[byte]).unwrap();
        std::thread::sleep(Duration::from_micros(300));
    }
    let many: Vec<u8> = (1..20).flat_map(|seed| framed(&frame(100 + usize::from(seed), seed))).collect();
    guest.peer.write_all(&many).unwrap();
    for (seed, address) in (0u8..).zip(addresses) {
        let expected = if seed == 0 { frame(30, 0) } else { frame(100 + usize::from(seed), seed) };
        let (_, used) = guest.driver.queues[RX].wait_used();
        assert_eq!(guest.machine.read(address, used as usize)[HEADER_BYTES..], expected);
    }
}

#[test]
fn frames_from_the_guest_reach_the_peer() {
    let mut guest = Guest::new();
    for bytes in [14, 60, 2048, 2049, 9000, MAX_FRAME_BYTES] {
        guest.transmit([0; 12], &frame(bytes, 3));
        assert_eq!(guest.driver.queues[TX].wait_used().1, 0);
        assert_eq!(guest.peer_receives(), frame(bytes, 3));
    }
    assert_eq!(guest.counters.errors.get(), 0);
}

#[test]
fn frames_that_break_a_rule_are_dropped() {
    let mut guest = Guest::new();
    guest.transmit([0; 12], &frame(13, 0));
    guest.transmit([0; 12], &frame(MAX_FRAME_BYTES + 1, 0));
    // Open checksum and segments, which were not negotiated.
    guest.transmit([1, 0, 0, 0, 0, 0, 14, 0, 6, 0, 0, 0], &frame(60, 0));
    guest.transmit([0, 1, 0, 0, 100, 0, 0, 0, 0, 0, 0, 0], &frame(60, 0));
    guest.driver.queues[TX].add(&[Part { address: 0x1000, len: 3, writable: false }]);
    guest.driver.queues[TX].add(&[Part { address: 0x1000, len: 300, writable: true }]);
    guest.transmit([0; 12], &frame(60, 9));
    for _ in 0..7 {
        assert_eq!(guest.driver.queues[TX].wait_used().1, 0);
    }
    assert_eq!(guest.peer_receives(), frame(60, 9));
    assert_eq!(guest.counters.errors.get(), 6);
}

#[test]
fn a_peer_that_does_not_read_stops_the_guest_and_loses_nothing() {
    let mut guest = Guest::new();
    let count = 80;
    for seed in 0..count {
        guest.transmit([0; 12], &frame(9000, seed));
    }
    std::thread::sleep(Duration::from_millis(50));
    let mut done = 0;
    while guest.driver.queues[TX].poll_used().is_some() {
        done += 1;
    }
    assert!(done < count, "the socket takes less than 720 kB");
    for seed in 0..count {
        assert_eq!(guest.peer_receives(), frame(9000, seed), "{seed}");
    }
    for _ in done..count {
        guest.driver.queues[TX].wait_used();
    }
    // Small ones, which are collected.
    for seed in 0..count {
        guest.transmit([0; 12], &frame(100, seed));
    }
    for seed in 0..count {
        assert_eq!(guest.peer_receives(), frame(100, seed), "{seed}");
    }
}

#[test]
fn a_peer_that_leaves_takes_the_link_down() {
    let mut guest = Guest::new();
    assert_eq!(guest.status(), UP);
    guest.driver.put16(common::CONFIG_MSIX_VECTOR, 0);
    guest.machine.fabric.take_messages();
    drop(std::mem::replace(&mut guest.peer, UnixStream::pair().unwrap().0));
    wait_for("link down", || guest.status() == [0, 0]);
    wait_for("an interrupt", || !guest.machine.fabric.take_messages().is_empty());
    guest.transmit([0; 12], &frame(60, 1));
    guest.driver.queues[TX].wait_used();
    assert!(!guest.control.is_up());
    assert!(!guest.control.set_link(true), "it stays down");
    guest.driver.start();
    assert_eq!(guest.status(), [0, 0]);
}

#[test]
fn lengths_that_cannot_be_take_the_link_down() {
    for length in [0u32, 13, MAX_FRAME_BYTES as u32 + 1, u32::MAX] {
        let mut guest = Guest::new();
        guest.give(2048);
        guest.driver.queues[RX].kick();
        guest.peer.write_all(&length.to_be_bytes()).unwrap();
        wait_for("link down", || guest.status() == [0, 0]);
    }
}

#[test]
fn a_reset_in_the_middle_of_a_frame_keeps_the_framing() {
    let mut guest = Guest::new();
    let bytes = framed(&frame(1000, 1));
    guest.peer.write_all(&bytes[..500]).unwrap();
    std::thread::sleep(Duration::from_millis(20));
    guest.driver.start();
    let address = guest.give(2048);
    guest.driver.queues[RX].kick();
    guest.peer.write_all(&bytes[500..]).unwrap();
    guest.driver.queues[RX].wait_used();
    assert_eq!(guest.machine.read(address + 12, 1000), frame(1000, 1));
}

#[test]
fn nothing_moves_while_the_link_is_down() {
    let mut guest = Guest::new();
    guest.give(2048);
    guest.driver.queues[RX].kick();
    assert!(guest.control.set_link(false));
    guest.machine.root.config_changed(guest.driver.slot);
    assert_eq!(guest.status(), [0, 0]);
    guest.peer_sends(&frame(60, 1));
    // When the second is done, the worker has looked at what the peer sent.
    for _ in 0..2 {
        guest.transmit([0; 12], &frame(60, 2));
        guest.driver.queues[TX].wait_used();
    }
    assert_eq!(guest.driver.queues[RX].poll_used(), None);
    assert!(guest.control.set_link(true));
    guest.transmit([0; 12], &frame(60, 3));
    assert_eq!(guest.peer_receives(), frame(60, 3));
    guest.peer_sends(&frame(61, 4));
    assert_eq!(guest.driver.queues[RX].wait_used().1, 73);
}

fn ops(size: u64, refill_time: u64) -> RateLimiter {
    RateLimiter { bandwidth: None, ops: Some(TokenBucket { size, one_time_burst: None, refill_time }) }
}

#[test]
fn limits_hold_both_ways_until_they_are_lifted() {
    let hour = 3_600_000;
    let mut guest = Guest::with(
        |config| {
            config.rx_limits = Some(ops(2, hour));
            config.tx_limits = Some(ops(3, hour));
        },
        u64::MAX,
    );
    for seed in 0..5 {
        guest.give(2048);
        guest.peer_sends(&frame(60, seed));
        guest.transmit([0; 12], &frame(60, seed));
    }
    guest.driver.queues[RX].kick();
    wait_for("both limits", || guest.counters.throttled.get() >= 2);
    let mut count = |queue: usize| std::iter::from_fn(|| guest.driver.queues[queue].poll_used()).count();
    assert_eq!((count(RX), count(TX)), (2, 3));
    guest.control.set_limits(Some(&ops(0, 0)), Some(&ops(0, 0)));
    for _ in 0..3 {
        guest.driver.queues[RX].wait_used();
    }
    for seed in 0..5 {
        assert_eq!(guest.peer_receives(), frame(60, seed));
    }
}

#[test]
fn a_batch_of_frames_is_one_interrupt() {
    let mut guest = Guest::new();
    let many: Vec<u8> = (0..50).flat_map(|seed| framed(&frame(100, seed))).collect();
    guest.peer.write_all(&many).unwrap();
    std::thread::sleep(Duration::from_millis(20));
    for _ in 0..60 {
        guest.give(2048);
    }
    let before = guest.counters.interrupts.get();
    guest.driver.queues[RX].kick();
    for _ in 0..50 {
        guest.driver.queues[RX].wait_used();
    }
    wait_for("an interrupt", || guest.counters.interrupts.get() > before);
    assert!(guest.counters.interrupts.get() - before <= 2);
}

#[test]
fn what_is_not_there_is_refused() {
    let directory = TempDir::new().unwrap();
    let error = Net::new(&config(&directory)).err().unwrap().to_string();
    assert!(error.starts_with("Interface eth0 can't connect to the socket at "), "{error}");
    for number in [0, 2, 999] {
        let error = Net::new(&NetConfig { backend: Backend::TapDescriptor(number), ..config(&directory) });
        let error = std::error::Error::source(&error.err().unwrap()).unwrap().to_string();
        assert!(error.contains("is not an inherited tap"), "{error}");
    }
}
