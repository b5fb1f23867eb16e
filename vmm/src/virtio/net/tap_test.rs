//! The network device over real taps, each test in a network namespace of its own. Without the right to make one, a test says so.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "tests stop at the first surprise"
)]

use std::error::Error;
use std::io::Write as _;
use std::net::UdpSocket;
use std::os::fd::{AsRawFd, IntoRawFd};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};

use super::spec::{HEADER_BYTES, feature};
use super::tap::Tap;
use super::{Backend, Net, NetConfig, NetControl};
use crate::virtio::spec::feature as ring_feature;
use crate::virtio::testing::{Driver, Machine, Part, wait_for};

pub(super) const GUEST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];
const RX: usize = 0;
const TX: usize = 1;

pub(super) fn config(pairs: u16) -> NetConfig {
    NetConfig {
        id: "eth0".to_owned(),
        backend: Backend::Tap("tap7".to_owned()),
        mac: Some(GUEST_MAC),
        mtu: None,
        vhost: false,
        pairs,
        rx_limits: None,
        tx_limits: None,
    }
}

pub(super) fn ip(arguments: &str) -> String {
    let output = Command::new("ip").args(arguments.split(' ')).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    String::from_utf8(text).unwrap()
}

/// This thread and those that it starts get a network of their own.
pub(super) fn own_network() -> bool {
    let possible = unshare(CloneFlags::CLONE_NEWNET).is_ok() && Net::new(&config(1)).is_ok();
    if possible {
        wait_until_gone();
    } else {
        let _ =
            writeln!(std::io::stderr(), "SKIPPED: no right to make a network namespace and a tap, or no tun driver");
    }
    possible
}

/// Waits for the end of a tap whose device was dropped: a child that another test starts at that moment has its
/// descriptor, too, until it executes its program.
pub(super) fn wait_until_gone() {
    wait_for("the tap to disappear", || ip("link show tap7").contains("does not exist"));
}

pub(super) struct Guest {
    pub(super) machine: Arc<Machine>,
    pub(super) driver: Driver,
    pub(super) control: NetControl,
}

impl Guest {
    pub(super) fn new(pairs: u16, without: u64) -> Self {
        Self::of(&config(pairs), without)
    }

    pub(super) fn of(config: &NetConfig, without: u64) -> Self {
        let net = Net::new(config).unwrap();
        let control = net.control();
        let machine = Machine::new();
        let mut driver = machine.plug(Box::new(net));
        driver.start_with(driver.device_features() & !ring_feature::RING_EVENT_IDX & !without);
        for arguments in [
            "addr add 10.9.0.1/24 dev tap7",
            "link set tap7 up",
            "neigh add 10.9.0.2 lladdr 02:00:00:00:00:09 dev tap7",
        ] {
            assert_eq!(ip(arguments), "", "{arguments}");
        }
        Self { machine, driver, control }
    }

    /// Receives frames until one is UDP with this source port; returns header and frame.
    pub(super) fn receive_udp(&mut self, queue: usize, port: u16) -> (Vec<u8>, Vec<u8>) {
        for _ in 0..100 {
            let address = self.machine.allocate(2048);
            self.driver.queues[queue].add(&[Part { address, len: 2048, writable: true }]);
            self.driver.queues[queue].kick();
            let (_, used) = self.driver.queues[queue].wait_used();
            let bytes = self.machine.read(address, used as usize);
            let (header, frame) = bytes.split_at(HEADER_BYTES);
            if frame[12..14] == [8, 0] && frame[23] == 17 && frame[34..36] == port.to_be_bytes() {
                return (header.to_vec(), frame.to_vec());
            }
        }
        (Vec::new(), Vec::new())
    }

    /// Sends "data" from port 5000 to port 4000 of the host, with an open checksum.
    pub(super) fn send_udp(&mut self, queue: usize) {
        let mac = ip("-o link show tap7").split("link/ether ").nth(1).unwrap()[..17].to_owned();
        let mac: Vec<u8> = mac.split(':').map(|part| u8::from_str_radix(part, 16).unwrap()).collect();
        let mut packet = vec![0x45, 0, 0, 32, 0, 0, 0, 0, 64, 17, 0, 0, 10, 9, 0, 2, 10, 9, 0, 1];
        let sum = !ones_sum(&packet, 0);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
        packet.extend([0x13, 0x88, 0x0f, 0xa0, 0, 12]);
        packet.extend(ones_sum(&packet[12..20], 17 + 12).to_be_bytes());
        packet.extend(b"data");
        let bytes = [&[1, 0, 0, 0, 0, 0, 34, 0, 6, 0, 0, 0], &mac[..], &GUEST_MAC, &[8, 0], &packet].concat();
        let address = self.machine.allocate(100);
        self.machine.write(address, &bytes);
        self.driver.queues[queue].add(&[Part { address, len: bytes.len() as u32, writable: false }]);
        self.driver.queues[queue].kick();
    }

