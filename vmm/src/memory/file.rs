//! A file as guest memory.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use vm_memory::GuestAddress;

use super::{HUGE_PAGE_BYTES, HostRange, Mapping, MemoryError};
use crate::memory_slots::{Access, MemorySlots, SlotId};

/// A file in the monitor's address space, shared with everybody who maps it, and padded with anonymous memory to whole huge pages.
///
/// The monitor never touches it: a page that the file doesn't have any more, because somebody cut it short, would be a SIGBUS. For the
/// guest's processors KVM reports such a page as an error of the vCPU.
#[derive(Debug)]
pub struct FileMemory {
    mapping: Mapping,
}

impl FileMemory {
    /// Maps the first `bytes` of a file, at least one. Writable only if the file was opened so.
    pub fn new(file: &File, bytes: u64, writable: bool) -> Result<Self, MemoryError> {
        let fail = |source| MemoryError::Map { size_mib: bytes.div_ceil(1 << 20), source };
        let too_large = || fail(io::Error::from_raw_os_error(libc::ENOMEM));
        let bytes = usize::try_from(bytes).map_err(|_| too_large())?;
        let size = bytes.checked_next_multiple_of(HUGE_PAGE_BYTES).filter(|&size| size > 0).ok_or_else(too_large)?;
        // Padding that a guest fills would count as the monitor's.
        let this = Self { mapping: Mapping::aligned(size, libc::MADV_NOHUGEPAGE, libc::MAP_NORESERVE)? };
        let mapping = &this.mapping;
        let protection = if writable { libc::PROT_READ | libc::PROT_WRITE } else { libc::PROT_READ };
        let flags = libc::MAP_SHARED | libc::MAP_FIXED;
        // SAFETY: replaces the beginning of the mapping just made, which nothing else knows yet; `bytes` is at most its size.
        let address = unsafe { libc::mmap(mapping.start.cast(), bytes, protection, flags, file.as_raw_fd(), 0) };
        if address == libc::MAP_FAILED {
            return Err(fail(io::Error::last_os_error()));
        }
        // SAFETY: the range is the mapping just made, and the advice changes no content. A core dump of the monitor needn't hold it.
        unsafe { libc::madvise(mapping.start.cast(), bytes, libc::MADV_DONTDUMP) };
        Ok(this)
    }

    /// Shows it to the guest at `guest`, until the returned value is dropped.
    pub fn show(self, guest: GuestAddress, access: Access, slots: Arc<dyn MemorySlots>) -> io::Result<ShownFile> {
        let range = HostRange { guest, host: self.mapping.start as u64, size: self.mapping.size as u64 };
        let slot = slots.show(range, access)?;
        Ok(ShownFile { range, memory: Some(self), slot, slots })
    }
}

/// Unmaps the file. Its lock goes with the mapping, so this can't wait for the end of the process.
impl Drop for FileMemory {
    fn drop(&mut self) {
        // SAFETY: the whole mapping, which only this value knows: no memory slot shows it, see `ShownFile`.
        unsafe { libc::munmap(self.mapping.start.cast(), self.mapping.size) };
    }
}

/// A file that the guest sees.
pub struct ShownFile {
    /// Where.
    pub range: HostRange,
    memory: Option<FileMemory>,
    slot: SlotId,
    slots: Arc<dyn MemorySlots>,
}

impl Drop for ShownFile {
    fn drop(&mut self) {
        if let Err(error) = self.slots.hide(self.slot) {
            crate::log::line(&format!("can't take a memory slot away: {error}"));
            // The guest still gets at it, so nothing else may ever be mapped there.
            std::mem::forget(self.memory.take());
        }
    }
}
