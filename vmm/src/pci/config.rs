//! Configuration space of a type 0 function (PCI Local Bus 3.0, section 6.1 and appendix H for capabilities).
//!
//! Only bytes: which of them a guest may write is data, too. That makes BAR sizing work without code for it: the bits of a
//! BAR below its size can't be written.

use std::ops::Range;

use super::ConfigSpaceMemory;

/// Size of conventional configuration space. Hull's functions have no extended one.
pub const CONFIG_BYTES: usize = 256;

/// Command register.
pub const COMMAND: usize = 0x04;
/// Command: decode memory accesses.
pub const COMMAND_MEMORY: u16 = 1 << 1;
/// Command: bus master.
const COMMAND_MASTER: u16 = 1 << 2;
/// Command: no legacy interrupt.
const COMMAND_INTX_DISABLE: u16 = 1 << 10;
const STATUS: usize = 0x06;
/// Status: there are capabilities.
const STATUS_CAPABILITIES: u16 = 1 << 4;
const CLASS: usize = 0x08;
const CACHE_LINE_SIZE: usize = 0x0c;
const LATENCY_TIMER: usize = 0x0d;
/// First base address register.
pub const BAR: usize = 0x10;
const SUBSYSTEM_VENDOR: usize = 0x2c;
const SUBSYSTEM: usize = 0x2e;
const CAPABILITIES_POINTER: usize = 0x34;
const INTERRUPT_LINE: usize = 0x3c;
const FIRST_CAPABILITY: usize = 0x40;
/// 64-bit, prefetchable: fits a host bridge's window of either kind.
const BAR_FLAGS: u64 = 0xc;

/// Identity of a function.
#[derive(Debug, Clone, Copy)]
pub struct Identity {
    /// Vendor.
    pub vendor: u16,
    /// Device.
    pub device: u16,
    /// Base class, subclass, programming interface.
    pub class: u32,
    /// Revision.
    pub revision: u8,
}

/// The bytes of configuration space and which of their bits can be written.
pub struct ConfigSpace {
    bytes: [u8; CONFIG_BYTES],
    writable: [u8; CONFIG_BYTES],
    /// Where the next capability goes, and the byte that will point to it.
    next: usize,
    link: usize,
}

impl ConfigSpace {
    /// Configuration space as firmware would leave it: addresses are set, but memory is not decoded, because Linux then
    /// needs no writes to switch decoding off while it sizes BARs. Bus mastering is on and the legacy interrupt off, as
    /// drivers want them.
    pub fn new(identity: Identity) -> Self {
        let mut this = Self {
            bytes: [0; CONFIG_BYTES],
            writable: [0; CONFIG_BYTES],
            next: FIRST_CAPABILITY,
            link: CAPABILITIES_POINTER,
        };
        this.set(0, &identity.vendor.to_le_bytes());
        this.set(2, &identity.device.to_le_bytes());
        this.set(COMMAND, &(COMMAND_MASTER | COMMAND_INTX_DISABLE).to_le_bytes());
        this.allow(COMMAND, &(COMMAND_MASTER | COMMAND_INTX_DISABLE | COMMAND_MEMORY).to_le_bytes());
        this.set(CLASS, &(identity.class << 8 | u32::from(identity.revision)).to_le_bytes());
        // Linux writes the latency timer of a bus master when it is below 16; it means nothing here.
        this.set(LATENCY_TIMER, &[64]);
        this.set(SUBSYSTEM_VENDOR, &identity.vendor.to_le_bytes());
        this.set(SUBSYSTEM, &identity.device.to_le_bytes());
        this.allow(CACHE_LINE_SIZE, &[0xff]);
        this.allow(INTERRUPT_LINE, &[0xff]);
        this
    }

    /// Adds a 64-bit BAR at registers `index` and `index + 1`. `size` is a power of two, at least 4 KiB.
    pub fn add_bar(&mut self, index: usize, address: u64, size: u64) {
        let at = BAR + 4 * index;
        self.set(at, &(address | BAR_FLAGS).to_le_bytes());
        self.allow(at, &(!size.wrapping_sub(1)).to_le_bytes());
    }

    /// Adds a capability and returns its offset. `body` is what follows identifier and link.
    pub fn add_capability(&mut self, id: u8, body: &[u8]) -> usize {
        let at = self.next;
        self.set(self.link, &[u8::try_from(at).unwrap_or(0)]);
        self.set(at, &[id]);
        self.set(at + 2, body);
        self.set(STATUS, &STATUS_CAPABILITIES.to_le_bytes());
        self.link = at + 1;
        self.next = (at + 2 + body.len()).next_multiple_of(4);
        at
    }

    /// Lets the guest write bits.
    pub fn allow(&mut self, offset: usize, bits: &[u8]) {
        copy(&mut self.writable, offset, bits);
    }

    /// Sets bytes, whatever the guest may do with them.
    pub fn set(&mut self, offset: usize, bytes: &[u8]) {
        copy(&mut self.bytes, offset, bytes);
    }

    /// A write by the guest. Bits that can't be written keep their value.
    pub fn write(&mut self, offset: usize, data: &[u8]) {
        let bytes = self.bytes.iter_mut().zip(&self.writable).skip(offset);
        for ((byte, writable), new) in bytes.zip(data) {
            *byte = (*byte & !writable) | (new & writable);
        }
    }

    /// Shows the guest what differs from `old`, in its configuration space at `at` in the pages.
    pub fn show_changes(&self, old: &[u8; CONFIG_BYTES], pages: &dyn ConfigSpaceMemory, at: usize) {
        let words = self.bytes.chunks_exact(4).zip(old.chunks_exact(4)).enumerate();
        for (index, (new, _)) in words.filter(|(_, (new, old))| new != old) {
            pages.store(at + 4 * index, new);
        }
    }

    /// All bytes.
    pub fn bytes(&self) -> &[u8; CONFIG_BYTES] {
        &self.bytes
    }

    /// A 16-bit register.
    pub fn word(&self, offset: usize) -> u16 {
        u16::from_le_bytes(self.array(offset))
    }

    /// A 32-bit register.
    pub fn double(&self, offset: usize) -> u32 {
        u32::from_le_bytes(self.array(offset))
    }

    /// Where a BAR is, if it is decoded and inside of `window`.
    pub fn decoded_bar(&self, index: usize, size: u64, window: &Range<u64>) -> Option<u64> {
        if self.word(COMMAND) & COMMAND_MEMORY == 0 {
            return None;
        }
        let start = u64::from_le_bytes(self.array(BAR + 4 * index)) & !size.wrapping_sub(1);
        let end = start.checked_add(size)?;
        (window.start <= start && end <= window.end).then_some(start)
    }

    fn array<const N: usize>(&self, offset: usize) -> [u8; N] {
        let mut array = [0; N];
        for (to, from) in array.iter_mut().zip(self.bytes.iter().skip(offset)) {
            *to = *from;
        }
        array
    }
}

fn copy(to: &mut [u8; CONFIG_BYTES], offset: usize, from: &[u8]) {
    for (to, from) in to.iter_mut().skip(offset).zip(from) {
        *to = *from;
    }
}
