#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::cast_possible_truncation, reason = "tests")]

use std::time::Duration;

use super::*;
use crate::virtio::spec::feature;
use crate::virtio::testing::{Driver, Machine, Part, wait_for};

const PAGE: u64 = 4096;
const EVERYTHING: BalloonConfig =
    BalloonConfig { amount_mib: 3, deflate_on_oom: true, stats_polling_interval_s: 1, free_page_reporting: true };

fn start(config: BalloonConfig) -> (Driver, Arc<Control>) {
    let balloon = Balloon::new(config).unwrap();
    let control = Arc::clone(balloon.control());
    let mut driver = Machine::new().plug(Box::new(balloon));
    driver.start();
    (driver, control)
}

fn numbers(pages: &[u64]) -> Vec<u8> {
    pages.iter().flat_map(|page| (*page as u32).to_le_bytes()).collect()
}

fn byte(driver: &Driver, page: u64) -> u8 {
    driver.machine.read(page * PAGE, 1)[0]
}

#[test]
fn inflating_gives_exactly_the_named_pages_back() {
    let (mut driver, control) = start(EVERYTHING);
    let first = 4096;
    for page in first..first + 8 {
        driver.machine.write(page * PAGE, &[9; 4096]);
    }
    driver.queues[0].request(&numbers(&[first + 2, first + 1, first + 5, first + 5]), 0);
    let left: Vec<_> = (0..8).map(|n| byte(&driver, first + n)).collect();
    assert_eq!(left, [9, 0, 0, 9, 9, 0, 9, 9]);
    assert_eq!(control.reclaim.inflated_bytes.get(), 3 * PAGE);
    driver.queues[1].request(&numbers(&[first + 1]), 0);
    assert_eq!(byte(&driver, first + 1), 0);
}

#[test]
fn pages_outside_of_memory_are_counted_and_ignored() {
    let (mut driver, control) = start(EVERYTHING);
    // The hole of the test machine, the first page behind its end, and the last number there is.
    driver.queues[0].request(&numbers(&[(32 << 20) / PAGE, (96 << 20) / PAGE, u64::from(u32::MAX)]), 0);
    assert_eq!((control.reclaim.inflated_bytes.get(), control.reclaim.ignored_pages.get()), (0, 3));
    // Half a page number is none.
    driver.queues[0].request(&[1, 2, 3], 0);
    assert_eq!(control.reclaim.ignored_pages.get(), 3);
    assert_eq!(driver.status() & crate::virtio::spec::status::DEVICE_NEEDS_RESET, 0);
}

#[test]
fn one_request_is_bounded() {
    let (mut driver, control) = start(EVERYTHING);
    let pages: Vec<u64> = (0..2 * pages::MAX_PAGES as u64).map(|n| 5000 + n % 3000).collect();
    driver.queues[0].request(&numbers(&pages), 0);
    assert_eq!(control.reclaim.ignored_pages.get(), pages::MAX_PAGES as u64);
    driver.queues[0].request(&numbers(&vec![u64::from(u32::MAX); 3 * pages::MAX_PAGES]), 0);
    assert_eq!(control.reclaim.ignored_pages.get(), 4 * pages::MAX_PAGES as u64);
}

#[test]
fn reported_ranges_are_given_back() {
    let (mut driver, control) = start(EVERYTHING);
    let (first, second) = (20 << 20, 24 << 20);
    for at in [first, second, second + PAGE] {
        driver.machine.write(at, &[5; 4096]);
    }
    let part = |address, len| Part { address, len, writable: true };
    driver.queues[3].add(&[part(first, 4096), part(second + 1, 8191)]);
    driver.queues[3].kick();
    assert_eq!(driver.queues[3].wait_used().1, 0);
    assert_eq!(byte(&driver, first / PAGE), 0);
    assert_eq!((byte(&driver, second / PAGE), byte(&driver, second / PAGE + 1)), (5, 0));
    assert_eq!(control.reclaim.reported_bytes.get(), 2 * PAGE);
}

#[test]
fn a_report_of_what_is_not_memory_breaks_the_device() {
    let (mut driver, control) = start(EVERYTHING);
    driver.queues[3].add(&[Part { address: 40 << 20, len: 4096, writable: true }]);
    driver.queues[3].kick();
    driver.wait_needs_reset();
    assert_eq!(control.reclaim.reported_bytes.get(), 0);
}

#[test]
fn statistics_are_polled() {
    let (mut driver, control) = start(EVERYTHING);
    let buffer = driver.machine.allocate(64);
    let fill = |driver: &mut Driver, free: u64| {
        let mut text = Vec::new();
        for (tag, value) in [(4u16, free), (99, 1), (5, 7 << 20)] {
            text.extend(tag.to_le_bytes());
            text.extend(value.to_le_bytes());
        }
        driver.machine.write(buffer, &text);
        driver.queues[2].add(&[Part { address: buffer, len: text.len() as u32 + 3, writable: false }]);
        driver.queues[2].kick();
    };
    fill(&mut driver, 1 << 20);
    wait_for("statistics", || control.statistics().is_some());
    // The buffer comes back when the interval is over: then the driver fills it anew.
    driver.queues[2].wait_used();
    fill(&mut driver, 2 << 20);
    wait_for("new statistics", || control.statistics().unwrap().free_memory == Some(2 << 20));
    let statistics = control.statistics().unwrap();
    assert_eq!((statistics.total_memory, statistics.oom_kill), (Some(7 << 20), None));
    assert_eq!(control.interval(), Some(Duration::from_secs(1)));
    assert!(!control.set_interval_s(0) && control.set_interval_s(2));
}

#[test]
fn the_configuration_shows_the_target_and_takes_the_actual_size() {
    let (driver, control) = start(EVERYTHING);
    let target = || u32::from_le_bytes(driver.machine.device_read(driver.device));
    assert_eq!(target(), 3 * 256);
    control.set_target_mib(5);
    driver.machine.root.config_changed(driver.slot);
    assert_eq!(target(), 5 * 256);
    driver.machine.device_write(driver.device + 4, &700u32.to_le_bytes());
    assert_eq!((control.actual_pages(), control.actual_mib()), (700, 2));
    assert_eq!(u32::from_le_bytes(driver.machine.device_read(driver.device + 4)), 700);
    // Nothing else is writable.
    driver.machine.device_write(driver.device, &9u32.to_le_bytes());
    driver.machine.device_write(driver.device + 5, &9u32.to_le_bytes());
    assert_eq!((target(), control.actual_pages()), (5 * 256, 700));
    driver.put8(0x14, 0);
    assert_eq!(control.actual_pages(), 0);
}

#[test]
fn queues_are_numbered_without_gaps() {
    let few =
        BalloonConfig { amount_mib: 0, deflate_on_oom: false, stats_polling_interval_s: 0, free_page_reporting: true };
    let (mut driver, control) = start(few);
    assert_eq!(driver.queues.len(), 3);
    driver.queues[2].request(&[], 8192);
    assert_eq!(control.reclaim.reported_bytes.get(), 8192);

    // A driver that leaves statistics out has reporting in their place.
    let (mut driver, control) = start(EVERYTHING);
    driver.start_with(driver.device_features() & !F_STATS_VQ & !feature::RING_EVENT_IDX);
    driver.queues[2].request(&[], 4096);
    assert_eq!(control.reclaim.reported_bytes.get(), 4096);
}
