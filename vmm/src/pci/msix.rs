//! MSI-X (PCI Local Bus 3.0, section 6.8): table, masks, pending bits, and their way to the machine.
//!
//! A vector takes an interrupt of the machine when it fires for the first time, and its message goes there when it fires
//! after a change. So vectors that a driver sets up and never uses cost nothing, and a driver that writes a message in
//! several steps costs one route.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::page::{MSIX_PENDING_OFFSET, MSIX_TABLE_OFFSET, RegisterPage};
use crate::interrupt::{Fabric, Gsi, MsiMessage};

/// Size of a table entry.
const ENTRY_BYTES: usize = 16;
/// Most vectors: what fits into the table's half page.
pub const MAX_VECTORS: u16 = 128;
/// Vector control: masked (section 6.8.2.9).
const CONTROL_MASK: u32 = 1;

/// The interrupt vectors of one function.
pub struct Msix {
    fabric: Arc<dyn Fabric>,
    page: Arc<RegisterPage>,
    vectors: Mutex<Vectors>,
}

struct Vectors {
    enabled: bool,
    function_masked: bool,
    entries: Vec<Entry>,
}

struct Entry {
    address_low: u32,
    address_high: u32,
    data: u32,
    control: u32,
    pending: bool,
    line: Option<Line>,
}

/// An interrupt of the machine.
struct Line {
    irqfd: EventFd,
    gsi: Gsi,
    routed: Option<MsiMessage>,
}

impl Entry {
    fn message(&self) -> MsiMessage {
        MsiMessage { address: u64::from(self.address_high) << 32 | u64::from(self.address_low), data: self.data }
    }

    fn bytes(&self) -> [u8; ENTRY_BYTES] {
        let mut bytes = [0; ENTRY_BYTES];
        let words = [self.address_low, self.address_high, self.data, self.control];
        for (to, word) in bytes.chunks_exact_mut(4).zip(words) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }
}

impl Msix {
    /// `count` vectors, all masked.
    pub fn new(count: u16, fabric: Arc<dyn Fabric>, page: Arc<RegisterPage>) -> Arc<Self> {
        let entry =
            || Entry { address_low: 0, address_high: 0, data: 0, control: CONTROL_MASK, pending: false, line: None };
        let entries: Vec<_> = (0..count.min(MAX_VECTORS)).map(|_| entry()).collect();
        for (index, entry) in entries.iter().enumerate() {
            page.update(MSIX_TABLE_OFFSET + index * ENTRY_BYTES, &entry.bytes());
        }
        let vectors = Mutex::new(Vectors { enabled: false, function_masked: false, entries });
        Arc::new(Self { fabric, page, vectors })
    }

    /// The message control register has changed.
    pub fn set_control(&self, enabled: bool, function_masked: bool) {
        let mut vectors = self.lock();
        vectors.enabled = enabled;
        vectors.function_masked = function_masked;
        for index in 0..vectors.entries.len() {
            self.deliver_pending(&mut vectors, index);
        }
    }

    /// MSI-X is in use: interrupt status is not (virtio 1.2, section 4.1.4.5).
    pub fn is_enabled(&self) -> bool {
        self.lock().enabled
    }

    /// Writes to the table: whole double words or quad words only (section 6.8.2).
    pub fn write_table(&self, offset: usize, data: &[u8]) {
        if !offset.is_multiple_of(4) || !matches!(data.len(), 4 | 8) {
            return;
        }
        let mut vectors = self.lock();
        for (piece, word) in data.chunks_exact(4).enumerate() {
            let at = offset.saturating_add(4 * piece);
            let value = word.try_into().map(u32::from_le_bytes).unwrap_or_default();
            self.write_word(&mut vectors, at, value);
        }
    }

    /// Sends the vector's message, or remembers it while the vector is masked. A vector that doesn't exist sends nothing.
    pub fn signal(&self, vector: u16) {
        let mut vectors = self.lock();
        let index = usize::from(vector);
        let masked = vectors.function_masked;
        let enabled = vectors.enabled;
        let Some(entry) = vectors.entries.get_mut(index) else { return };
        if !enabled {
            return;
        }
        if masked || entry.control & CONTROL_MASK != 0 {
            entry.pending = true;
            self.show_pending(&vectors, index);
            return;
        }
        self.fire(entry);
    }

    /// Gives the interrupts back.
    pub fn detach(&self) {
        for entry in &mut self.lock().entries {
            if let Some(line) = entry.line.take() {
                let _ = self.fabric.detach_interrupt(line.gsi, &line.irqfd);
            }
        }
    }

    fn write_word(&self, vectors: &mut Vectors, at: usize, value: u32) {
        let index = at / ENTRY_BYTES;
        let Some(entry) = vectors.entries.get_mut(index) else { return };
        match at % ENTRY_BYTES {
            0 => entry.address_low = value & !3,
            4 => entry.address_high = value,
            8 => entry.data = value,
            _ => entry.control = value & CONTROL_MASK,
        }
        self.page.update(MSIX_TABLE_OFFSET + index * ENTRY_BYTES, &entry.bytes());
        self.deliver_pending(vectors, index);
    }

    fn deliver_pending(&self, vectors: &mut Vectors, index: usize) {
        if !vectors.enabled || vectors.function_masked {
            return;
        }
        let Some(entry) = vectors.entries.get_mut(index) else { return };
        if entry.pending && entry.control & CONTROL_MASK == 0 {
            entry.pending = false;
            self.fire(entry);
            self.show_pending(vectors, index);
        }
    }

    fn show_pending(&self, vectors: &Vectors, index: usize) {
        let group = index / 64;
        let entries = vectors.entries.chunks(64).nth(group).unwrap_or_default();
        let bits = entries.iter().rev().fold(0u64, |bits, entry| bits << 1 | u64::from(entry.pending));
        self.page.update(MSIX_PENDING_OFFSET + 8 * group, &bits.to_le_bytes());
    }

    /// A failure of the host loses the interrupt; the driver sees a device that hangs, and the log says why.
    fn fire(&self, entry: &mut Entry) {
        if let Err(error) = self.try_fire(entry) {
            crate::log::line(&format!("can't send a message-signalled interrupt: {error}"));
        }
    }

    fn try_fire(&self, entry: &mut Entry) -> io::Result<()> {
        let message = entry.message();
        let line = match &mut entry.line {
            Some(line) => line,
            none => {
                let irqfd = EventFd::new(EFD_NONBLOCK)?;
                let gsi = self.fabric.attach_interrupt(&irqfd)?;
                none.insert(Line { irqfd, gsi, routed: None })
            }
        };
        if line.routed != Some(message) {
            self.fabric.route_msi(line.gsi, Some(message))?;
            line.routed = Some(message);
        }
        line.irqfd.write(1)
    }

    fn lock(&self) -> MutexGuard<'_, Vectors> {
        self.vectors.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
