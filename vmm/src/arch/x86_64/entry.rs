//! State of the first processor at the kernel's 64-bit entry (Documentation/arch/x86/boot.rst, "64-bit Boot Protocol").

use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use super::layout::{BOOT_PARAMS_START, BOOT_STACK, GDT_START, PD_START, PDPT_START, PML4_START};

/// Selectors that the protocol asks for: `__BOOT_CS` and `__BOOT_DS`.
const BOOT_CS: u16 = 0x10;
const BOOT_DS: u16 = 0x18;
/// Flat 64-bit code and flat data, with the accessed bit set so that the processor needn't write it.
const GDT: [u64; 4] = [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];

/// Last byte of the table.
const GDT_LIMIT: u16 = 4 * 8 - 1;

const PAGE_PRESENT_WRITABLE: u64 = 0b11;
const PAGE_HUGE: u64 = 1 << 7;
const HUGE_PAGE_SHIFT: u64 = 21;
const ENTRIES: u64 = 512;

const CR0_PE: u64 = 1;
const CR0_MP: u64 = 1 << 1;
const CR0_ET: u64 = 1 << 4;
const CR0_NE: u64 = 1 << 5;
const CR0_WP: u64 = 1 << 16;
const CR0_AM: u64 = 1 << 18;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// Bit 1 is always set.
const RFLAGS: u64 = 2;

/// Writes the descriptor table and an identity map of the first GiB.
pub fn write_tables(memory: &GuestMemoryMmap) -> Result<(), GuestMemoryError> {
    for (index, descriptor) in (0..).zip(GDT) {
        memory.write_obj(descriptor, GuestAddress(GDT_START.0 + index * 8))?;
    }
    memory.write_obj(PDPT_START.0 | PAGE_PRESENT_WRITABLE, PML4_START)?;
    memory.write_obj(PD_START.0 | PAGE_PRESENT_WRITABLE, PDPT_START)?;
    for index in 0..ENTRIES {
        let entry = index << HUGE_PAGE_SHIFT | PAGE_HUGE | PAGE_PRESENT_WRITABLE;
        memory.write_obj(entry, GuestAddress(PD_START.0 + index * 8))?;
    }
    Ok(())
}

/// General registers at the entry.
pub fn regs(entry: GuestAddress) -> kvm_regs {
    kvm_regs { rflags: RFLAGS, rip: entry.0, rsi: BOOT_PARAMS_START.0, rsp: BOOT_STACK.0, ..Default::default() }
}

/// Changes the state after reset into that of the entry: long mode, paging, flat segments, interrupts off.
pub fn enter_long_mode(sregs: &mut kvm_sregs) {
    sregs.gdt.base = GDT_START.0;
    sregs.gdt.limit = GDT_LIMIT;
    sregs.cr3 = PML4_START.0;
    sregs.cr4 |= CR4_PAE;
    sregs.cr0 = CR0_PG | CR0_AM | CR0_WP | CR0_NE | CR0_ET | CR0_MP | CR0_PE;
    sregs.efer |= EFER_LME | EFER_LMA;
    let flat = kvm_segment { base: 0, limit: u32::MAX, present: 1, s: 1, g: 1, ..Default::default() };
    sregs.cs = kvm_segment { selector: BOOT_CS, type_: 0b1011, l: 1, ..flat };
    let data = kvm_segment { selector: BOOT_DS, type_: 0b0011, db: 1, ..flat };
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
}