    pub(super) fn command(&mut self, queue: usize, class: u8, kind: u8, data: &[u8]) -> u8 {
        let bytes = [&[class, kind], data].concat();
        self.driver.queues[queue].request(&bytes, 1)[0]
    }
}

fn ones_sum(bytes: &[u8], start: u32) -> u16 {
    let mut sum = bytes
        .chunks(2)
        .fold(start, |sum, pair| sum + (u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0))));
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// Sum of a UDP packet with its pseudo header: 0xffff if the checksum is right.
fn udp_sum(frame: &[u8]) -> u16 {
    let length = frame.len() as u32 - 34;
    ones_sum(&frame[34..], u32::from(ones_sum(&frame[26..34], 17 + length)))
}

#[test]
fn an_open_checksum_reaches_only_a_driver_that_takes_it() {
    if !own_network() {
        return;
    }
    for (without, flags) in [(0, 1), (feature::GUEST_CSUM | feature::GUEST_OFFLOADS, 0)] {
        let mut guest = Guest::new(1, without);
        let socket = UdpSocket::bind("10.9.0.1:4000").unwrap();
        socket.send_to(&[7; 333], "10.9.0.2:5000").unwrap();
        let (header, frame) = guest.receive_udp(RX, 4000);
        assert_eq!((header[0], header[1], header[10]), (flags, 0, 1));
        assert_eq!(&frame[..6], GUEST_MAC);
        assert_eq!(
            udp_sum(&frame) == 0xffff,
            flags == 0,
            "the checksum is complete where it is not left to the driver"
        );
        drop(guest);
        wait_until_gone();
    }
}

#[test]
fn an_answer_of_a_dhcp_server_has_its_checksum() {
    if !own_network() {
        return;
    }
    let mut guest = Guest::new(1, 0);
    let socket = UdpSocket::bind("10.9.0.1:67").unwrap();
    for bytes in [300, 301] {
        socket.send_to(&vec![0xf7; bytes], "10.9.0.2:68").unwrap();
        let (header, frame) = guest.receive_udp(RX, 67);
        assert_eq!(header[..10], [0; 10]);
        assert_eq!(udp_sum(&frame), 0xffff);
    }
}

#[test]
fn the_host_completes_a_checksum_of_the_guest() {
    if !own_network() {
        return;
    }
    let mut guest = Guest::new(1, 0);
    let socket = UdpSocket::bind("10.9.0.1:4000").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    guest.send_udp(TX);
    let mut got = [0; 10];
    assert_eq!(socket.recv(&mut got).unwrap(), 4);
    assert_eq!(&got[..4], b"data");
}

#[test]
fn queue_pairs_come_into_use_by_command() {
    if !own_network() {
        return;
    }
    let mut guest = Guest::new(3, 0);
    assert_eq!(guest.driver.queues.len(), 7);
    assert_eq!(guest.machine.device_read(guest.driver.device + 8), [3, 0], "max_virtqueue_pairs");
    for (pairs, answer) in [(3, 0), (1, 0), (2, 0), (0, 1), (4, 1), (u16::MAX, 1), (3, 0)] {
        assert_eq!(guest.command(6, 4, 0, &u16::to_le_bytes(pairs)), answer, "{pairs}");
    }
    assert_eq!(guest.command(6, 4, 0, &[1]), 1, "short");
    // Answers to a guest that sends on the third pair come on the third pair: the kernel keeps flows together.
    guest.command(6, 4, 0, &1u16.to_le_bytes());
    let socket = UdpSocket::bind("10.9.0.1:4000").unwrap();
    for _ in 0..20 {
        socket.send_to(&[7; 100], "10.9.0.2:5000").unwrap();
        guest.receive_udp(RX, 4000);
    }
    for queue in [2, 4] {
        assert_eq!(guest.driver.queues[queue].poll_used(), None);
    }
}

#[test]
fn without_several_pairs_the_control_queue_is_the_third() {
    if !own_network() {
        return;
    }
    let mut guest = Guest::new(2, feature::MQ);
    assert_eq!(guest.command(2, 5, 0, &0u64.to_le_bytes()), 0);
    assert_eq!(guest.command(2, 4, 0, &1u16.to_le_bytes()), 1, "not negotiated");
}

