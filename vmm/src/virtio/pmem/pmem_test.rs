#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

use std::path::Path;

use tempfile::TempDir;

use super::*;
use crate::virtio::testing::{Driver, FakeSlots, Machine, when_free};

fn config(path: &Path, read_only: bool) -> PmemConfig {
    PmemConfig { id: "p".to_owned(), path: path.to_owned(), read_only, start: GuestAddress(1 << 30) }
}

fn in_use(error: &PmemError) -> bool {
    matches!(error, PmemError::InUse { .. })
}

fn start(path: &Path, read_only: bool) -> (Driver, Arc<FakeSlots>) {
    let slots = Arc::new(FakeSlots::default());
    let pmem = when_free(in_use, || Pmem::new(&config(path, read_only), slots.clone()));
    let mut driver = Machine::new().plug(Box::new(pmem));
    driver.start();
    (driver, slots)
}

#[test]
fn a_file_is_shown_padded_to_whole_huge_pages() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("f");
    std::fs::write(&path, vec![1; (2 << 20) + 1]).unwrap();
    for read_only in [false, true] {
        let (driver, slots) = start(&path, read_only);
        let word = |offset| u64::from_le_bytes(driver.machine.device_read(driver.device + offset));
        assert_eq!((word(0), word(8), word(16)), (1 << 30, 4 << 20, 0));
        let shown: Vec<_> = slots.shown.lock().unwrap().values().map(|range| (range.guest.0, range.size)).collect();
        assert_eq!(shown, [(1 << 30, 4 << 20)]);
        driver.machine.root.unplug(driver.slot);
        assert!(slots.shown.lock().unwrap().is_empty(), "still shown");
    }
}

#[test]
fn flushing_is_answered_and_anything_else_refused() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("f");
    std::fs::write(&path, [1; 5000]).unwrap();
    for read_only in [false, true] {
        let (mut driver, _slots) = start(&path, read_only);
        assert_eq!(driver.queues[0].request(&[0; 4], 4), [0; 4]);
        assert_eq!(driver.queues[0].request(&[1, 0, 0, 0], 4), [0xff; 4]);
        driver.queues[0].add(&[crate::virtio::testing::Part { address: 0x1000, len: 4, writable: false }]);
        driver.queues[0].kick();
        driver.wait_needs_reset();
    }
}

#[test]
fn a_file_that_is_cut_short_does_not_hurt_the_monitor() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("f");
    std::fs::write(&path, vec![1; 1 << 20]).unwrap();
    let (mut driver, _slots) = start(&path, false);
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(0).unwrap();
    assert_eq!(driver.queues[0].request(&[0; 4], 4), [0; 4]);
    // A device that is asked to touch it refuses.
    driver.queues[0].add(&[crate::virtio::testing::Part { address: 1 << 30, len: 4, writable: false }]);
    driver.queues[0].kick();
    driver.wait_needs_reset();
}

#[test]
fn unusable_files_are_clear_errors() {
    let dir = TempDir::new().unwrap();
    let new = |path: &Path, read_only| Pmem::new(&config(path, read_only), Arc::new(FakeSlots::default()));
    let path = dir.path().join("f");
    assert!(matches!(new(&path, true), Err(PmemError::Open { .. })));
    std::fs::write(&path, []).unwrap();
    assert!(matches!(new(&path, true), Err(PmemError::Kind { .. })));
    assert!(matches!(new(dir.path(), true), Err(PmemError::Kind { .. })));
    std::fs::write(&path, [1]).unwrap();
    let first = new(&path, true).unwrap();
    let second = new(&path, true).unwrap();
    assert!(matches!(new(&path, false), Err(PmemError::InUse { .. })));
    drop((first, second));
    let _writer = when_free(in_use, || new(&path, false));
    assert!(matches!(new(&path, true), Err(PmemError::InUse { .. })));
}
