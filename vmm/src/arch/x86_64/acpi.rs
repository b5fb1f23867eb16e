//! The smallest hardware-reduced ACPI that Linux boots with (ACPI specification 6.5).
//!
//! Absent on purpose: I/O APIC and interrupt overrides (the guest lives on messages), PM timer, GPEs, embedded controller, RTC,
//! VGA and 8042 (each probe of theirs is an exit), processor devices (Linux takes processors from the MADT).

use acpi_tables::Aml;
use acpi_tables::aml::{
    AddressSpace as Window, AddressSpaceCacheable, Device, EISAName, Memory32Fixed, Name, Package, Path,
    ResourceTemplate, Scope,
};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use thiserror::Error;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::layout;

const OEM_ID: [u8; 6] = *b"HULL  ";
const OEM_TABLE_ID: [u8; 8] = *b"HULLVMM ";
const OEM_REVISION: u32 = 1;
/// Tables start at multiples of this.
const TABLE_ALIGNMENT: u64 = 16;
/// Size of the fixed part of every table.
const HEADER_BYTES: u32 = 36;
/// FADT boot flags (table 5.10): no VGA, no CMOS RTC; the 8042 flag stays clear.
const BOOT_FLAGS: u16 = 1 << 2 | 1 << 5;

/// The tables don't fit in guest memory.
#[derive(Debug, Error)]
#[error("ACPI tables don't fit below {end:#x}", end = layout::ACPI_END)]
pub struct AcpiError;

/// Writes all tables and returns where the root pointer (RSDP) is.
pub fn write_tables(memory: &GuestMemoryMmap, vcpu_count: u8) -> Result<GuestAddress, AcpiError> {
    let mut writer = Writer { memory, next: layout::ACPI_START.0 + Rsdp::len() as u64 };
    let dsdt = writer.put(&dsdt())?;
    let fadt = writer.put(&bytes(&fadt(dsdt)))?;
    let madt = writer.put(&bytes(&madt(vcpu_count)))?;
    let mcfg = writer.put(&bytes(&mcfg()))?;
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    for table in [fadt, madt, mcfg] {
        xsdt.add_entry(table);
    }
    let xsdt = writer.put(&bytes(&xsdt))?;
    memory.write_slice(&bytes(&Rsdp::new(OEM_ID, xsdt)), layout::ACPI_START).map_err(|_| AcpiError)?;
    Ok(layout::ACPI_START)
}

struct Writer<'a> {
    memory: &'a GuestMemoryMmap,
    next: u64,
}

impl Writer<'_> {
    fn put(&mut self, table: &[u8]) -> Result<u64, AcpiError> {
        let start = self.next.next_multiple_of(TABLE_ALIGNMENT);
        let end = start + table.len() as u64;
        if end > layout::ACPI_END {
            return Err(AcpiError);
        }
        self.memory.write_slice(table, GuestAddress(start)).map_err(|_| AcpiError)?;
        self.next = end;
        Ok(start)
    }
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

fn power_register(offset: u16) -> GAS {
    GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, u64::from(layout::POWER_PORT + offset))
}

fn fadt(dsdt: u64) -> acpi_tables::fadt::FADT {
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        // Set means "no fixed-hardware button".
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::Headless);
    fadt.iapc_boot_arch = BOOT_FLAGS.into();
    fadt.reset_reg = power_register(layout::POWER_RESET);
    fadt.reset_value = layout::RESET_VALUE;
    fadt.sleep_control_reg = power_register(layout::POWER_SLEEP_CONTROL);
    fadt.sleep_status_reg = power_register(layout::POWER_SLEEP_STATUS);
    fadt.hypervisor_vendor_identity = u64::from_le_bytes(*b"HULL\0\0\0\0").into();
    fadt.finalize()
}

fn madt(vcpu_count: u8) -> MADT {
    let mut madt =
        MADT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION, LocalInterruptController::Address(layout::LOCAL_APIC_START));
    for id in 0..vcpu_count {
        madt.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    madt
}

fn mcfg() -> MCFG {
    let mut mcfg = MCFG::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    let (segment, bus) = (0, 0);
    mcfg.add_ecam(layout::ECAM_START, segment, bus, bus);
    mcfg
}

