//! The block device through its ring.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::cast_possible_truncation, reason = "tests")]

use std::io::Write;
use std::os::unix::fs::symlink;
use std::sync::Arc;

use tempfile::NamedTempFile;

use super::{Block, BlockConfig, BlockControl, BlockError};
use crate::virtio::testing::{Driver, Machine, Part, when_free};

pub const SECTORS: u64 = 64;
pub const OK: u8 = 0;
pub const IOERR: u8 = 1;
pub const UNSUPP: u8 = 2;

pub struct Disk {
    pub machine: Arc<Machine>,
    pub driver: Driver,
    pub file: NamedTempFile,
    pub control: Arc<BlockControl>,
}

pub fn image() -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    let content: Vec<u8> = (0..SECTORS * 512).map(|i| (i / 512) as u8).collect();
    file.write_all(&content).unwrap();
    file
}

pub fn config(file: &NamedTempFile, read_only: bool) -> BlockConfig {
    BlockConfig { path: file.path().to_owned(), id: "disk-1".to_owned(), read_only, ..BlockConfig::default() }
}

impl Disk {
    fn new(read_only: bool) -> Self {
        Self::with(image(), |config| config.read_only = read_only)
    }

    /// A started disk over `file`.
    pub fn with(file: NamedTempFile, change: impl FnOnce(&mut BlockConfig)) -> Self {
        let mut config = config(&file, false);
        change(&mut config);
        let block = Block::new(&config).unwrap();
        let control = Arc::clone(block.control());
        let machine = Machine::new();
        let mut driver = machine.plug(Box::new(block));
        driver.start();
        Self { machine, driver, file, control }
    }

    /// A request with its data on either side. Returns status, data and the used length.
    pub fn request(&mut self, kind: u32, sector: u64, write: &[u8], read: u32) -> (u8, Vec<u8>, u32) {
        let mut header = kind.to_le_bytes().to_vec();
        header.extend([0; 4]);
        header.extend(sector.to_le_bytes());
        let at = self.machine.allocate(16);
        self.machine.write(at, &header);
        let from = self.machine.allocate(write.len() as u64 + 1);
        self.machine.write(from, write);
        let to = self.machine.allocate(u64::from(read) + 1);
        let status = self.machine.allocate(1);
        self.machine.write(status, &[0xee]);
        let mut parts = vec![Part { address: at, len: 16, writable: false }];
        // Data in two pieces of odd size.
        let pieces = |base: u64, len: u32, writable: bool| {
            let first = len / 3;
            [
                Part { address: base, len: first, writable },
                Part { address: base + u64::from(first), len: len - first, writable },
            ]
        };
        if !write.is_empty() {
            parts.extend(pieces(from, write.len() as u32, false));
        }
        if read > 0 {
            parts.extend(pieces(to, read, true));
        }
        parts.push(Part { address: status, len: 1, writable: true });
        self.driver.queues[0].add(&parts);
        self.driver.queues[0].kick();
        let (_, used) = self.driver.queues[0].wait_used();
        (self.machine.read(status, 1)[0], self.machine.read(to, read as usize), used)
    }
}

#[test]
fn configuration_shows_size_and_geometry() {
    let disk = Disk::new(true);
    assert_eq!(disk.machine.device_read(disk.driver.device), SECTORS.to_le_bytes());
    assert_eq!(disk.machine.device_read(disk.driver.device + 12), 254u32.to_le_bytes(), "seg_max");
    assert_eq!(disk.machine.device_read(disk.driver.device + 20), 512u32.to_le_bytes(), "blk_size");
    assert_ne!(disk.driver.device_features() & 1 << 5, 0, "read-only");
}

#[test]
fn sectors_are_read() {
    let mut disk = Disk::new(true);
    let (status, data, used) = disk.request(0, 10, &[], 1024);
    assert_eq!((status, used), (OK, 1025));
    assert!(data[..512].iter().all(|&b| b == 10) && data[512..].iter().all(|&b| b == 11));
}

#[test]
fn sectors_are_written_and_flushed() {
    let mut disk = Disk::new(false);
    assert_eq!(disk.request(1, 63, &[0xab; 512], 0).0, OK);
    assert_eq!(disk.request(4, 0, &[], 0).0, OK);
    let content = std::fs::read(disk.file.path()).unwrap();
    assert!(content[63 * 512..].iter().all(|&b| b == 0xab));
    assert_eq!(content.len() as u64, SECTORS * 512, "an image doesn't grow");
}

