//! Who waits for whom: limits, listeners without a place, guests that don't answer.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "tests stop at the first surprise"
)]

use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::time::Duration;

use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket};

use super::packet::{SHUTDOWN_BOTH, op};
use super::test_guest::{Guest, Stream, pattern};
use crate::config::{RateLimiter, TokenBucket};
use crate::virtio::testing::wait_for;

const HOUR_MS: u64 = 3_600_000;

fn bucket(size: u64) -> Option<TokenBucket> {
    Some(TokenBucket { size, one_time_burst: None, refill_time: HOUR_MS })
}

fn unlimited() -> RateLimiter {
    RateLimiter { bandwidth: bucket(0), ops: bucket(0) }
}

fn stream(guest: u32, host: u32) -> Stream {
    Stream { guest, host, forwarded: 0, sent: 0, host_forwarded: 0, host_alloc: 0 }
}

/// A listener with a place for two connections.
fn narrow_listener(guest: &Guest, port: u32) -> UnixListener {
    let fd = socket(AddressFamily::Unix, SockType::Stream, SockFlag::empty(), None).unwrap();
    let path = guest.directory.path().join(format!("v_{port}"));
    bind(fd.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
    listen(&fd, Backlog::new(1).unwrap()).unwrap();
    UnixListener::from(fd)
}

#[test]
fn dials_wait_for_a_place_in_the_listeners_queue_in_their_order() {
    let mut guest = Guest::new();
    let listener = narrow_listener(&guest, 52);
    for port in 0..8 {
        guest.send(&stream(1024 + port, 52), op::REQUEST, 0, &[]);
    }
    // Other streams don't wait.
    let other = guest.listen(53);
    guest.send(&stream(5000, 53), op::REQUEST, 0, &[]);
    let _other = other.accept().unwrap();
    let mut hosts = Vec::new();
    for _ in 0..8 {
        hosts.push(listener.accept().unwrap().0);
    }
    for _ in 0..9 {
        guest.expect(op::RESPONSE);
    }
    for (port, host) in (0..8).zip(&mut hosts) {
        guest.send(&stream(1024 + port, 52), op::RW, 0, &[port as u8]);
        let mut byte = [0];
        host.read_exact(&mut byte).unwrap();
        assert_eq!(byte, [port as u8]);
    }
    assert_eq!((guest.control.streams.from_guest.get(), guest.control.streams.refused.get()), (9, 0));
}

#[test]
fn a_dial_ends_when_the_listener_does_not_accept_and_when_the_guest_gives_up() {
    let mut guest = Guest::new();
    let listener = narrow_listener(&guest, 52);
    for port in 0..4 {
        guest.send(&stream(1024 + port, 52), op::REQUEST, 0, &[]);
    }
    // The last of them changes its mind, so that nobody answers it.
    guest.send(&stream(1027, 52), op::RST, 0, &[]);
    let mut refused = Vec::new();
    for _ in 0..3 {
        let (header, _) = guest.receive();
        if header.op == op::RST {
            refused.push(header.dst_port);
        }
    }
    assert_eq!(refused, [1026], "two have places, one waits in vain");
    listener.accept().unwrap();
    listener.accept().unwrap();
    listener.set_nonblocking(true).unwrap();
    assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
}

#[test]
fn a_host_process_does_not_wait_for_a_guest_that_takes_nothing() {
    let mut guest = Guest::new();
    // A driver without receive buffers: not even the request gets through.
    guest.driver.start();
    let mut silent = guest.ask(80);
    assert_eq!(silent.read(&mut [0]).unwrap(), 0);
    wait_for("the stream to be forgotten", || guest.control.streams.open.get() == 0);
    assert_eq!(guest.control.streams.broken.get(), 1);
}

#[test]
fn a_host_process_does_not_wait_for_a_guest_that_does_not_answer() {
    let mut guest = Guest::new();
    let mut silent = guest.ask(80);
    let request = guest.expect(op::REQUEST);
    assert_eq!(silent.read(&mut [0]).unwrap(), 0);
    let reset = guest.expect(op::RST);
    assert_eq!((reset.src_port, reset.dst_port), (request.src_port, 80));
}

#[test]
fn a_guest_that_breaks_a_rule_is_hung_up_on_although_it_takes_no_answer() {
    let mut guest = Guest::new();
    let listener = guest.listen(52);
    guest.driver.start();
    guest.send(&stream(1024, 52), op::REQUEST, 0, &[]);
    let (mut host, _) = listener.accept().unwrap();
    host.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    guest.send(&stream(1024, 52), op::RW, 0, b"last words");
    guest.send(&stream(1024, 52), 77, 0, &[]);
    let mut text = String::new();
    host.read_to_string(&mut text).unwrap();
    assert_eq!(text, "last words");
}

#[test]
fn streams_are_counted_while_they_are_there() {
    let mut guest = Guest::new();
    let (called, _socket) = guest.call(7000);
    let listener = guest.listen(52);
    let dialled = guest.dial(1024, 52);
    let (_host, _) = listener.accept().unwrap();
    guest.send(&stream(9, 9), op::REQUEST, 0, &[]);
    guest.expect(op::RST);
    let streams = &guest.control.streams;
    let counts = [&streams.open, &streams.from_host, &streams.from_guest, &streams.refused].map(|count| count.get());
    assert_eq!(counts, [2, 1, 2, 1]);
    guest.send(&dialled, op::SHUTDOWN, SHUTDOWN_BOTH, &[]);
    guest.expect(op::RST);
    guest.send(&called, op::RST, 0, &[]);
    wait_for("streams to end", || guest.control.streams.open.get() == 0);
    guest.call(7000);
    guest.start();
    assert_eq!(guest.control.streams.open.get(), 0, "a reset ends all");
}

#[test]
fn the_way_from_the_guest_is_limited_until_the_limit_is_changed() {
    let limits = RateLimiter { bandwidth: bucket(1000), ops: None };
    let mut guest = Guest::with_limits(None, Some(limits));
    let listener = guest.listen(52);
    let stream = guest.dial(1024, 52);
    let (mut host, _) = listener.accept().unwrap();
    for at in 0..3 {
        guest.send(&stream, op::RW, 0, &pattern(at * 1000, 1000));
    }
    let mut data = vec![0; 1000];
    host.read_exact(&mut data).unwrap();
    wait_for("the limit", || guest.driver.machine.root.counters(guest.driver.slot).unwrap().throttled.get() > 0);
    host.set_nonblocking(true).unwrap();
    assert_eq!(host.read(&mut data).unwrap_err().kind(), ErrorKind::WouldBlock);
    // The other direction goes on.
    host.write_all(b"x").unwrap();
    assert_eq!(guest.receive_other().1, b"x");
    guest.control.set_limits(None, Some(&unlimited()));
    host.set_nonblocking(false).unwrap();
    let mut rest = vec![0; 2000];
    host.read_exact(&mut rest).unwrap();
    assert!(rest == pattern(1000, 2000));
}

#[test]
fn the_way_to_the_guest_is_limited_until_the_limit_is_changed() {
    // Request and one packet of data, which the third packet pays for.
    let limits = RateLimiter { bandwidth: None, ops: bucket(2) };
    let mut guest = Guest::with_limits(Some(limits), None);
    let (stream, mut socket) = guest.call(7000);
    socket.get_mut().write_all(&pattern(0, 64 << 10)).unwrap();
    let mut received = Vec::new();
    for _ in 0..2 {
        received.extend(guest.receive_other().1);
    }
    wait_for("the limit", || guest.driver.machine.root.counters(guest.driver.slot).unwrap().throttled.get() > 0);
    guest.poll();
    assert!(guest.arrived.is_empty());
    // The other direction goes on.
    guest.send(&stream, op::RW, 0, b"x");
    let mut byte = [0];
    socket.read_exact(&mut byte).unwrap();
    guest.control.set_limits(Some(&unlimited()), None);
    while received.len() < 64 << 10 {
        received.extend(guest.receive_other().1);
    }
    assert!(received == pattern(0, 64 << 10));
}