fn dsdt() -> Vec<u8> {
    let hid = Path::new("_HID");
    let uid = Path::new("_UID");
    let root_hid = EISAName::new("PNP0A08");
    let root_cid = EISAName::new("PNP0A03");
    let buses = Window::new_bus_number(0u16, 0u16);
    // Not cacheable and so not "prefetchable" for Linux: BARs of both kinds may be placed in it.
    #[allow(clippy::cast_possible_truncation, reason = "the window is below 4 GiB")]
    let (first, last) = (layout::BAR_WINDOW.start as u32, (layout::BAR_WINDOW.end - 1) as u32);
    let bars = Window::new_memory(AddressSpaceCacheable::NotCacheable, true, first, last, None);
    let root = Device::new(
        Path::new("PCI0"),
        vec![
            &Name::new(hid, &root_hid),
            &Name::new(Path::new("_CID"), &root_cid),
            &Name::new(uid, &0u8),
            &Name::new(Path::new("_SEG"), &0u8),
            &Name::new(Path::new("_BBN"), &0u8),
            &Name::new(Path::new("_CRS"), &ResourceTemplate::new(vec![&buses, &bars])),
        ],
    )
    .to_vec();
    // Linux takes ECAM only where a motherboard resource reserves it (PCI Firmware Specification 3.3, section 4.1.2).
    #[allow(clippy::cast_possible_truncation, reason = "ECAM is below 4 GiB and 1 MiB long")]
    let ecam = Memory32Fixed::new(true, layout::ECAM_START as u32, layout::ECAM_BYTES as u32);
    let board = Device::new(
        Path::new("MB00"),
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0C02")),
            &Name::new(Path::new("_UID"), &1u8),
            &Name::new(Path::new("_CRS"), &ResourceTemplate::new(vec![&ecam])),
        ],
    )
    .to_vec();
    let devices = [root, board].concat();
    let soft_off =
        Name::new(Path::new("_S5_"), &Package::new(vec![&layout::SLEEP_TYPE_S5, &layout::SLEEP_TYPE_S5, &0u8, &0u8]))
            .to_vec();
    let mut table = Sdt::new(*b"DSDT", HEADER_BYTES, 2, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    table.append_slice(&soft_off);
    table.append_slice(&Scope::raw(Path::new("_SB_"), devices));
    table.as_slice().to_vec()
}

trait ToVec: Aml {
    fn to_vec(&self) -> Vec<u8>
    where
        Self: Sized,
    {
        bytes(self)
    }
}

impl<T: Aml> ToVec for T {}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests stop at the first surprise")]

    use super::*;

    fn tables(vcpus: u8) -> (GuestMemoryMmap, Vec<u8>) {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 2 << 20)]).unwrap();
        let rsdp = write_tables(&memory, vcpus).unwrap();
        let mut root = vec![0; Rsdp::len()];
        memory.read_slice(&mut root, rsdp).unwrap();
        (memory, root)
    }

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    fn table_at(memory: &GuestMemoryMmap, address: u64) -> Vec<u8> {
        let length: u32 = memory.read_obj(GuestAddress(address + 4)).unwrap();
        let mut table = vec![0; length as usize];
        memory.read_slice(&mut table, GuestAddress(address)).unwrap();
        table
    }

    fn all_tables(vcpus: u8) -> Vec<Vec<u8>> {
        let (memory, root) = tables(vcpus);
        assert_eq!(sum(&root[..20]), 0);
        assert_eq!(sum(&root), 0);
        let xsdt = table_at(&memory, u64::from_le_bytes(root[24..32].try_into().unwrap()));
        let mut found = vec![];
        for entry in xsdt[36..].chunks(8) {
            found.push(table_at(&memory, u64::from_le_bytes(entry.try_into().unwrap())));
        }
        let fadt = &found[0];
        found.push(table_at(&memory, u64::from_le_bytes(fadt[140..148].try_into().unwrap())));
        found.push(xsdt);
        found
    }

    #[test]
    fn every_table_sums_to_zero_and_has_its_signature() {
        let tables = all_tables(4);
        let signatures: Vec<_> = tables.iter().map(|t| String::from_utf8_lossy(&t[..4]).into_owned()).collect();
        assert_eq!(signatures, ["FACP", "APIC", "MCFG", "DSDT", "XSDT"]);
        for table in tables {
            assert_eq!(sum(&table), 0, "{}", String::from_utf8_lossy(&table[..4]));
        }
    }

    #[test]
    fn the_largest_machine_fits() {
        let madt = &all_tables(64)[1];
        assert_eq!(madt.len(), 44 + 64 * 8);
        assert_eq!(madt[44 + 63 * 8 + 3], 63, "APIC ID of the last processor");
    }

    #[test]
    fn the_dsdt_disassembles() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("dsdt.aml");
        std::fs::write(&path, &all_tables(1)[3]).unwrap();
        let output = std::process::Command::new("iasl").arg("-d").arg(&path).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = std::fs::read_to_string(dir.path().join("dsdt.dsl")).unwrap();
        for part in ["PNP0A08", "PNP0C02", "_S5", "0xE0000000", "0xE0100000"] {
            assert!(text.contains(part), "no {part} in {text}");
        }
    }
}