#[test]
fn requests_outside_of_the_image_fail_and_touch_nothing() {
    let mut disk = Disk::new(false);
    for sector in [SECTORS, SECTORS - 1, u64::MAX, u64::MAX / 512, 1 << 55] {
        assert_eq!(disk.request(0, sector, &[], 1024).0, IOERR, "read {sector:#x}");
        assert_eq!(disk.request(1, sector, &[1; 1024], 0).0, IOERR, "write {sector:#x}");
    }
    assert_eq!(std::fs::metadata(disk.file.path()).unwrap().len(), SECTORS * 512);
}

#[test]
fn partial_sectors_fail() {
    let mut disk = Disk::new(false);
    assert_eq!(disk.request(0, 0, &[], 511).0, IOERR);
    assert_eq!(disk.request(1, 0, &[1; 513], 0).0, IOERR);
}

#[test]
fn a_read_only_disk_refuses_writes() {
    let mut disk = Disk::new(true);
    assert_eq!(disk.request(1, 0, &[1; 512], 0).0, IOERR);
    assert_eq!(disk.request(4, 0, &[], 0).0, OK, "flush");
    assert_eq!(std::fs::read(disk.file.path()).unwrap()[0], 0);
}

#[test]
fn the_serial_number_is_padded_with_zeros() {
    let mut disk = Disk::new(true);
    let (status, data, used) = disk.request(8, 0, &[], 20);
    assert_eq!((status, used), (OK, 21));
    assert_eq!(&data, b"disk-1\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    assert_eq!(disk.request(8, 0, &[], 4).1, b"disk");
}

#[test]
fn unknown_requests_are_unsupported() {
    let mut disk = Disk::new(false);
    for kind in [2, 3, 5, 10, 12, 14, u32::MAX] {
        assert_eq!(disk.request(kind, 0, &[], 512).0, UNSUPP, "{kind}");
    }
}

#[test]
fn requests_of_the_wrong_shape_complete() {
    let mut disk = Disk::new(false);
    // No status: nothing can be said.
    assert_eq!(disk.driver.queues[0].request(&[0; 16], 0), Vec::<u8>::new());
    // A status alone, and a short header.
    assert_eq!(disk.driver.queues[0].request(&[], 1), [IOERR]);
    assert_eq!(disk.driver.queues[0].request(&[0; 15], 1), [IOERR]);
    assert_eq!(disk.request(0, 0, &[], 512).0, OK);
}

#[test]
fn an_image_that_shrinks_gives_errors() {
    let mut disk = Disk::new(true);
    disk.file.as_file().set_len(512).unwrap();
    assert_eq!(disk.request(0, 1, &[], 512).0, IOERR);
    assert_eq!(disk.request(0, 0, &[], 512).0, OK);
}

#[test]
fn one_writer_or_many_readers() {
    let file = image();
    let reader = Block::new(&config(&file, true)).unwrap();
    let second = Block::new(&config(&file, true)).unwrap();
    let error = Block::new(&config(&file, false)).err().unwrap();
    assert!(matches!(error, BlockError::InUse { .. }), "{error}");
    drop((reader, second));
    let in_use = |error: &BlockError| matches!(error, BlockError::InUse { .. });
    let writer = when_free(in_use, || Block::new(&config(&file, false)));
    assert!(matches!(Block::new(&config(&file, true)), Err(BlockError::InUse { .. })));
    drop(writer);
    when_free(in_use, || Block::new(&config(&file, true)));
}

#[test]
fn what_is_no_image_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let config = |path: &str| BlockConfig {
        path: directory.path().join(path),
        id: "d".to_owned(),
        read_only: true,
        ..BlockConfig::default()
    };
    assert!(matches!(Block::new(&config("missing")), Err(BlockError::Open { .. })));
    assert!(matches!(Block::new(&config(".")), Err(BlockError::Kind { .. })));
    assert!(matches!(Block::new(&config("/dev/null")), Err(BlockError::Kind { .. })));
    std::fs::write(directory.path().join("small"), [0; 511]).unwrap();
    assert!(matches!(Block::new(&config("small")), Err(BlockError::Empty { .. })));
    symlink("loop", directory.path().join("loop")).unwrap();
    assert!(matches!(Block::new(&config("loop")), Err(BlockError::Open { .. })));
    let long = BlockConfig { id: "x".repeat(21), ..config("small") };
    assert!(matches!(Block::new(&long), Err(BlockError::Id(_))));
}
