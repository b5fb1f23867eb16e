//! Configuration space, BARs, MSI-X.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::cast_possible_truncation, reason = "tests")]

use std::sync::Arc;

use super::{PciSlot, PlugError};
use crate::virtio::blk::{Block, BlockConfig};
use crate::virtio::rng::Rng;
use crate::virtio::spec::pci::{cap, common};
use crate::virtio::testing::{Driver, Machine, WINDOW, wait_for};

fn started() -> (Arc<Machine>, Driver) {
    let machine = Machine::new();
    let mut driver = machine.plug(Box::new(Rng::new()));
    driver.start();
    (machine, driver)
}

fn word(machine: &Machine, slot: PciSlot, register: usize) -> u16 {
    u16::from_le_bytes(machine.config_read(slot, register))
}

fn double(machine: &Machine, slot: PciSlot, register: usize) -> u32 {
    u32::from_le_bytes(machine.config_read(slot, register))
}

fn works(driver: &mut Driver) {
    assert_eq!(driver.queues[0].request(&[], 16).len(), 16);
}

#[test]
fn absent_functions_read_as_zero_and_take_no_writes() {
    let machine = Machine::new();
    assert_eq!(double(&machine, PciSlot(0), 0), 0x0008_1b36, "host bridge");
    for slot in 1..32 {
        machine.config_write(PciSlot(slot), 0, &[0xff; 4]);
        machine.config_write(PciSlot(slot), 0x10, &[0xff; 4]);
        assert_eq!(machine.config_read(PciSlot(slot), 0), [0; 64]);
    }
}

#[test]
fn identity_of_a_virtio_function() {
    let (machine, driver) = started();
    assert_eq!(double(&machine, driver.slot, 0), 0x1044_1af4);
    assert_eq!(word(&machine, driver.slot, 6), 0x10, "has capabilities");
    assert_eq!(machine.config_read(driver.slot, 0x3d), [0], "no legacy interrupt");
    for register in [0, 6, 8, 0x2c, 0x34, 0x3d, 0x40, 0x44] {
        let before: [u8; 4] = machine.config_read(driver.slot, register & !3);
        machine.config_write(driver.slot, register, &[!before[register & 3]]);
        let after: [u8; 4] = machine.config_read(driver.slot, register & !3);
        assert_eq!(before, after, "register {register:#x} is read-only");
    }
}

#[test]
fn capabilities_come_in_the_order_in_which_linux_looks_for_them() {
    let (machine, driver) = started();
    let [mut at] = machine.config_read::<1>(driver.slot, 0x34).map(usize::from);
    let mut order = Vec::new();
    while at != 0 {
        let [id, next, _, kind] = machine.config_read(driver.slot, at);
        order.push((id, if id == 9 { kind } else { 0 }));
        at = usize::from(next);
    }
    let vendor = [cap::COMMON, cap::ISR, cap::NOTIFY, cap::DEVICE, cap::PCI_CFG].map(|kind| (9, kind));
    assert_eq!(order, [&vendor[..], &[(0x11, 0)]].concat());
}

#[test]
fn bars_report_their_size_as_linux_asks() {
    let machine = Machine::new();
    let slot = machine.root.plug("rng", Box::new(Rng::new())).unwrap();
    let sizes = [(0x10, 0xffff_e00c), (0x14, u32::MAX), (0x18, 0xfff0_000c), (0x1c, u32::MAX), (0x20, 0), (0x30, 0)];
    for (register, size) in sizes {
        let before = double(&machine, slot, register);
        machine.config_write(slot, register, &[0xff; 4]);
        assert_eq!(double(&machine, slot, register), size, "register {register:#x}");
        machine.config_write(slot, register, &before.to_le_bytes());
        assert_eq!(double(&machine, slot, register), before);
    }
    assert_eq!(u64::from(double(&machine, slot, 0x10)) & !0xf, WINDOW.start + 0x4000);
}

#[test]
fn sizing_while_decoding_is_harmless() {
    let (machine, mut driver) = started();
    for register in [0x10, 0x14, 0x18, 0x1c] {
        let before: [u8; 4] = machine.config_read(driver.slot, register);
        machine.config_write(driver.slot, register, &[0xff; 4]);
        machine.config_write(driver.slot, register, &before);
    }
    works(&mut driver);
}

