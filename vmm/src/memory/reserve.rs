//! Guest memory that isn't there from the start.

use vm_memory::mmap::MmapRegion;
use vm_memory::{GuestAddress, GuestRegionMmap};

use super::{HostRange, Mapping, MemoryError};
use crate::config::HugePages;

/// A range of guest addresses with anonymous memory behind it: takes address space, and memory only where it is touched.
#[derive(Debug)]
pub struct Reserve {
    mapping: Mapping,
    guest: GuestAddress,
}

impl Reserve {
    /// Reserves `size` bytes for `guest`. Pages of hugetlbfs can't be reserved without being taken, so `pages` may not ask for them.
    pub fn new(guest: GuestAddress, size: u64, pages: HugePages) -> Result<Self, MemoryError> {
        let size = usize::try_from(size).map_err(|_| MemoryError::Regions(format!("{size} bytes are too many")))?;
        let advice = if pages == HugePages::None { libc::MADV_NOHUGEPAGE } else { libc::MADV_HUGEPAGE };
        // The host's limit for committed memory counts what is used, and not what may be used some day.
        Ok(Self { mapping: Mapping::aligned(size, advice, libc::MAP_NORESERVE)?, guest })
    }

    /// All of it.
    pub fn host_range(&self) -> HostRange {
        HostRange { guest: self.guest, host: self.mapping.start as u64, size: self.mapping.size as u64 }
    }

    /// A part of it, if it is one.
    pub fn part(&self, offset: u64, size: u64) -> Option<HostRange> {
        let whole = self.host_range();
        let inside = size > 0 && offset.checked_add(size)? <= whole.size;
        inside.then(|| HostRange { guest: GuestAddress(whole.guest.0 + offset), host: whole.host + offset, size })
    }

    /// A part of it, for the devices.
    pub fn region(&self, offset: u64, size: u64) -> Result<GuestRegionMmap, MemoryError> {
        let outside = || MemoryError::Regions(format!("{size:#x} bytes at {offset:#x} are outside of the reserve"));
        let part = self.part(offset, size).ok_or_else(outside)?;
        let (Ok(skip), Ok(size)) = (usize::try_from(offset), usize::try_from(size)) else { return Err(outside()) };
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, self.mapping.flags);
        // SAFETY: `part` has checked that the range is inside the mapping, which is readable and writable, has these flags, and is
        // never unmapped. Regions of the same memory may overlap in time: all access is volatile.
        let region = unsafe { MmapRegion::build_raw(self.mapping.start.add(skip), size, protection, flags) }?;
        GuestRegionMmap::new(region, part.guest).ok_or_else(outside)
    }

    /// Gives the memory of a part back to the host; the next access finds zeros. False if it can't be.
    pub fn discard(&self, offset: u64, size: u64) -> bool {
        let (Some(_), Ok(skip), Ok(size)) = (self.part(offset, size), usize::try_from(offset), usize::try_from(size))
        else {
            return false;
        };
        // SAFETY: `part` has checked that the range is inside the mapping, which holds guest memory and nothing else.
        unsafe { libc::madvise(self.mapping.start.add(skip).cast(), size, libc::MADV_DONTNEED) == 0 }
    }
}
