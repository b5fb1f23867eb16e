//! Configuration space, BARs, MSI-X and registers.
#![no_main]

use hull_fuzz::Input;
use hull_vmm::pci::PciSlot;
use hull_vmm::virtio::specimen::{Kind, Specimen};
use hull_vmm::virtio::testing::{Machine, WINDOW};
use libfuzzer_sys::fuzz_target;

fuzz_target!(init: hull_fuzz::prepare(), |data: &[u8]| {
    let mut input = Input(data);
    let machine = Machine::new();
    let mut specimens = [Kind::Rng, Kind::Net].map(|kind| Specimen::within(&machine, kind));
    specimens.iter_mut().for_each(|specimen| specimen.driver.start());
    for _ in 0..100 {
        if input.is_empty() {
            break;
        }
        let control = input.byte();
        let driver = &specimens[usize::from(control & 1)].driver;
        let width = [1, 2, 4, 8][usize::from(control >> 1 & 3)];
        let at = u64::from(input.word());
        let bases = [driver.common, driver.notify, driver.msix_table, WINDOW.start];
        match control >> 3 & 7 {
            0 | 1 => machine.config_write(driver.slot, usize::from(at as u16 % 256), input.take(width)),
            2 => machine.config_write(PciSlot(control >> 6 | (at >> 12) as u8), usize::from(at as u16 % 4096), input.take(width)),
            3 => drop(machine.device_read::<4>(bases[usize::from(control >> 6)] + at)),
            4 => machine.device_write(driver.common + at % 64, input.take(width)),
            5 => machine.device_write(bases[usize::from(control >> 6)] + (at << 8), input.take(width)),
            _ => machine.device_write(bases[usize::from(control >> 6)] + at, input.take(width)),
        }
    }
    for specimen in &mut specimens {
        specimen.restart();
        specimen.works();
    }
});
