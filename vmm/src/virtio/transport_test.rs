//! Device status, features, queue registers.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

use super::rng::Rng;
use super::spec::pci::{NO_VECTOR, common};
use super::spec::{feature, status};
use super::testing::{Driver, Machine};

fn plugged() -> Driver {
    Machine::new().plug(Box::new(Rng::new()))
}

const READY: u8 = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK;

#[test]
fn power_on_state() {
    let driver = plugged();
    assert_eq!(driver.status(), 0);
    assert_eq!(driver.get16(common::NUM_QUEUES), 1);
    assert_eq!(driver.get16(common::QUEUE_SIZE), 64);
    assert_eq!(driver.get16(common::CONFIG_MSIX_VECTOR), NO_VECTOR);
    assert_eq!(driver.get16(common::QUEUE_MSIX_VECTOR), NO_VECTOR);
    assert_eq!(driver.device_features(), feature::TRANSPORT);
    driver.put32(common::DEVICE_FEATURE_SELECT, 2);
    assert_eq!(driver.get32(common::DEVICE_FEATURE), 0);
}

#[test]
fn features_have_to_be_offered_and_modern() {
    let driver = plugged();
    for features in [0, feature::RING_EVENT_IDX, feature::VERSION_1 | 1, u64::MAX] {
        driver.negotiate(Some(features));
        assert_eq!(driver.status() & status::FEATURES_OK, 0, "{features:#x}");
        driver.put8(common::DEVICE_STATUS, READY | status::DRIVER_OK);
        assert_eq!(driver.status() & status::DRIVER_OK, 0, "{features:#x}");
    }
    driver.negotiate(Some(feature::VERSION_1));
    assert_eq!(driver.status(), READY);
    driver.put32(common::DRIVER_FEATURE_SELECT, 0);
    driver.put32(common::DRIVER_FEATURE, 1);
    assert_eq!(driver.get32(common::DRIVER_FEATURE), 0, "features are fixed once agreed on");
}

#[test]
fn features_ok_needs_a_driver() {
    let driver = plugged();
    driver.put32(common::DRIVER_FEATURE_SELECT, 1);
    driver.put32(common::DRIVER_FEATURE, 1);
    driver.put8(common::DEVICE_STATUS, status::ACKNOWLEDGE | status::FEATURES_OK);
    assert_eq!(driver.status(), status::ACKNOWLEDGE);
}

#[test]
fn status_bits_are_cleared_by_reset_only() {
    let driver = plugged();
    driver.negotiate(None);
    driver.put8(common::DEVICE_STATUS, status::ACKNOWLEDGE);
    assert_eq!(driver.status(), READY);
    driver.put8(common::DEVICE_STATUS, READY | status::FAILED | status::DEVICE_NEEDS_RESET);
    assert_eq!(driver.status(), READY | status::FAILED, "a driver can't set DEVICE_NEEDS_RESET");
    driver.put8(common::DEVICE_STATUS, 0);
    assert_eq!(driver.status(), 0);
}

#[test]
fn bad_queues_are_not_enabled() {
    let cases: [(u16, u64, u64, u64); 10] = [
        (0, 0x1000, 0x2000, 0x3000),
        (3, 0x1000, 0x2000, 0x3000),
        (128, 0x1000, 0x2000, 0x3000),
        (u16::MAX, 0x1000, 0x2000, 0x3000),
        (64, 0x1008, 0x2000, 0x3000),
        (64, 0x1000, 0x2001, 0x3000),
        (64, 0x1000, 0x2000, 0x3002),
        (64, 0, 0x2000, 0x3000),
        (64, (32 << 20) - 16, 0x2000, 0x3000),
        (64, 0x1000, 0x2000, u64::MAX - 3),
    ];
    for case @ (size, descriptors, available, used) in cases {
        let driver = plugged();
        driver.negotiate(None);
        driver.put16(common::QUEUE_SIZE, size);
        driver.put64(common::QUEUE_DESC_LO, descriptors);
        driver.put64(common::QUEUE_DRIVER_LO, available);
        driver.put64(common::QUEUE_DEVICE_LO, used);
        driver.put16(common::QUEUE_ENABLE, 1);
        assert_eq!(driver.get16(common::QUEUE_ENABLE), 0, "{case:x?}");
        assert_eq!(driver.status(), READY | status::DEVICE_NEEDS_RESET, "{case:x?}");
        driver.put8(common::DEVICE_STATUS, READY | status::DRIVER_OK);
        driver.put8(common::DEVICE_STATUS, 0);
        assert_eq!(driver.status(), 0);
    }
}

#[test]
fn a_device_without_its_queue_needs_a_reset() {
    let driver = plugged();
    driver.negotiate(None);
    driver.driver_ok();
    assert_ne!(driver.status() & status::DEVICE_NEEDS_RESET, 0);
}

#[test]
fn a_queue_in_use_keeps_its_registers() {
    let mut driver = plugged();
    driver.start();
    let address = driver.get32(common::QUEUE_DESC_LO);
    driver.put32(common::QUEUE_DESC_LO, 0);
    driver.put16(common::QUEUE_SIZE, 2);
    driver.put16(common::QUEUE_ENABLE, 0);
    assert_eq!(driver.get32(common::QUEUE_DESC_LO), address);
    assert_eq!(driver.get16(common::QUEUE_SIZE), 64);
    assert_eq!(driver.get16(common::QUEUE_ENABLE), 1);
}

#[test]
fn queues_that_do_not_exist_read_as_zero_and_take_nothing() {
    let driver = plugged();
    driver.negotiate(None);
    for index in [1, 2, 0x7fff, u16::MAX] {
        driver.put16(common::QUEUE_SELECT, index);
        driver.put16(common::QUEUE_SIZE, 64);
        driver.put16(common::QUEUE_MSIX_VECTOR, 0);
        driver.put16(common::QUEUE_ENABLE, 1);
        assert_eq!(driver.get16(common::QUEUE_SIZE), 0);
        assert_eq!(driver.get16(common::QUEUE_ENABLE), 0);
        assert_eq!(driver.get16(common::QUEUE_MSIX_VECTOR), NO_VECTOR);
    }
    assert_eq!(driver.status(), READY);
}

#[test]
fn vectors_that_do_not_exist_read_back_as_none() {
    let driver = plugged();
    driver.put16(common::CONFIG_MSIX_VECTOR, 1);
    assert_eq!(driver.get16(common::CONFIG_MSIX_VECTOR), 1);
    driver.put16(common::CONFIG_MSIX_VECTOR, 2);
    assert_eq!(driver.get16(common::CONFIG_MSIX_VECTOR), NO_VECTOR);
}

#[test]
fn a_reset_forgets_all_and_stops_the_worker() {
    let mut driver = plugged();
    for _ in 0..20 {
        driver.start();
        driver.queues[0].request(&[], 4);
        driver.put8(common::DEVICE_STATUS, 0);
        assert_eq!(driver.get16(common::QUEUE_ENABLE), 0);
        assert_eq!(driver.get32(common::QUEUE_DESC_LO), 0);
        assert_eq!(driver.get16(common::QUEUE_MSIX_VECTOR), NO_VECTOR);
        assert_eq!(driver.machine.fabric.doorbell_addresses(), Vec::<u64>::new());
    }
}