#[test]
fn registers_and_doorbells_follow_their_bars() {
    let (machine, mut driver) = started();
    let old = driver.common;
    let status = driver.get8(common::DEVICE_STATUS);
    let registers = WINDOW.start + 0x8_0000;
    let doorbells = WINDOW.start + (100 << 20);
    machine.config_write(driver.slot, 0x10, &(registers as u32).to_le_bytes());
    machine.config_write(driver.slot, 0x18, &(doorbells as u32).to_le_bytes());
    assert_eq!(machine.device_read(old), [0; 64], "nothing is left at the old place");
    driver.common = registers;
    assert_eq!(driver.get8(common::DEVICE_STATUS), status);
    assert_eq!(machine.fabric.doorbell_addresses(), [doorbells]);
    driver.queues[0].doorbell = doorbells;
    works(&mut driver);
    // Outside of the exit-free MiB, reads exit and see the same.
    driver.common = WINDOW.start + (120 << 20);
    machine.config_write(driver.slot, 0x10, &(driver.common as u32).to_le_bytes());
    assert_eq!(driver.get8(common::DEVICE_STATUS), status);
}

#[test]
fn a_bar_outside_of_the_window_answers_nowhere() {
    let (machine, mut driver) = started();
    let before: [u8; 4] = machine.config_read(driver.slot, 0x1c);
    machine.config_write(driver.slot, 0x1c, &[0xff; 4]);
    assert_eq!(machine.fabric.doorbell_addresses(), Vec::<u64>::new());
    machine.config_write(driver.slot, 0x1c, &before);
    assert_eq!(machine.fabric.doorbell_addresses(), [driver.notify]);
    works(&mut driver);
}

#[test]
fn without_memory_decoding_nothing_answers() {
    let (machine, mut driver) = started();
    machine.config_write(driver.slot, 4, &[4, 4]);
    assert_eq!(machine.fabric.doorbell_addresses(), Vec::<u64>::new());
    assert_eq!(machine.device_read(driver.common), [0; 4]);
    driver.put8(common::DEVICE_STATUS, 0);
    machine.config_write(driver.slot, 4, &[6, 4]);
    assert_ne!(driver.status(), 0, "the write didn't arrive");
    works(&mut driver);
}

#[test]
fn overlapping_bars_do_no_harm() {
    let machine = Machine::new();
    let mut first = machine.plug(Box::new(Rng::new()));
    let mut second = machine.plug(Box::new(Rng::new()));
    first.start();
    second.start();
    for register in [0x10, 0x18] {
        let address: [u8; 4] = machine.config_read(first.slot, register);
        machine.config_write(second.slot, register, &address);
    }
    works(&mut first);
    for register in [0x10, 0x18] {
        let address = [0x20, 0x28].map(|at: u32| WINDOW.start as u32 + (at << 20));
        machine.config_write(second.slot, register, &address[usize::from(register == 0x18)].to_le_bytes());
    }
    second.common = WINDOW.start + 0x200_0000;
    second.queues[0].doorbell = WINDOW.start + 0x280_0000;
    works(&mut second);
    works(&mut first);
}

#[test]
fn the_bus_has_31_free_slots() {
    let machine = Machine::new();
    for number in 1..32 {
        assert_eq!(machine.root.plug("rng", Box::new(Rng::new())).unwrap(), PciSlot(number));
    }
    let error = machine.root.plug("one-more", Box::new(Rng::new())).unwrap_err();
    assert!(matches!(error, PlugError::Full(_)));
    assert_eq!(error.to_string(), "No free PCI slot for device one-more: bus 0 has 31");
}

fn mask(driver: &Driver, vector: u64, masked: bool) {
    driver.machine.device_write(driver.msix_table + 16 * vector + 12, &u32::from(masked).to_le_bytes());
}

#[test]
fn unused_vectors_take_no_interrupt() {
    let (machine, mut driver) = started();
    assert_eq!(machine.fabric.interrupt_count(), 0);
    works(&mut driver);
    wait_for("interrupt", || machine.fabric.take_messages() == [(1, 1)]);
    assert_eq!(machine.fabric.interrupt_count(), 1, "none for configuration changes");
}

#[test]
fn a_masked_vector_is_pending_until_it_is_unmasked() {
    let (machine, mut driver) = started();
    let pending = driver.msix_table + 0x800;
    for _ in 0..2 {
        mask(&driver, 1, true);
        works(&mut driver);
        wait_for("pending bit", || machine.device_read(pending) == [2, 0, 0, 0]);
        assert_eq!(machine.fabric.take_messages(), []);
        mask(&driver, 1, false);
        assert_eq!(machine.device_read(pending), [0; 4]);
        assert_eq!(machine.fabric.take_messages(), [(1, 1)]);
    }
}

#[test]
fn a_masked_function_is_pending_until_it_is_unmasked() {
    let (machine, mut driver) = started();
    let control = driver.msix_capability + 2;
    machine.config_write(driver.slot, control, &0xc000u16.to_le_bytes());
    works(&mut driver);
    wait_for("pending bit", || machine.device_read(driver.msix_table + 0x800) == [2]);
    machine.config_write(driver.slot, control, &0x8000u16.to_le_bytes());
    assert_eq!(machine.fabric.take_messages(), [(1, 1)]);
    assert_eq!(word(&machine, driver.slot, control), 0x8001, "size of the table can't be written");
}

