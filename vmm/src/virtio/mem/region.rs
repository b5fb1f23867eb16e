//! The memory behind the blocks: shown and taken away slot by slot, to processors and devices alike.

use std::io;
use std::ops::Range;
use std::sync::{Arc, PoisonError};

use thiserror::Error;
use vm_memory::{GuestAddress, GuestAddressSpace, GuestMemory, GuestMemoryRegion};

use crate::memory::{GuestRam, MemoryError, Reserve};
use crate::memory_slots::{Access, MemorySlots, SlotId};

/// A slot can't be shown or taken away.
#[derive(Debug, Error)]
pub enum RegionError {
    /// By the machine.
    #[error("The host refuses a memory slot")]
    Slot(#[from] io::Error),
    /// By the table of guest memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

/// A reserve, cut into slots of which some are open.
///
/// Devices see runs of open slots as one region each, so that no buffer is cut where the guest sees none.
pub struct Region {
    reserve: Reserve,
    ram: GuestRam,
    slots: Arc<dyn MemorySlots>,
    slot_bytes: u64,
    open: Vec<Option<SlotId>>,
}

impl Region {
    /// All slots are closed.
    pub fn new(reserve: Reserve, ram: GuestRam, slots: Arc<dyn MemorySlots>, slot_bytes: u64) -> Self {
        let count = reserve.host_range().size.checked_div(slot_bytes).unwrap_or(0);
        Self { reserve, ram, slots, slot_bytes, open: vec![None; usize::try_from(count).unwrap_or(0)] }
    }

    /// A slot is open.
    pub fn is_open(&self, slot: usize) -> bool {
        self.open.get(slot).is_some_and(Option::is_some)
    }

    /// Size of all open slots.
    pub fn open_bytes(&self) -> u64 {
        self.open.iter().flatten().count() as u64 * self.slot_bytes
    }

    /// Opens those of `slots` that are closed: all, or none and an error.
    pub fn open(&mut self, slots: Range<usize>) -> Result<(), RegionError> {
        let before = self.runs();
        let closed: Vec<_> = slots.filter(|&slot| self.open.get(slot) == Some(&None)).collect();
        let result = closed.iter().try_for_each(|&slot| self.show(slot));
        if let Err(error) = result.and_then(|()| self.show_to_devices(&before)) {
            closed.into_iter().for_each(|slot| self.hide(slot));
            return Err(error);
        }
        Ok(())
    }

    /// Closes a slot: nobody gets at it any more.
    pub fn close(&mut self, slots: impl Iterator<Item = usize>) {
        let before = self.runs();
        slots.for_each(|slot| self.hide(slot));
        if let Err(error) = self.show_to_devices(&before) {
            // Devices still see it, as zeros: the guest can fill it by a device, but not more than there is.
            crate::log::line(&format!("memory device: {error}"));
        }
    }

    /// Gives the memory of a part back to the host.
    pub fn discard(&self, offset: u64, bytes: u64) -> bool {
        self.reserve.discard(offset, bytes)
    }

    fn show(&mut self, slot: usize) -> Result<(), RegionError> {
        let outside = || io::Error::from(io::ErrorKind::InvalidInput);
        let range = self.reserve.part(slot as u64 * self.slot_bytes, self.slot_bytes).ok_or_else(outside)?;
        let entry = self.open.get_mut(slot).ok_or_else(outside)?;
        *entry = Some(self.slots.show(range, Access::ReadWrite)?);
        Ok(())
    }

    fn hide(&mut self, slot: usize) {
        let Some(entry) = self.open.get_mut(slot) else { return };
        if let Some(id) = *entry {
            match self.slots.hide(id) {
                Ok(()) => *entry = None,
                // It stays open: the guest can still get at it, and the next close tries again.
                Err(error) => crate::log::line(&format!("memory device: can't take a slot away: {error}")),
            }
        }
    }

    /// Runs of open slots: offset and size in bytes.
    fn runs(&self) -> Vec<(u64, u64)> {
        let mut runs: Vec<(u64, u64)> = Vec::new();
        let open = self.open.iter().zip(0u64..).filter(|(open, _)| open.is_some());
        for start in open.map(|(_, slot)| slot * self.slot_bytes) {
            match runs.last_mut() {
                Some((first, bytes)) if *first + *bytes == start => *bytes += self.slot_bytes,
                _ => runs.push((start, self.slot_bytes)),
            }
        }
        runs
    }

    /// Brings the devices' view up to date. Those that use memory right now finish with the view that they have.
    fn show_to_devices(&self, before: &[(u64, u64)]) -> Result<(), RegionError> {
        let after = self.runs();
        let start = self.reserve.host_range().guest.0;
        let regions = |error: vm_memory::GuestRegionCollectionError| MemoryError::Regions(error.to_string());
        let lock = self.ram.lock().unwrap_or_else(PoisonError::into_inner);
        let current = self.ram.memory();
        let mut memory = (*current).clone();
        for (offset, bytes) in before.iter().filter(|run| !after.contains(run)) {
            let address = GuestAddress(start + offset);
            // An earlier failure may have left it out.
            if current.iter().any(|region| region.start_addr() == address && region.len() == *bytes) {
                memory = memory.remove_region(address, *bytes).map_err(regions)?.0;
            }
        }
        for (offset, bytes) in after.iter().filter(|run| !before.contains(run)) {
            memory = memory.insert_region(Arc::new(self.reserve.region(*offset, *bytes)?)).map_err(regions)?;
        }
        lock.replace(memory);
        Ok(())
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        self.close(0..self.open.len());
    }
}
