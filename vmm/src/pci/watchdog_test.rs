//! The watchdog on the bus: what Linux's driver does, and what a hostile one might.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::cast_possible_truncation, reason = "tests")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{PciSlot, WatchdogFunction};
use crate::device::Alarm;
use crate::device::watchdog::WatchdogCounters;
use crate::virtio::specimen::{Kind, Specimen};
use crate::virtio::testing::{Machine, WINDOW};

const SLOT: PciSlot = PciSlot(1);
const HOUR: Duration = Duration::from_secs(3600);

/// A machine with a watchdog, and where its registers are.
struct Guest {
    machine: Arc<Machine>,
    watchdog: Arc<WatchdogFunction>,
    registers: u64,
}

impl Guest {
    fn new() -> Self {
        let machine = Machine::new();
        let watchdog = machine.root.plug_watchdog(Arc::new(Alarm::new().unwrap())).unwrap();
        let registers = u64::from(u32::from_le_bytes(machine.config_read(SLOT, 0x10))) & !0xf;
        let this = Self { machine, watchdog, registers };
        this.decode();
        this
    }

    /// BAR where it was, decoding on.
    fn decode(&self) {
        self.machine.config_write(SLOT, 0x10, &(self.registers as u32).to_le_bytes());
        self.machine.config_write(SLOT, 0x14, &[0; 4]);
        self.machine.config_write(SLOT, 4, &[6, 4]);
    }

    fn unlocked(&self, register: u64, data: &[u8]) {
        for key in [0x80, 0x86] {
            self.machine.device_write(self.registers + 0xc, &[key, 0]);
        }
        self.machine.device_write(self.registers + register, data);
    }

    /// Sets it to two seconds and starts it.
    fn start(&self) {
        self.machine.config_write(SLOT, 0x60, &[3, 0]);
        self.machine.config_write(SLOT, 0x68, &[0]);
        for register in [0, 4] {
            self.unlocked(register, &1024u32.to_le_bytes());
        }
        self.unlocked(0xc, &[0, 1]);
        self.machine.config_write(SLOT, 0x68, &[2]);
    }

    fn works(&self) {
        self.decode();
        self.start();
        assert_eq!(self.machine.device_read(self.registers), [0, 4, 0, 0]);
        assert!(self.machine.root.is_active(SLOT));
        assert_eq!(self.watchdog.due(Instant::now()), None);
        let silent = self.watchdog.due(Instant::now() + HOUR);
        assert!(silent.is_some_and(|silent| silent >= HOUR), "{silent:?}");
    }
}

#[test]
fn linux_finds_it_and_a_silent_guest_is_due() {
    let guest = Guest::new();
    assert_eq!(guest.machine.config_read(SLOT, 0), [0x86, 0x80, 0xab, 0x25]);
    assert_eq!(guest.machine.config_read(SLOT, 6), [0, 0], "no capabilities");
    guest.works();
    assert_eq!(guest.machine.device_read(guest.registers + 0xc), [0, 2, 0, 0], "timed out");
    assert_eq!(guest.watchdog.timer_counters(), WatchdogCounters { reloads: 1, expirations: 1 });
}

#[test]
fn it_can_be_locked() {
    let guest = Guest::new();
    guest.start();
    guest.machine.config_write(SLOT, 0x68, &[3]);
    for value in [0, 1, 2, 0xff] {
        guest.machine.config_write(SLOT, 0x68, &[value]);
        assert_eq!(guest.machine.config_read(SLOT, 0x68), [3]);
    }
    assert!(guest.watchdog.due(Instant::now() + HOUR).is_some());
}

#[test]
fn a_paused_machine_is_never_due() {
    let guest = Guest::new();
    guest.start();
    guest.machine.root.pause_devices();
    assert_eq!(guest.watchdog.due(Instant::now() + HOUR), None);
    guest.machine.root.resume_devices();
    assert!(guest.watchdog.due(Instant::now() + HOUR).is_some());
}

#[test]
fn an_unplugged_watchdog_is_never_due_and_its_slot_is_empty() {
    let guest = Guest::new();
    guest.start();
    assert!(guest.machine.root.unplug(SLOT));
    guest.start();
    assert_eq!(guest.machine.config_read(SLOT, 0), [0; 256]);
    assert_eq!(guest.machine.device_read(guest.registers), [0; 4]);
    let mut next = Specimen::within(&guest.machine, Kind::Rng);
    next.driver.start();
    next.works();
}

#[test]
fn writes_to_every_offset_in_every_width_do_no_harm() {
    let guest = Guest::new();
    let mut neighbour = Specimen::within(&guest.machine, Kind::Rng);
    neighbour.driver.start();
    for garbage in [0xff, 0x00, 0x5a, 0x80, 0x86] {
        for width in [1, 2, 3, 4, 8, 16] {
            let data = [garbage; 16];
            // But for the lock, which nothing would open again.
            for offset in (0..4096).filter(|offset| !(0x68 - 15..=0x68).contains(offset)) {
                guest.machine.config_write(SLOT, offset, &data[..width]);
            }
            guest.decode();
            for offset in 0..8200 {
                guest.machine.device_write(guest.registers + offset, &data[..width]);
                guest.unlocked(offset, &data[..width]);
            }
        }
        guest.works();
        neighbour.restart();
        neighbour.works();
    }
}

#[test]
fn a_bar_that_moves_does_no_harm() {
    let guest = Guest::new();
    let mut neighbour = Specimen::within(&guest.machine, Kind::Rng);
    neighbour.driver.start();
    for place in [neighbour.driver.common, neighbour.driver.notify, WINDOW.end - 4096, WINDOW.end, 0, 0xffff_f000] {
        guest.machine.config_write(SLOT, 0x10, &(place as u32).to_le_bytes());
        guest.machine.device_write(place + 0xc, &[0x80, 0]);
        guest.machine.device_read::<4>(place);
        guest.decode();
        neighbour.restart();
        neighbour.works();
    }
    let elsewhere = WINDOW.start + (100 << 20);
    guest.machine.config_write(SLOT, 0x10, &(elsewhere as u32).to_le_bytes());
    assert_eq!(guest.machine.device_read(elsewhere), [0xff, 0xff, 0xf, 0], "outside of the pages, too");
    guest.works();
}

#[test]
fn processors_that_fight_over_it_do_no_harm() {
    let guest = Guest::new();
    let (machine, registers) = (Arc::clone(&guest.machine), guest.registers);
    let fight = std::thread::spawn(move || {
        for round in 0..3000usize {
            machine.device_write(registers + 0xc, &[[0x80, 0x86, 0][round % 3], (round % 5) as u8]);
            machine.config_write(SLOT, 0x68, &[if round % 2 == 0 { 2 } else { 0 }]);
            machine.config_write(SLOT, 4, &[if round % 7 == 0 { 0 } else { 6 }, 4]);
        }
    });
    for _ in 0..1000 {
        guest.start();
        guest.watchdog.due(Instant::now());
        guest.machine.root.pause_devices();
        guest.machine.root.resume_devices();
    }
    fight.join().unwrap();
    guest.works();
}
