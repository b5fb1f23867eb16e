//! The registers of one function as the guest reads them.
//!
//! Reading a virtio register has no effect (but for the interrupt status, which isn't here), so the guest reads a copy in
//! memory, without an exit. The copy moves with the BAR.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{ConfigSpaceMemory, HALF_BYTES};
use crate::virtio::spec::pci::common;
use crate::virtio::transport::Registers;

/// Size of the register BAR.
pub const REGISTER_BYTES: usize = 8192;
/// Device-specific configuration in the register BAR; common configuration is at the start.
pub const DEVICE_CONFIG_OFFSET: usize = 0x100;
/// Size of device-specific configuration that the guest can reach.
pub const DEVICE_CONFIG_BYTES: usize = 0x100;
/// MSI-X table in the register BAR, on a page of its own (PCI Local Bus 3.0, section 6.8.2).
pub const MSIX_TABLE_OFFSET: usize = 0x1000;
/// MSI-X pending bits in the register BAR.
pub const MSIX_PENDING_OFFSET: usize = 0x1800;

/// Where the pages show registers whose BAR is at `address`: their second half is the first MiB of the window.
pub fn offset_of(address: u64, window: &Range<u64>) -> Option<usize> {
    let offset = usize::try_from(address.checked_sub(window.start)?).ok()?;
    (offset.checked_add(REGISTER_BYTES)? <= HALF_BYTES).then(|| HALF_BYTES + offset)
}

/// Registers, and where the guest sees them.
pub struct RegisterPage {
    pages: Arc<dyn ConfigSpaceMemory>,
    shown: Mutex<Shown>,
}

struct Shown {
    content: Box<[u8; REGISTER_BYTES]>,
    /// Offset in the pages. None while the BAR is elsewhere or not decoded.
    at: Option<usize>,
}

impl RegisterPage {
    /// Registers of zeros, not yet shown.
    pub fn new(pages: Arc<dyn ConfigSpaceMemory>) -> Arc<Self> {
        let shown = Mutex::new(Shown { content: Box::new([0; REGISTER_BYTES]), at: None });
        Arc::new(Self { pages, shown })
    }

    /// Changes registers.
    pub fn update(&self, offset: usize, bytes: &[u8]) {
        self.change(&mut self.lock(), offset, bytes);
    }

    /// Reads registers; zero behind the end.
    pub fn read(&self, offset: usize, data: &mut [u8]) {
        data.fill(0);
        let shown = self.lock();
        for (to, from) in data.iter_mut().zip(shown.content.get(offset..).unwrap_or_default()) {
            *to = *from;
        }
    }

    /// Shows status and generation as they are now. They change on several threads: whoever changed them calls this, and the
    /// last caller shows the last values.
    pub fn refresh_status(&self, registers: &Registers) {
        let mut shown = self.lock();
        let bytes = [registers.status(), registers.generation()];
        let at = usize::try_from(common::DEVICE_STATUS).unwrap_or(usize::MAX);
        self.change(&mut shown, at, &bytes);
    }

    /// Shows the registers at another place, or nowhere.
    pub fn move_to(&self, at: Option<usize>) {
        let mut shown = self.lock();
        if shown.at == at {
            return;
        }
        if let Some(old) = shown.at {
            self.pages.store(old, &[0; REGISTER_BYTES]);
        }
        if let Some(new) = at {
            self.pages.store(new, shown.content.as_slice());
        }
        shown.at = at;
    }

    /// Stores aligned words that differ, so that the guest sees each of them whole.
    fn change(&self, shown: &mut Shown, offset: usize, bytes: &[u8]) {
        let Some(end) = offset.checked_add(bytes.len()) else { return };
        let words = offset & !3..end.next_multiple_of(4);
        let old = shown.content.get(words.clone()).unwrap_or_default().to_vec();
        let Some(content) = shown.content.get_mut(offset..end) else { return };
        content.copy_from_slice(bytes);
        let Some(at) = shown.at else { return };
        let new = shown.content.get(words.clone()).unwrap_or_default();
        for (index, (new, old)) in new.chunks_exact(4).zip(old.chunks_exact(4)).enumerate() {
            if new != old {
                self.pages.store(at.saturating_add(words.start + index * 4), new);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Shown> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
