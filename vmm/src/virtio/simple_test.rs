//! Entropy and console.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

use std::sync::{Arc, Mutex};

use super::console::{Console, ConsoleConfig, ConsoleSink};
use super::rng::Rng;
use super::testing::{Machine, Part, wait_for};

#[test]
fn entropy_fills_what_it_is_given_up_to_a_limit() {
    let mut driver = Machine::new().plug(Box::new(Rng::new()));
    driver.start();
    let first = driver.queues[0].request(&[], 64);
    let second = driver.queues[0].request(&[], 64);
    assert_eq!((first.len(), second.len()), (64, 64));
    assert_ne!(first, second);
    assert_eq!(driver.queues[0].request(&[], 1 << 20).len(), 4096);
    assert_eq!(driver.queues[0].request(b"only readable", 0), Vec::<u8>::new());
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl ConsoleSink for Log {
    fn write(&mut self, bytes: &[u8]) {
        self.0.lock().unwrap().extend(bytes);
    }
}

#[test]
fn console_output_reaches_the_sink_also_after_a_reset() {
    let log = Log::default();
    let mut driver = Machine::new().plug(Box::new(Console::new(ConsoleConfig::log(Box::new(log.clone()))).unwrap()));
    for _ in 0..3 {
        driver.start();
        driver.queues[1].request(b"hello ", 0);
        driver.queues[1].request(&[b'x'; 5000], 0);
    }
    let log = log.0.lock().unwrap();
    assert_eq!(log.len(), 3 * 5006);
    assert!(log.starts_with(b"hello xxx"));
}

#[test]
fn the_receive_queue_of_the_console_stays_with_the_device() {
    let mut driver = Machine::new().plug(Box::new(Console::new(ConsoleConfig::log(Box::new(Log::default()))).unwrap()));
    driver.start();
    driver.queues[0].add(&[Part { address: 0x1000, len: 64, writable: true }]);
    driver.queues[0].kick();
    driver.queues[1].request(b"x", 0);
    assert_eq!(driver.queues[0].poll_used(), None);
}

#[test]
fn a_pause_lasts_until_it_is_over() {
    let log = Log::default();
    let machine = Machine::new();
    let mut driver = machine.plug(Box::new(Console::new(ConsoleConfig::log(Box::new(log.clone()))).unwrap()));
    driver.start();
    for _ in 0..50 {
        machine.root.pause_devices();
        machine.root.pause_devices();
        let before = log.0.lock().unwrap().len();
        driver.queues[1].add(&[Part { address: 0x1000, len: 1, writable: false }]);
        driver.queues[1].kick();
        std::thread::sleep(std::time::Duration::from_millis(1));
        assert_eq!(log.0.lock().unwrap().len(), before);
        machine.root.resume_devices();
        wait_for("output", || log.0.lock().unwrap().len() == before + 1);
        driver.queues[1].wait_used();
    }
    machine.root.pause_devices();
    driver.put8(0x14, 0);
    machine.root.shutdown();
}

struct Slow;

impl ConsoleSink for Slow {
    fn write(&mut self, _bytes: &[u8]) {
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
}

#[test]
fn a_reset_does_not_wait_for_all_that_the_driver_asked_for() {
    let mut driver = Machine::new().plug(Box::new(Console::new(ConsoleConfig::log(Box::new(Slow))).unwrap()));
    driver.start();
    for _ in 0..30 {
        driver.queues[1].add(&[Part { address: 0x1000, len: 1, writable: false }]);
    }
    driver.queues[1].kick();
    driver.queues[1].wait_used();
    let start = std::time::Instant::now();
    driver.put8(0x14, 0);
    assert!(start.elapsed() < std::time::Duration::from_millis(1500), "30 requests take three seconds");
}
