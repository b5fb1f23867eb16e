//! Attacks through registers, configuration space and the monitor's own doings, each on every device. After each the device
//! works again.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::cast_possible_truncation, reason = "tests")]

use std::fs::File;
use std::os::fd::AsRawFd;
use std::process::Command;
use std::sync::Arc;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::attack_ring_test::each_device;
use super::spec::pci::common;
use super::spec::{feature, status};
use super::specimen::{Kind, Specimen};
use super::testing::{Machine, Part, WINDOW};

const WRITABLE: u16 = 2;

/// Asks for much on each queue: chains of all sizes, readable and writable, over `buffer`, which has 1 MiB.
fn busy(specimen: &mut Specimen, buffer: u64) {
    for queue in &mut specimen.driver.queues {
        for n in 0..queue.size.min(32) {
            let part = |at: u64, len: u32, writable: bool| Part { address: buffer + at, len, writable };
            let len = 16 + 500 * u32::from(n);
            queue.add(&[part(0, 16, false), part(4096, len, false), part(65536, len, true), part(131_072, 1, true)]);
            queue.kick();
        }
    }
}

#[test]
fn garbage_in_the_msix_table_does_no_harm() {
    each_device(|specimen| {
        let (machine, driver) = (Arc::clone(&specimen.machine), &specimen.driver);
        for garbage in [0xff, 0x00, 0xa5] {
            for offset in 0..0x810 {
                for width in [1, 2, 4, 8] {
                    machine.device_write(driver.msix_table + offset, &[garbage; 8][..width]);
                }
            }
            for vector in [0, 1, 2, 0x7ff, u16::MAX] {
                driver.put16(common::CONFIG_MSIX_VECTOR, vector);
                for queue in 0..=driver.queues.len() as u16 {
                    driver.put16(common::QUEUE_SELECT, queue);
                    driver.put16(common::QUEUE_MSIX_VECTOR, vector);
                }
                machine.root.config_changed(driver.slot);
            }
        }
        let control = driver.msix_capability + 2;
        for bits in [0u16, 0xffff, 0x4000, 0x8000] {
            machine.config_write(driver.slot, control, &bits.to_le_bytes());
        }
        // Interrupts, too, find what is there now.
        specimen.works();
    });
}

#[test]
fn writes_to_every_offset_in_every_width_do_no_harm() {
    each_device(|specimen| {
        let (machine, slot) = (Arc::clone(&specimen.machine), specimen.driver.slot);
        let identity: [u8; 4] = machine.config_read(slot, 0);
        for garbage in [0xff, 0x00, 0x5a] {
            for width in [1, 2, 3, 4, 8, 16] {
                let data = [garbage; 16];
                for offset in 0..4096 {
                    machine.config_write(slot, offset, &data[..width]);
                }
                specimen.restart();
                for offset in 0..8200 {
                    machine.device_write(specimen.driver.common + offset, &data[..width]);
                }
                specimen.restart();
                for offset in (0..64).chain((0..1 << 20).step_by(4093)) {
                    machine.device_write(specimen.driver.notify + offset, &data[..width]);
                    machine.device_read::<8>(specimen.driver.notify + offset);
                }
            }
        }
        assert_eq!(machine.config_read(slot, 0), identity);
    });
}

#[test]
fn writes_to_the_device_configuration_do_no_harm() {
    each_device(|specimen| {
        for garbage in [0xff, 0x00, 0x5a] {
            for width in [1, 2, 4, 8] {
                for offset in 0..300 {
                    specimen.machine.device_write(specimen.driver.device + offset, &[garbage; 8][..width]);
                }
            }
        }
        specimen.works();
    });
}

#[test]
fn bars_that_move_while_the_device_works_do_no_harm() {
    each_device(|specimen| {
        let machine = Arc::clone(&specimen.machine);
        let mut neighbour = Specimen::within(&machine, Kind::Rng);
        neighbour.driver.start();
        let buffer = machine.allocate(1 << 20);
        let slot = specimen.driver.slot;
        let places = [
            neighbour.driver.common,
            neighbour.driver.notify,
            WINDOW.start - (1 << 20),
            WINDOW.end - (1 << 20),
            WINDOW.end,
            0,
            0xffff_f000,
            WINDOW.start + 0xffc_0000,
            specimen.driver.notify,
        ];
        for place in places {
            for register in [0x10, 0x18, 0x10] {
                busy(specimen, buffer);
                machine.config_write(slot, register, &(place as u32).to_le_bytes());
                for at in [place, place + 0x14, place + 0x1000, place + 0x2000 - 8] {
                    machine.device_write(at, &[0xff; 4]);
                    machine.device_read::<4>(at);
                }
                machine.config_write(slot, register + 4, &[0xff; 4]);
                machine.config_write(slot, register + 4, &[0; 4]);
            }
            specimen.restart();
            neighbour.restart();
            neighbour.works();
        }
        specimen.works();
    });
}

