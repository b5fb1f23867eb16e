//! The network device whose frames the host's kernel moves. Where the kernel can't, a test says so.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests stop at the first surprise")]

use std::io::Write as _;
use std::net::UdpSocket;
use std::path::Path;
use std::time::Duration;

use super::tap_test::{Guest, config, ip, own_network};
use super::{EngineKind, Net, NetConfig};
use crate::log::one_line;
use crate::virtio::spec::feature as ring_feature;
use crate::virtio::spec::status;
use crate::virtio::testing::{Part, wait_for};

const RX: usize = 0;
const TX: usize = 1;

fn vhost(pairs: u16) -> NetConfig {
    NetConfig { vhost: true, ..config(pairs) }
}

fn possible() -> bool {
    let possible = own_network() && Path::new("/dev/vhost-net").exists();
    if !possible {
        let _ = writeln!(
            std::io::stderr(),
            "SKIPPED: no right to make a network namespace and a tap, or no vhost-net driver"
        );
    }
    possible
}

fn socket() -> UdpSocket {
    let socket = UdpSocket::bind("10.9.0.1:4000").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    socket
}

/// A packet each way.
fn moves_frames(guest: &mut Guest, socket: &UdpSocket) {
    guest.send_udp(TX);
    let mut got = [0; 10];
    assert_eq!(socket.recv(&mut got).unwrap(), 4);
    assert_eq!(&got[..4], b"data");
    socket.send_to(&[7; 333], "10.9.0.2:5000").unwrap();
    let (_, frame) = guest.receive_udp(RX, 4000);
    assert_eq!(frame[42..], [7; 333]);
}

fn restart(guest: &mut Guest) {
    guest.driver.start_with(guest.driver.device_features() & !ring_feature::RING_EVENT_IDX);
}

#[test]
fn without_the_driver_the_error_names_the_field() {
    if !own_network() {
        return;
    }
    if Path::new("/dev/vhost-net").exists() {
        let _ = writeln!(std::io::stderr(), "SKIPPED: this host has vhost-net");
        return;
    }
    let error = one_line(&Net::new(&vhost(1)).err().unwrap());
    assert!(error.starts_with("Interface eth0: Field vhost: there is no /dev/vhost-net"), "{error}");
}

#[test]
fn frames_move_both_ways_also_after_a_reset() {
    if !possible() {
        return;
    }
    let mut guest = Guest::of(&vhost(1), 0);
    assert_eq!(guest.control.engine(), EngineKind::Vhost);
    let socket = socket();
    for _ in 0..3 {
        moves_frames(&mut guest, &socket);
        moves_frames(&mut guest, &socket);
        restart(&mut guest);
    }
    moves_frames(&mut guest, &socket);
}

#[test]
fn a_pause_takes_the_rings_back_and_a_resumption_goes_on_where_they_were() {
    if !possible() {
        return;
    }
    let mut guest = Guest::of(&vhost(2), 0);
    let socket = socket();
    moves_frames(&mut guest, &socket);
    for _ in 0..3 {
        guest.machine.root.pause_devices();
        let address = guest.machine.allocate(2048);
        guest.driver.queues[RX].add(&[Part { address, len: 2048, writable: true }]);
        guest.driver.queues[RX].kick();
        socket.send_to(&[9; 333], "10.9.0.2:5000").unwrap();
        guest.send_udp(TX);
        socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        assert!(socket.recv(&mut [0; 10]).is_err(), "sent while paused");
        assert!(guest.machine.read(address, 2048).iter().all(|&byte| byte == 0), "written while paused");
        guest.machine.root.resume_devices();
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        assert_eq!(socket.recv(&mut [0; 10]).unwrap(), 4);
        wait_for("the frame that came meanwhile", || guest.driver.queues[RX].poll_used().is_some());
        moves_frames(&mut guest, &socket);
    }
}

#[test]
fn pairs_come_into_use_by_command_and_a_link_that_is_down_moves_nothing() {
    if !possible() {
        return;
    }
    let mut guest = Guest::of(&vhost(2), 0);
    let socket = socket();
    for (pairs, answer) in [(2, 0), (1, 0), (3, 1), (0, 1), (2, 0), (1, 0)] {
        assert_eq!(guest.command(4, 4, 0, &u16::to_le_bytes(pairs)), answer, "{pairs}");
        moves_frames(&mut guest, &socket);
    }
    guest.control.set_link(false);
    guest.send_udp(TX);
    socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    assert!(socket.recv(&mut [0; 10]).is_err(), "sent without a link");
    guest.control.set_link(true);
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    assert_eq!(socket.recv(&mut [0; 10]).unwrap(), 4);
}

#[test]
fn a_broken_ring_needs_a_reset_and_then_works_again() {
    if !possible() {
        return;
    }
    let mut guest = Guest::of(&vhost(1), 0);
    let socket = socket();
    for round in 0..4 {
        let queue = &mut guest.driver.queues[TX];
        match round {
            0 => queue.offer(u16::MAX),
            1 => queue.set_available_index(0x8000),
            2 => {
                // In the hole of memory.
                queue.descriptor(0, 48 << 20, 64, 0, 0);
                queue.offer(0);
            }
            _ => {
                // A chain without end.
                queue.descriptor(0, 4096, 64, 1, 0);
                queue.offer(0);
            }
        }
        queue.kick();
        wait_for("the need for a reset", || guest.driver.status() & status::DEVICE_NEEDS_RESET != 0);
        restart(&mut guest);
        moves_frames(&mut guest, &socket);
    }
}

#[test]
fn after_a_reset_or_unplugging_memory_is_the_drivers() {
    if !possible() {
        return;
    }
    let mut guest = Guest::of(&vhost(1), 0);
    let socket = socket();
    let address = guest.machine.allocate(1 << 20);
    for round in 0..20u64 {
        for buffer in 0..16 {
            let part = Part { address: address + buffer * 4096, len: 4096, writable: true };
            guest.driver.queues[RX].add(&[part]);
        }
        guest.driver.queues[RX].kick();
        socket.send_to(&[7; 333], "10.9.0.2:5000").unwrap();
        if round == 19 {
            assert!(guest.machine.root.unplug(guest.driver.slot));
        } else {
            guest.driver.put8(crate::virtio::spec::pci::common::DEVICE_STATUS, 0);
        }
        guest.machine.write(address, &vec![0x77; 1 << 20]);
        for _ in 0..10 {
            let _ = socket.send_to(&[7; 333], "10.9.0.2:5000");
        }
        assert!(guest.machine.read(address, 1 << 20).iter().all(|&byte| byte == 0x77), "written behind the reset");
        if round < 19 {
            restart(&mut guest);
        }
    }
}

#[test]
fn a_deleted_tap_takes_the_link_down() {
    if !possible() {
        return;
    }
    let mut guest = Guest::of(&vhost(2), 0);
    ip("link del tap7");
    wait_for("link down", || guest.machine.device_read(guest.driver.device + 6) == [0, 0]);
    restart(&mut guest);
    assert_eq!(guest.machine.device_read(guest.driver.device + 6), [0, 0]);
}
