//! The guest's physical address map.
//!
//! | from | to | what |
//! |---|---|---|
//! | 0x500 | 0xf000 | GDT, boot parameters, page tables for the 64-bit entry |
//! | 0x2_0000 | 0x3_0000 | kernel command line |
//! | 0x9_fc00 | 0x10_0000 | not RAM for the guest; ACPI tables from 0xe_0000 |
//! | 0x10_0000 | at most 3 GiB | RAM: kernel, then initramfs at the upper end |
//! | 0xe000_0000 | + 1 MiB | PCI configuration space of bus 0 (ECAM) |
//! | 0xe010_0000 | 0xfec0_0000 | PCI BARs |
//! | 0xfee0_0000 | | local APICs |
//! | 4 GiB | | the rest of RAM |
//! | behind, with a gap | | memory that can be plugged |
//!
//! ECAM and the first MiB of BARs are one memory slot, which the guest reads without exits.

use std::ops::Range;

use linux_loader::loader::bootparam::boot_e820_entry;
use vm_memory::GuestAddress;

/// Global descriptor table of the 64-bit entry.
pub const GDT_START: GuestAddress = GuestAddress(0x500);
/// Linux's boot parameters (the "zero page").
pub const BOOT_PARAMS_START: GuestAddress = GuestAddress(0x7000);
/// Initial stack pointer; Linux replaces it at once.
pub const BOOT_STACK: GuestAddress = GuestAddress(0x8ff0);
/// Page map level 4; the tables below it follow.
pub const PML4_START: GuestAddress = GuestAddress(0x9000);
/// Page directory pointer table.
pub const PDPT_START: GuestAddress = GuestAddress(0xa000);
/// Page directory: identity map of [`BOOT_MAPPED_BYTES`].
pub const PD_START: GuestAddress = GuestAddress(0xb000);
/// How much the page tables of the 64-bit entry map, from address 0.
pub const BOOT_MAPPED_BYTES: u64 = 1 << 30;
/// Kernel command line.
pub const CMDLINE_START: GuestAddress = GuestAddress(0x2_0000);
/// Longest command line with its final NUL (Linux's `COMMAND_LINE_SIZE` on x86).
pub const CMDLINE_MAX_BYTES: usize = 2048;
/// End of the first piece of RAM.
pub const LOW_RAM_END: u64 = 0x9_fc00;
/// ACPI tables; the root pointer is at the start.
pub const ACPI_START: GuestAddress = GuestAddress(0xe_0000);
/// End of the space for ACPI tables.
pub const ACPI_END: u64 = 0x10_0000;
/// Where RAM continues and kernels may be loaded.
pub const HIMEM_START: GuestAddress = GuestAddress(0x10_0000);
/// RAM below 4 GiB ends here at the latest.
pub const HOLE_START: u64 = 0xc000_0000;
/// RAM above the hole starts here.
pub const HOLE_END: u64 = 1 << 32;
/// PCI configuration space of bus 0.
pub const ECAM_START: u64 = 0xe000_0000;
/// Size of the configuration space of one bus.
pub const ECAM_BYTES: u64 = 1 << 20;
/// Size of the pages that the guest reads without exits: ECAM, then the start of [`BAR_WINDOW`].
pub const CONFIG_PAGES_BYTES: usize = 2 << 20;
/// PCI BARs.
pub const BAR_WINDOW: Range<u64> = ECAM_START + ECAM_BYTES..0xfec0_0000;
/// Local APICs.
pub const LOCAL_APIC_START: u32 = 0xfee0_0000;
/// Three pages that KVM needs on some Intel processors; below the reset vector, where no RAM is.
pub const KVM_TSS_START: usize = 0xfffb_d000;
/// Transmit-only serial port.
pub const SERIAL_PORT: u16 = 0x3f8;
/// Number of its ports.
pub const SERIAL_PORTS: u16 = 8;
/// Command and status port of a keyboard controller: only its reset line exists.
pub const KEYBOARD_COMMAND_PORT: u16 = 0x64;
/// Ports for power: reset, sleep control, sleep status.
pub const POWER_PORT: u16 = 0x600;
/// Number of ports for power.
pub const POWER_PORTS: u16 = 4;
/// Offset of the ACPI reset register.
pub const POWER_RESET: u16 = 0;
/// Offset of the ACPI sleep control register.
pub const POWER_SLEEP_CONTROL: u16 = 1;
/// Offset of the ACPI sleep status register.
pub const POWER_SLEEP_STATUS: u16 = 2;
/// Value that resets when written to the reset register.
pub const RESET_VALUE: u8 = 1;
/// Sleep type of soft off (`_S5`).
pub const SLEEP_TYPE_S5: u8 = 5;