#[test]
fn a_changed_message_is_used() {
    let (machine, mut driver) = started();
    works(&mut driver);
    wait_for("interrupt", || machine.fabric.take_messages() == [(1, 1)]);
    machine.device_write(driver.msix_table + 16 + 8, &77u32.to_le_bytes());
    works(&mut driver);
    wait_for("interrupt", || machine.fabric.take_messages() == [(77, 1)]);
    assert_eq!(machine.device_read(driver.msix_table + 16 + 8), 77u32.to_le_bytes());
}

#[test]
fn garbage_in_the_table_does_no_harm() {
    let (machine, mut driver) = started();
    for offset in 0..0x800 {
        for width in [1, 2, 4, 8] {
            machine.device_write(driver.msix_table + offset, &[0xff; 8][..width]);
        }
    }
    works(&mut driver);
    driver.start();
    works(&mut driver);
}

#[test]
fn without_msix_the_interrupt_status_says_what_happened() {
    let (machine, mut driver) = started();
    machine.config_write(driver.slot, driver.msix_capability + 2, &[0, 0]);
    works(&mut driver);
    wait_for("interrupt status", || machine.device_read(driver.isr) == [1]);
    assert_eq!(machine.device_read(driver.isr), [0], "reading clears");
}

#[test]
fn registers_can_be_reached_through_configuration_space() {
    let (machine, driver) = started();
    let [mut at] = machine.config_read::<1>(driver.slot, 0x34).map(usize::from);
    while machine.config_read::<4>(driver.slot, at)[3] != cap::PCI_CFG {
        at = usize::from(machine.config_read::<2>(driver.slot, at)[1]);
    }
    machine.config_write(driver.slot, at + 4, &[0]);
    machine.config_write(driver.slot, at + 12, &1u32.to_le_bytes());
    machine.config_write(driver.slot, at + 8, &(common::DEVICE_STATUS as u32).to_le_bytes());
    assert_eq!(machine.config_read(driver.slot, at + 16), [driver.status()]);
    machine.config_write(driver.slot, at + 16, &[0]);
    assert_eq!(driver.status(), 0, "reset");
}

#[test]
fn the_wrong_end_of_everything_is_ignored() {
    let machine = Machine::new();
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(4096).unwrap();
    let config = BlockConfig { path: file.path().to_owned(), id: "disk".to_owned(), ..BlockConfig::default() };
    let driver = machine.plug(Box::new(Block::new(&config).unwrap()));
    for offset in (0..1 << 20).step_by(4096).chain(0..4096) {
        machine.device_write(driver.notify + offset, &[0xff; 4]);
        machine.device_read::<8>(driver.notify + offset);
        machine.device_write(driver.common + offset % 8192, &[0xff; 8]);
    }
    for register in 0..4096 {
        machine.config_write(driver.slot, register, &[0xff; 8]);
        machine.config_write(driver.slot, register, &[0]);
    }
    assert_eq!(double(&machine, driver.slot, 0), 0x1042_1af4);
}

#[test]
fn an_unplugged_device_is_gone_and_its_slot_serves_the_next_one() {
    let (machine, mut driver) = started();
    works(&mut driver);
    let slot = driver.slot;
    assert!(machine.root.is_active(slot));
    assert!(machine.root.unplug(slot));
    assert!(!machine.root.unplug(slot), "there is nothing left to unplug");
    assert_eq!(machine.config_read(slot, 0), [0; 64]);
    assert!(machine.fabric.doorbell_addresses().is_empty());
    assert_eq!(machine.fabric.interrupt_count(), 0);
    // A driver that doesn't notice writes into nothing.
    machine.config_write(slot, 4, &[6, 4]);
    machine.device_write(driver.common + common::DEVICE_STATUS, &[0]);
    machine.device_write(driver.notify, &[0, 0]);
    assert_eq!(machine.device_read::<4>(driver.common), [0; 4]);
    for _ in 0..100 {
        let mut next = machine.plug(Box::new(Rng::new()));
        assert_eq!(next.slot, slot);
        next.start();
        works(&mut next);
        assert!(machine.root.unplug(slot));
    }
    assert_eq!(machine.fabric.interrupt_count(), 0);
}

#[test]
fn a_changed_configuration_is_shown_with_a_new_generation_and_an_interrupt() {
    let (machine, driver) = started();
    driver.put16(common::CONFIG_MSIX_VECTOR, 0);
    let before = driver.get8(common::CONFIG_GENERATION);
    machine.fabric.take_messages();
    machine.root.config_changed(driver.slot);
    assert_ne!(driver.get8(common::CONFIG_GENERATION), before);
    assert_eq!(machine.fabric.take_messages(), [(0, 1)]);
}