#[test]
fn commands_are_answered_sensibly() {
    if !own_network() {
        return;
    }
    let mut guest = Guest::new(1, feature::GUEST_TSO6);
    for (what, class, kind, data, answer) in [
        ("promiscuous", 0, 0, &[1][..], 0),
        ("all multicast", 0, 1, &[0], 0),
        ("neither on nor off", 0, 0, &[2], 1),
        ("nothing", 0, 0, &[], 1),
        ("empty tables", 1, 0, &[0; 8], 0),
        ("a table with one address", 1, 0, &[1, 0, 0, 0, 2, 0, 0, 0, 0, 7, 0, 0, 0, 0], 0),
        ("a table that is too short", 1, 0, &[2, 0, 0, 0, 2, 0, 0, 0, 0, 7, 0, 0, 0, 0], 1),
        ("a table without end", 1, 0, &[0xff; 8], 1),
        ("no offloads", 5, 0, &[0; 8], 0),
        ("checksums", 5, 0, &[2, 0, 0, 0, 0, 0, 0, 0], 0),
        ("what was not negotiated", 5, 0, &[2, 1, 0, 0, 0, 0, 0, 0], 1),
        ("unknown", 99, 0, &[0; 8], 1),
    ] {
        assert_eq!(guest.command(2, class, kind, data), answer, "{what}");
    }
    assert_eq!(guest.driver.queues[2].request(&[0], 1), [1]);
    assert_eq!(guest.driver.queues[2].request(&[0, 0, 1], 0), Vec::<u8>::new());
}

#[test]
fn offloads_that_are_taken_back_are_taken_back() {
    if !own_network() {
        return;
    }
    let mut guest = Guest::new(1, 0);
    assert_eq!(guest.command(2, 5, 0, &0u64.to_le_bytes()), 0);
    let socket = UdpSocket::bind("10.9.0.1:4000").unwrap();
    socket.send_to(&[7; 333], "10.9.0.2:5000").unwrap();
    let (header, frame) = guest.receive_udp(RX, 4000);
    assert_eq!((header[0], udp_sum(&frame)), (0, 0xffff));
}

#[test]
fn a_tap_that_was_made_disappears_and_another_stays() {
    if !own_network() {
        return;
    }
    let made = Net::new(&NetConfig { mtu: Some(4000), ..config(2) }).unwrap();
    assert!(ip("link show tap7").contains("mtu 4000"));
    drop(made);
    wait_until_gone();
    for (kind, pairs, expected) in [("tap", 4, 1), ("tap multi_queue", 4, 4), ("tap multi_queue", 1, 1)] {
        ip(&format!("tuntap add tap7 mode {kind}"));
        ip("link set tap7 mtu 1400");
        let net = Net::new(&config(pairs)).unwrap();
        assert_eq!((net.pairs, net.mtu), (expected, Some(1400)), "{kind}");
        drop(net);
        assert!(ip("link show tap7").contains("mtu 1400"), "{kind}");
        ip("link del tap7");
    }
}

#[test]
fn what_cannot_be_used_is_explained() {
    if !own_network() {
        return;
    }
    let problem = || Net::new(&config(1)).err().unwrap().source().unwrap().to_string();
    let first = Net::new(&config(1)).unwrap();
    assert_eq!(problem(), "Tap tap7 is in use by another process");
    drop(first);
    wait_until_gone();
    ip("tuntap add tap7 mode tun");
    assert_eq!(problem(), "Interface tap7 exists and is not a tap");
    ip("link del tap7");
    ip("link add tap7 type bridge");
    if ip("link show tap7").contains("mtu") {
        assert_eq!(problem(), "Interface tap7 exists and is not a tap");
    }
}

#[test]
fn the_host_sees_the_state_of_the_link() {
    if !own_network() {
        return;
    }
    let guest = Guest::new(1, 0);
    assert!(!ip("link show tap7").contains("NO-CARRIER"));
    guest.control.set_link(false);
    assert!(ip("link show tap7").contains("NO-CARRIER"));
    guest.control.set_link(true);
    assert!(!ip("link show tap7").contains("NO-CARRIER"));
}

#[test]
fn a_deleted_tap_takes_the_link_down() {
    if !own_network() {
        return;
    }
    let mut guest = Guest::new(2, 0);
    assert_eq!(guest.machine.device_read(guest.driver.device + 6), [1, 0]);
    ip("link del tap7");
    wait_for("link down", || guest.machine.device_read(guest.driver.device + 6) == [0, 0]);
    guest.driver.start();
    assert_eq!(guest.machine.device_read(guest.driver.device + 6), [0, 0]);
}

#[test]
fn an_inherited_descriptor_is_taken_once() {
    if !own_network() {
        return;
    }
    let tap = Tap::open("tap7", 1, None).unwrap();
    let inherited = |number| Net::new(&NetConfig { backend: Backend::TapDescriptor(number), ..config(4) });
    // What is close-on-exec was not inherited.
    assert!(inherited(tap.queue(0).unwrap().as_raw_fd()).is_err());
    let number = nix::unistd::dup(tap.queue(0).unwrap()).unwrap().into_raw_fd();
    drop(tap);
    let net = inherited(number).unwrap();
    assert_eq!(net.pairs, 1);
    assert!(inherited(number).is_err());
    assert!(ip("link show tap7").contains("mtu"));
    drop(net);
    wait_until_gone();
}
