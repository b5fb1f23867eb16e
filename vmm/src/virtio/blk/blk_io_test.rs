//! Engines, many requests at once, several queues, clearing, limits, and changes while requests are in flight.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::cast_possible_truncation, reason = "tests")]

use std::io::Write as _;
use std::os::unix::fs::FileExt;

use super::blk_test::{Disk, IOERR, OK, SECTORS, UNSUPP, image};
use super::{BlockConfig, EngineKind};
use crate::config::{RateLimiter, TokenBucket};
use crate::virtio::spec::feature;
use crate::virtio::testing::{DriverQueue, Part, wait_for};

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

type Way = (&'static str, fn(&mut BlockConfig));

/// Every way in which requests get done here. What this machine lacks is said.
fn ways() -> Vec<Way> {
    let all: [Way; 4] = [
        ("Sync", |_| {}),
        ("Async", |config| config.asynchronous = true),
        ("Sync, direct", |config| config.direct = true),
        ("Async, direct", |config| (config.asynchronous, config.direct) = (true, true)),
    ];
    all.into_iter().filter(|(name, change)| is_possible(name, *change)).collect()
}

fn is_possible(name: &str, change: fn(&mut BlockConfig)) -> bool {
    let file = image();
    let mut config = super::blk_test::config(&file, false);
    change(&mut config);
    let block = super::Block::new(&config);
    let possible = block.is_ok_and(|block| (block.control().engine() == EngineKind::Async) == config.asynchronous);
    if !possible {
        let _ = writeln!(std::io::stderr(), "SKIPPED: {name} is not possible on this machine or file system");
    }
    possible
}

/// A request of one aligned part in flight: its data and status.
struct Pending {
    data: u64,
    status: u64,
}

impl Disk {
    fn start(&mut self, queue: usize, kind: u32, sector: u64, write: &[u8], read: u32) -> Pending {
        let header = self.machine.allocate(16);
        let bytes = [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat();
        self.machine.write(header, &bytes);
        let data = self.machine.allocate(u64::from(read).max(write.len() as u64).max(1));
        self.machine.write(data, write);
        let status = self.machine.allocate(1);
        self.machine.write(status, &[0xee]);
        let len = read.max(write.len() as u32);
        let mut parts = vec![Part { address: header, len: 16, writable: false }];
        if len > 0 {
            parts.push(Part { address: data, len, writable: read > 0 });
        }
        parts.push(Part { address: status, len: 1, writable: true });
        self.driver.queues[queue].add(&parts);
        Pending { data, status }
    }

    fn status(&self, pending: &Pending) -> u8 {
        self.machine.read(pending.status, 1)[0]
    }

    fn range(&mut self, kind: u32, sector: u64, sectors: u32, flags: u32) -> u8 {
        let range = [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat();
        self.request(kind, 0, &range, 0).0
    }
}

#[test]
fn every_way_moves_the_same_data() {
    for (name, change) in ways() {
        let mut disk = Disk::with(image(), change);
        // In two parts of odd length: what direct I/O can't take as it is.
        assert_eq!(disk.request(OUT, 8, &[0xa5; 8 * 512], 0).0, OK, "{name}");
        let (status, data, used) = disk.request(IN, 0, &[], 64 * 512);
        assert_eq!((status, used), (OK, 64 * 512 + 1), "{name}");
        for (sector, bytes) in data.chunks(512).enumerate() {
            let expected = if (8..16).contains(&sector) { 0xa5 } else { sector as u8 };
            assert!(bytes.iter().all(|&byte| byte == expected), "{name}: sector {sector}");
        }
        // In one aligned part.
        let read = disk.start(0, IN, 8, &[], 4096);
        disk.driver.queues[0].kick();
        assert_eq!(disk.driver.queues[0].wait_used().1, 4097, "{name}");
        assert_eq!((disk.status(&read), disk.machine.read(read.data, 4096)), (OK, vec![0xa5; 4096]), "{name}");
        assert_eq!(disk.request(FLUSH, 0, &[], 0).0, OK, "{name}");
        assert_eq!(disk.request(IN, SECTORS, &[], 4096).0, IOERR, "{name}");
    }
}

#[test]
fn many_requests_take_one_doorbell() {
    for (name, change) in ways() {
        let mut disk = Disk::with(image(), change);
        let features = disk.driver.device_features() | feature::RING_EVENT_IDX;
        disk.driver.start_with(features);
        let counters = disk.machine.root.counters(disk.driver.slot).unwrap();
        let before = counters.notifications.get();
        let writes: Vec<_> = (0..8u64).map(|n| disk.start(0, OUT, 8 * n, &[n as u8 + 100; 4096], 0)).collect();
        disk.driver.queues[0].kick();
        for _ in &writes {
            disk.driver.queues[0].wait_used();
        }
        assert!(writes.iter().all(|write| disk.status(write) == OK), "{name}");
        assert_eq!(counters.notifications.get() - before, 1, "{name}");
        let content = std::fs::read(disk.file.path()).unwrap();
        for (sector, bytes) in content.chunks(512).enumerate() {
            assert!(bytes.iter().all(|&byte| byte == (sector / 8) as u8 + 100), "{name}: sector {sector}");
        }
    }
}

#[test]
fn each_queue_is_served() {
    for (name, change) in ways() {
        let mut disk = Disk::with(image(), |config| {
            change(config);
            config.queues = 3;
        });
        assert_ne!(disk.driver.device_features() & 1 << 12, 0, "VIRTIO_BLK_F_MQ");
        assert_eq!(disk.machine.device_read(disk.driver.device + 34), 3u16.to_le_bytes(), "num_queues");
        assert_eq!(disk.driver.queues.len(), 3);
        for round in 0..3 {
            let started: Vec<_> = (0..3).map(|queue| disk.start(queue, IN, 8 * queue as u64, &[], 4096)).collect();
            disk.driver.queues.iter().for_each(DriverQueue::kick);
            for (queue, read) in started.iter().enumerate() {
                disk.driver.queues[queue].wait_used();
                assert_eq!(disk.machine.read(read.data, 1), [8 * queue as u8], "{name}, queue {queue}");
            }
            if round == 1 {
                disk.driver.start();
            }
        }
    }
    assert_eq!(Disk::with(image(), |_| {}).driver.device_features() & 1 << 12, 0, "one queue is no multiqueue");
}

#[test]
fn a_driver_without_flush_gets_durable_writes() {
    for (name, change) in ways() {
        let mut disk = Disk::with(image(), change);
        let features = disk.driver.device_features() & !(feature::RING_EVENT_IDX | 1 << 9);
        disk.driver.start_with(features);
        let write = disk.start(0, OUT, 0, &[9; 4096], 0);
        disk.driver.queues[0].kick();
        disk.driver.queues[0].wait_used();
        assert_eq!(disk.status(&write), OK, "{name}");
        assert_eq!(std::fs::read(disk.file.path()).unwrap()[0], 9, "{name}");
    }
}

#[test]
fn ranges_are_cleared() {
    for (name, change) in ways() {
        let mut disk = Disk::with(image(), change);
        for (flags, sector) in [(0, 8), (1, 24)] {
            assert_eq!(disk.range(WRITE_ZEROES, sector, 8, flags), OK, "{name}");
            let (_, data, _) = disk.request(IN, sector - 8, &[], 24 * 512);
            assert!(data[8 * 512..16 * 512].iter().all(|&byte| byte == 0), "{name}");
            assert_eq!((data[0], data[8 * 512 - 1]), (sector as u8 - 8, sector as u8 - 1), "{name}: before");
            assert_eq!(data[16 * 512], sector as u8 + 8, "{name}: behind");
        }
        assert_eq!(disk.range(DISCARD, 40, 8, 0), OK, "{name}");
        assert_eq!(std::fs::metadata(disk.file.path()).unwrap().len(), SECTORS * 512, "{name}");
    }
}

#[test]
fn ranges_are_checked() {
    let mut disk = Disk::with(image(), |_| {});
    for kind in [DISCARD, WRITE_ZEROES] {
        assert_eq!(disk.range(kind, SECTORS - 1, 2, 0), IOERR, "outside");
        assert_eq!(disk.range(kind, u64::MAX, 1, 0), IOERR, "overflow");
        assert_eq!(disk.range(kind, 0, u32::MAX, 0), IOERR, "too long");
        assert_eq!(disk.range(kind, 0, 1, 2), UNSUPP, "reserved flag");
        assert_eq!(disk.request(kind, 0, &[], 0).0, IOERR, "no range");
        assert_eq!(disk.request(kind, 0, &[0; 15], 0).0, IOERR, "part of a range");
        assert_eq!(disk.request(kind, 0, &[0; 17 * 16], 0).0, IOERR, "too many ranges");
        assert_eq!(disk.range(kind, 0, 0, 0), OK, "nothing");
    }
    assert_eq!(disk.range(DISCARD, 0, 1, 1), UNSUPP, "a discard doesn't unmap");
    let mut read_only = Disk::with(image(), |config| config.read_only = true);
    assert_eq!(read_only.range(WRITE_ZEROES, 0, 1, 0), IOERR);
    assert_eq!(read_only.range(DISCARD, 0, 1, 0), IOERR);
    assert_eq!(std::fs::read(read_only.file.path()).unwrap()[512], 1);
}

#[test]
fn a_request_of_more_than_the_limits_allow_fails_at_once() {
    let file = image();
    file.as_file().set_len(1 << 30).unwrap();
    let mut disk = Disk::with(file, |_| {});
    let (header, data) = (disk.machine.allocate(16), disk.machine.allocate(1 << 20));
    disk.machine.write(header, &[0; 16]);
    let mut parts = vec![Part { address: header, len: 16, writable: false }];
    parts.extend([Part { address: data, len: 1 << 20, writable: true }; 64]);
    parts.push(Part { address: header, len: 1, writable: true });
    disk.driver.queues[0].add(&parts);
    disk.driver.queues[0].kick();
    assert_eq!(disk.driver.queues[0].wait_used().1, 1);
    assert_eq!(disk.machine.read(header, 1), [IOERR]);
}

fn ops(size: u64) -> RateLimiter {
    RateLimiter { bandwidth: None, ops: Some(TokenBucket { size, one_time_burst: None, refill_time: 86_400_000 }) }
}

#[test]
fn a_limit_holds_requests_back_until_it_changes() {
    for (name, change) in ways() {
        let mut disk = Disk::with(image(), |config| {
            change(config);
            config.limits = Some(ops(2));
        });
        let counters = disk.machine.root.counters(disk.driver.slot).unwrap();
        for sector in 0..3 {
            disk.start(0, IN, 8 * sector, &[], 4096);
        }
        disk.driver.queues[0].kick();
        wait_for("a wait", || counters.throttled.get() == 1);
        disk.driver.queues[0].wait_used();
        disk.driver.queues[0].wait_used();
        // A held request is neither done nor lost by a pause.
        disk.machine.root.pause_devices();
        disk.machine.root.resume_devices();
        assert!(disk.driver.queues[0].poll_used().is_none(), "{name}");
        disk.control.limit(&ops(0));
        disk.driver.queues[0].wait_used();
        assert_eq!(counters.requests.get(), 3, "{name}");
    }
}

#[test]
fn zeros_count_as_written_bytes_and_discards_do_not() {
    let bandwidth = TokenBucket { size: 4096, one_time_burst: None, refill_time: 86_400_000 };
    let limits = RateLimiter { bandwidth: Some(bandwidth), ops: None };
    let mut disk = Disk::with(image(), |config| config.limits = Some(limits));
    let counters = disk.machine.root.counters(disk.driver.slot).unwrap();
    assert_eq!(disk.range(DISCARD, 0, 64, 0), OK);
    assert_eq!(disk.range(WRITE_ZEROES, 0, 8, 1), OK);
    let range = [&8u64.to_le_bytes()[..], &8u32.to_le_bytes(), &[0; 4]].concat();
    disk.start(0, WRITE_ZEROES, 0, &range, 0);
    disk.driver.queues[0].kick();
    wait_for("a wait", || counters.throttled.get() == 1);
    assert_eq!(disk.driver.queues[0].poll_used(), None);
}

#[test]
fn a_driver_sees_that_its_disk_has_grown() {
    let mut disk = Disk::with(image(), |_| {});
    disk.driver.put16(crate::virtio::spec::pci::common::CONFIG_MSIX_VECTOR, 0);
    assert_eq!(disk.request(OUT, SECTORS, &[1; 512], 0).0, IOERR);
    disk.machine.fabric.take_messages();
    disk.file.as_file().set_len(2 * SECTORS * 512 + 100).unwrap();
    assert_eq!(disk.control.resize().unwrap(), 2 * SECTORS * 512);
    disk.machine.root.config_changed(disk.driver.slot);
    assert_eq!(disk.machine.device_read(disk.driver.device), (2 * SECTORS).to_le_bytes());
    assert_eq!(disk.machine.fabric.take_messages(), [(0, 1)]);
    assert_eq!(disk.request(OUT, SECTORS, &[1; 512], 0).0, OK);
}

/// Starts reads of a part that no page cache has yet.
fn start_reads(disk: &mut Disk) -> Vec<Pending> {
    disk.file.as_file().set_len(64 << 20).unwrap();
    disk.control.resize().unwrap();
    let reads: Vec<_> = (0..40).map(|n| disk.start(0, IN, n * 2048, &[], 64 << 10)).collect();
    disk.driver.queues[0].kick();
    reads
}

#[test]
fn nothing_is_in_flight_after_a_reset() {
    for (name, change) in ways() {
        for _ in 0..10 {
            let mut disk = Disk::with(image(), change);
            let reads = start_reads(&mut disk);
            disk.driver.negotiate(None);
            for read in &reads {
                disk.machine.write(read.data, &[0x77; 64 << 10]);
            }
            disk.driver.start();
            assert_eq!(disk.request(IN, 1, &[], 512).1, [1; 512], "{name}");
            for read in &reads {
                assert!(
                    disk.machine.read(read.data, 64 << 10).iter().all(|&byte| byte == 0x77),
                    "{name}: write after reset"
                );
            }
        }
    }
}

#[test]
fn nothing_is_in_flight_during_a_pause() {
    for (name, change) in ways() {
        let mut disk = Disk::with(image(), change);
        let reads = start_reads(&mut disk);
        disk.machine.root.pause_devices();
        let mut done = 0;
        while disk.driver.queues[0].poll_used().is_some() {
            done += 1;
        }
        for read in reads.iter().filter(|read| disk.status(read) == 0xee) {
            disk.machine.write(read.data, &[0x77; 64 << 10]);
        }
        let answered = reads.iter().filter(|read| disk.status(read) == OK).count();
        assert_eq!(done, answered, "{name}: what is done is in the used ring");
        disk.machine.root.resume_devices();
        for _ in done..reads.len() {
            disk.driver.queues[0].wait_used();
        }
        assert!(reads.iter().all(|read| disk.status(read) == OK), "{name}");
    }
}

#[test]
fn a_vanished_machine_waits_for_what_is_in_flight() {
    for (_, change) in ways() {
        let mut disk = Disk::with(image(), change);
        start_reads(&mut disk);
        disk.machine.root.unplug(disk.driver.slot);
    }
}

#[test]
fn parts_of_a_block_fail() {
    let mut disk = Disk::with(image(), |_| {});
    let block = u32::from_le_bytes(disk.machine.device_read(disk.driver.device + 20));
    assert_eq!(block, 512);
    assert_eq!(disk.request(IN, 0, &[], 256).0, IOERR);
    disk.file.as_file().write_all_at(&[5; 512], 512).unwrap();
    assert_eq!(disk.request(IN, 1, &[], 512).1, [5; 512]);
}