#[test]
fn queues_enabled_too_late_are_not_used() {
    each_device(|specimen| {
        let driver = &mut specimen.driver;
        let wanted = driver.queues.len() as u16;
        for late in 0..wanted {
            driver.queues.clear();
            driver.negotiate(None);
            for index in (0..wanted).filter(|&index| index != late) {
                driver.add_queue(index);
            }
            driver.driver_ok();
            let started = driver.status() & status::DEVICE_NEEDS_RESET == 0;
            driver.add_queue(late);
            assert!(!started || driver.get16(common::QUEUE_ENABLE) == 0, "queue {late} was enabled behind the start");
            driver.queues.iter().for_each(super::testing::DriverQueue::kick);
            driver.driver_ok();
        }
    });
}

#[test]
fn a_start_without_queues_does_no_harm() {
    each_device(|specimen| {
        let driver = &mut specimen.driver;
        driver.queues.clear();
        driver.negotiate(None);
        driver.driver_ok();
        for queue in 0..8 {
            specimen.machine.device_write(driver.notify + 4 * queue, &(queue as u16).to_le_bytes());
        }
        specimen.machine.root.pause_devices();
        specimen.machine.root.resume_devices();
    });
}

#[test]
fn a_reset_in_the_middle_of_requests_ends_them() {
    each_device(|specimen| {
        let machine = Arc::clone(&specimen.machine);
        let buffer = machine.allocate(1 << 20);
        for _ in 0..40 {
            specimen.driver.start();
            busy(specimen, buffer);
            specimen.driver.put8(common::DEVICE_STATUS, 0);
            // From here on the memory is the driver's.
            machine.write(buffer, &vec![0x77; 1 << 20]);
            std::thread::yield_now();
            assert!(machine.read(buffer, 1 << 20).iter().all(|&byte| byte == 0x77), "written behind the reset");
            machine.write(buffer, &vec![0; 1 << 20]);
        }
    });
}

#[test]
fn a_pause_stands_still_also_with_broken_rings() {
    each_device(|specimen| {
        let machine = Arc::clone(&specimen.machine);
        let buffer = machine.allocate(1 << 20);
        for round in 0..20 {
            specimen.driver.start();
            busy(specimen, buffer);
            for queue in &mut specimen.driver.queues {
                match round % 4 {
                    0 => queue.offer(u16::MAX),
                    1 => queue.set_available_index(0x8000),
                    2 => {
                        queue.descriptor(0, 48 << 20, 1, WRITABLE, 0);
                        queue.offer(0);
                    }
                    _ => machine.write(queue.available, &vec![0xff; 6 + 2 * usize::from(queue.size)]),
                }
                queue.kick();
            }
            machine.root.pause_devices();
            let seen = machine.read(buffer, 1 << 20);
            std::thread::yield_now();
            assert!(machine.read(buffer, 1 << 20) == seen, "written while paused");
            if round % 2 == 0 {
                machine.root.resume_devices();
                specimen.driver.queues.iter().for_each(super::testing::DriverQueue::kick);
            }
        }
        machine.root.resume_devices();
    });
}

#[test]
fn an_unplugged_device_lets_go_of_memory_at_once() {
    for kind in Kind::ALL {
        eprintln!("device: {kind:?}");
        let machine = Machine::new();
        let buffer = machine.allocate(1 << 20);
        for _ in 0..10 {
            let mut specimen = Specimen::within(&machine, kind);
            specimen.driver.start();
            busy(&mut specimen, buffer);
            assert!(machine.root.unplug(specimen.driver.slot));
            machine.write(buffer, &vec![0x77; 1 << 20]);
            specimen.driver.queues.iter().for_each(super::testing::DriverQueue::kick);
            assert!(machine.read(buffer, 1 << 20).iter().all(|&byte| byte == 0x77), "written behind the unplugging");
            machine.write(buffer, &vec![0; 1 << 20]);
        }
        assert!(machine.fabric.doorbell_addresses().is_empty());
        let mut next = Specimen::within(&machine, kind);
        next.driver.start();
        next.works();
    }
}