/// Linux's memory blocks (`memory_block_size_bytes`), and from which size of RAM on they may be larger.
const MEMORY_BLOCK_BYTES: u64 = 128 << 20;
const LARGE_MEMORY_BLOCK_BYTES: u64 = 2 << 30;
const LARGE_MACHINE_BYTES: u64 = 64 << 30;

const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;

/// Splits RAM around the hole below 4 GiB.
pub fn ram_regions(size_bytes: u64) -> Vec<(GuestAddress, usize)> {
    let low = size_bytes.min(HOLE_START);
    let mut regions = vec![(GuestAddress(0), to_usize(low))];
    if size_bytes > low {
        regions.push((GuestAddress(HOLE_END), to_usize(size_bytes - low)));
    }
    regions
}

/// First address behind RAM.
pub fn ram_end(size_bytes: u64) -> u64 {
    match size_bytes.checked_sub(HOLE_START) {
        None | Some(0) => size_bytes,
        Some(high) => HOLE_END + high,
    }
}

/// Unit in which Linux takes on memory that is plugged; larger in large machines.
pub fn memory_block_bytes(ram_size_bytes: u64) -> u64 {
    if ram_size_bytes < LARGE_MACHINE_BYTES { MEMORY_BLOCK_BYTES } else { LARGE_MEMORY_BLOCK_BYTES }
}

/// Where memory that can be plugged starts: aligned to Linux's unit, and never adjacent to RAM, so that no buffer crosses from one
/// to the other.
pub fn hotplug_start(ram_size_bytes: u64) -> GuestAddress {
    let unit = memory_block_bytes(ram_size_bytes);
    match ram_end(ram_size_bytes) {
        end if end < HOLE_END => GuestAddress(HOLE_END),
        end => GuestAddress((end + 1).next_multiple_of(unit)),
    }
}

/// The memory map that the kernel is told.
pub fn e820(ram_size_bytes: u64) -> Vec<boot_e820_entry> {
    let low_end = ram_size_bytes.min(HOLE_START);
    let mut map = vec![
        entry(0, LOW_RAM_END, E820_RAM),
        entry(ACPI_START.0, ACPI_END, E820_RESERVED),
        entry(HIMEM_START.0, low_end, E820_RAM),
        entry(ECAM_START, ECAM_START + ECAM_BYTES, E820_RESERVED),
    ];
    if ram_end(ram_size_bytes) > HOLE_END {
        map.push(entry(HOLE_END, ram_end(ram_size_bytes), E820_RAM));
    }
    map
}

fn entry(start: u64, end: u64, type_: u32) -> boot_e820_entry {
    boot_e820_entry { addr: start, size: end - start, type_ }
}

/// Lossless: this crate runs on x86-64 only.
#[allow(clippy::cast_possible_truncation, reason = "usize has 64 bits on x86-64")]
fn to_usize(value: u64) -> usize {
    value as usize
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests stop at the first surprise")]

    use super::*;

    fn ranges(size: u64) -> Vec<(u64, u64, u32)> {
        e820(size).iter().map(|e| ({ e.addr }, e.addr + e.size, { e.type_ })).collect()
    }

    #[test]
    fn small_memory_has_no_part_above_the_hole() {
        assert_eq!(ram_regions(32 << 20), [(GuestAddress(0), 32 << 20)]);
        assert_eq!(ram_end(HOLE_START), HOLE_START);
        assert_eq!(ranges(32 << 20)[2], (0x10_0000, 32 << 20, E820_RAM));
        assert_eq!(ranges(32 << 20).len(), 4);
    }

    #[test]
    fn memory_beyond_the_hole_continues_at_4_gib() {
        assert_eq!(ram_regions(5 << 30), [(GuestAddress(0), 3 << 30), (GuestAddress(4 << 30), 2 << 30)]);
        assert_eq!(ram_end(5 << 30), 6 << 30);
        assert_eq!(ranges(5 << 30)[4], (4 << 30, 6 << 30, E820_RAM));
    }

    #[test]
    fn plugged_memory_is_aligned_and_apart_from_ram() {
        assert_eq!(hotplug_start(128 << 20).0, 4 << 30);
        assert_eq!(hotplug_start(3 << 30).0, 4 << 30);
        assert_eq!(hotplug_start(4 << 30).0, (5 << 30) + (128 << 20));
        assert_eq!(hotplug_start((4 << 30) + (1 << 20)).0, (5 << 30) + (128 << 20));
        assert_eq!(hotplug_start(65 << 30).0, 68 << 30);
    }

    #[test]
    fn e820_entries_are_sorted_and_do_not_overlap() {
        for size in [32u64 << 20, 1 << 30, 3 << 30, (3 << 30) + (2 << 20), 1 << 40] {
            assert!(ranges(size).windows(2).all(|w| w[0].1 <= w[1].0), "{size:#x}");
        }
    }
}