#[test]
fn processors_that_fight_over_a_device_do_no_harm() {
    each_device(|specimen| {
        let buffer = specimen.machine.allocate(1 << 20);
        let (machine, slot) = (Arc::clone(&specimen.machine), specimen.driver.slot);
        let (common, notify) = (specimen.driver.common, specimen.driver.notify);
        let fight = std::thread::spawn(move || {
            for round in 0u32..300 {
                machine.device_write(common + common::DEVICE_STATUS, &[(round % 16) as u8]);
                machine.device_write(notify + u64::from(4 * (round % 5)), &[0; 2]);
                machine.config_write(slot, 4, &[if round % 3 == 0 { 0 } else { 6 }, 4]);
                machine.device_read::<4>(common);
            }
            machine.config_write(slot, 4, &[6, 4]);
        });
        for _ in 0..30 {
            let bits = [status::ACKNOWLEDGE, status::DRIVER, status::FEATURES_OK, status::DRIVER_OK];
            bits.iter().for_each(|&bit| specimen.driver.put8(common::DEVICE_STATUS, bit));
            busy(specimen, buffer);
        }
        fight.join().unwrap();
    });
}

/// Resident memory of this process.
fn resident_kib() -> usize {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Rings doorbells, also of queues that don't exist, and resets and breaks the device again and again.
fn storm(specimen: &mut Specimen) {
    let machine = Arc::clone(&specimen.machine);
    for round in 0u64..10_000 {
        for queue in &specimen.driver.queues {
            queue.kick();
        }
        for queue in [round % 64, 0xffff, (1 << 18) - 1] {
            machine.device_write(specimen.driver.notify + 4 * queue, &(queue as u16).to_le_bytes());
        }
        if round % 100 == 0 {
            specimen.driver.queues.iter_mut().for_each(|queue| queue.offer(u16::MAX));
            machine.root.config_changed(specimen.driver.slot);
        }
        if round % 1000 == 0 {
            specimen.driver.start();
        }
    }
}

/// In a process of its own, because other tests take memory, too.
#[test]
fn a_storm_of_notifications_takes_no_memory() {
    const MARK: &str = "HULL_STORM_TEST";
    const MOST_KIB: usize = 8192;
    if std::env::var_os(MARK).is_none() {
        let name = "virtio::attack_bus_test::a_storm_of_notifications_takes_no_memory";
        let mut child = Command::new(std::env::current_exe().unwrap());
        assert!(child.args(["--exact", name, "--nocapture"]).env(MARK, "1").status().unwrap().success());
        return;
    }
    each_device(|specimen| {
        storm(specimen);
        let before = resident_kib();
        storm(specimen);
        let grown = resident_kib().saturating_sub(before);
        assert!(grown < MOST_KIB, "{grown} KiB more after a second storm");
    });
}

/// Does what [`Driver::start`](super::testing::Driver::start) does, with only `spare` descriptors left from `DRIVER_OK` on. True if
/// the device has started.
fn start_with_few_descriptors(specimen: &mut Specimen, spare: u64) -> bool {
    let driver = &mut specimen.driver;
    driver.queues.clear();
    driver.enable_msix();
    driver.negotiate(Some(driver.device_features() & !feature::RING_EVENT_IDX));
    for index in 0..driver.get16(common::NUM_QUEUES) {
        driver.add_queue(index);
    }
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let next = File::open("/dev/null").unwrap().as_raw_fd();
    setrlimit(Resource::RLIMIT_NOFILE, u64::from(next.unsigned_abs()) + spare, hard).unwrap();
    driver.driver_ok();
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
    driver.status() & status::DEVICE_NEEDS_RESET == 0
}

/// In a process of its own, because the limit is for all of it.
#[test]
fn a_device_that_could_not_start_starts_when_there_are_descriptors_again() {
    const MARK: &str = "HULL_DESCRIPTOR_TEST";
    if std::env::var_os(MARK).is_none() {
        let name = "virtio::attack_bus_test::a_device_that_could_not_start_starts_when_there_are_descriptors_again";
        let mut child = Command::new(std::env::current_exe().unwrap());
        assert!(child.args(["--exact", name, "--nocapture"]).env(MARK, "1").status().unwrap().success());
        return;
    }
    each_device(|specimen| {
        let started = (0..32).filter(|&spare| {
            let started = start_with_few_descriptors(specimen, spare);
            specimen.restart();
            specimen.works();
            started
        });
        assert!((1..32).contains(&started.count()), "the limit is out of place");
    });
}
