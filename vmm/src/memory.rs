//! All mappings of guest memory.
//!
//! This is one of the modules with `unsafe`: it makes the mappings that the guest runs in, and it is the only place that
//! holds raw pointers to them. Everything else goes through [`GuestRam`] and [`ConfigPages`].
#![allow(unsafe_code, reason = "creates and owns the memory mappings of the guest")]

mod file;
mod reserve;

use std::io;
use std::ptr;

use thiserror::Error;
use vm_memory::mmap::{MmapRegion, MmapRegionError};
use vm_memory::{GuestAddress, GuestMemory, GuestMemoryAtomic, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap};

pub use self::file::{FileMemory, ShownFile};
pub use self::reserve::Reserve;
use crate::arch::layout;
use crate::config::HugePages;
use crate::pci::ConfigSpaceMemory;

/// Guest memory whose regions may change while devices run: each use takes a snapshot with `memory()`.
pub type GuestRam = GuestMemoryAtomic<GuestMemoryMmap>;

/// Size of a huge page, and the alignment of every mapping here.
pub const HUGE_PAGE_BYTES: usize = 2 << 20;

/// Flags of the mappings of guest memory.
const ANONYMOUS: i32 = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;

/// Guest memory can't be had.
#[derive(Debug, Error)]
pub enum MemoryError {
    /// The host refuses the mapping.
    #[error("The host can't give the VM {size_mib} MiB of memory")]
    Map {
        /// Size of the mapping.
        size_mib: u64,
        /// What mmap says.
        source: io::Error,
    },
    /// The pool of huge pages is empty or too small.
    #[error(
        "The host has fewer than {pages} free 2 MiB huge pages; raise vm.nr_hugepages or use transparent huge pages"
    )]
    HugePages {
        /// Number of pages asked for.
        pages: u64,
        /// What mmap says.
        source: io::Error,
    },
    /// Huge pages come whole.
    #[error("With 2M huge pages the memory size has to be a multiple of 2 MiB")]
    NotWholeHugePages,
    /// The regions don't make an address space.
    #[error("Can't set up guest memory: {0}")]
    Regions(String),
}

impl MemoryError {
    /// The same error, about all memory of a VM and not a region of it.
    fn of_all(self, size_bytes: u64) -> Self {
        match self {
            Self::Map { source, .. } => Self::Map { size_mib: size_bytes >> 20, source },
            Self::HugePages { source, .. } => Self::HugePages { pages: size_bytes >> 21, source },
            other => other,
        }
    }
}

impl From<MmapRegionError> for MemoryError {
    fn from(error: MmapRegionError) -> Self {
        Self::Regions(error.to_string())
    }
}

/// Maps the RAM of a VM: anonymous and private, low memory up to the hole below 4 GiB and the rest above 4 GiB.
///
pub fn create_ram(size_bytes: u64, pages: HugePages) -> Result<GuestRam, MemoryError> {
    let regions = layout::ram_regions(size_bytes)
        .into_iter()
        .map(|(start, size)| {
            let mapping = Mapping::new(size, pages).map_err(|error| error.of_all(size_bytes))?;
            let region = mapping.into_region()?;
            GuestRegionMmap::new(region, start)
                .ok_or_else(|| MemoryError::Regions(format!("region at {:#x} is past the end of memory", start.0)))
        })
        .collect::<Result<Vec<_>, MemoryError>>()?;
    let memory = GuestMemoryMmap::from_regions(regions).map_err(|e| MemoryError::Regions(e.to_string()))?;
    Ok(GuestMemoryAtomic::new(memory))
}

/// A piece of the monitor's address space that a memory slot can show to the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostRange {
    /// Address in the guest.
    pub guest: GuestAddress,
    /// Address in the monitor.
    pub host: u64,
    /// Size in bytes.
    pub size: u64,
}

/// Lists the regions of guest memory for KVM.
pub fn host_ranges(memory: &GuestMemoryMmap) -> Vec<HostRange> {
    memory
        .iter()
        .map(|region| HostRange { guest: region.start_addr(), host: region.as_ptr() as u64, size: region.len() })
        .collect()
}

/// The pages that hold PCI configuration space and device registers: the guest reads them without an exit, only the monitor writes.
#[derive(Debug)]
pub struct ConfigPages {
    mapping: Mapping,
}

impl ConfigPages {
    /// Maps pages of zeros. Small ones, taken as they are used: a huge page would save the guest about 40 faults at its start and
    /// cost every VM 2 MiB.
    pub fn new() -> Result<Self, MemoryError> {
        Ok(Self { mapping: Mapping::new(layout::CONFIG_PAGES_BYTES, HugePages::None)? })
    }

    /// Where the pages are, for a memory slot at `guest`.
    pub fn host_range(&self, guest: GuestAddress) -> HostRange {
        HostRange { guest, host: self.mapping.start as u64, size: self.mapping.size as u64 }
    }
}

impl ConfigSpaceMemory for ConfigPages {
    fn store(&self, offset: usize, data: &[u8]) {
        if offset.checked_add(data.len()).is_none_or(|end| end > self.mapping.size) {
            return;
        }
        // SAFETY: the check above keeps the access inside the mapping, which is never unmapped; no Rust reference to these
        // bytes exists anywhere.
        unsafe {
            let cell = self.mapping.start.add(offset);
            match *data {
                [a, b] if offset.is_multiple_of(2) => cell.cast::<u16>().write_volatile(u16::from_ne_bytes([a, b])),
                [a, b, c, d] if offset.is_multiple_of(4) => {
                    cell.cast::<u32>().write_volatile(u32::from_ne_bytes([a, b, c, d]));
                }
                [a, b, c, d, e, f, g, h] if offset.is_multiple_of(8) => {
                    cell.cast::<u64>().write_volatile(u64::from_ne_bytes([a, b, c, d, e, f, g, h]));
                }
                _ => data.iter().enumerate().for_each(|(index, byte)| cell.add(index).write_volatile(*byte)),
            }
        }
    }
}

/// An anonymous private mapping, aligned to a huge page. It lives as long as the process (files are the exception), because KVM knows
/// its address: a memory slot over unmapped addresses would let the guest into whatever is mapped there next.
#[derive(Debug)]
struct Mapping {
    start: *mut u8,
    size: usize,
    /// Flags of mmap.
    flags: i32,
}

// SAFETY: the pointer is an address range that this value owns; it has no ties to a thread.
unsafe impl Send for Mapping {}
// SAFETY: shared access goes through volatile reads and writes of aligned cells only.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(size: usize, pages: HugePages) -> Result<Self, MemoryError> {
        match pages {
            HugePages::Hugetlb2M => Self::hugetlb(size),
            HugePages::Transparent => Self::aligned(size, libc::MADV_HUGEPAGE, 0),
            HugePages::None => Self::aligned(size, libc::MADV_NOHUGEPAGE, 0),
        }
    }

    fn hugetlb(size: usize) -> Result<Self, MemoryError> {
        if !size.is_multiple_of(HUGE_PAGE_BYTES) {
            return Err(MemoryError::NotWholeHugePages);
        }
        let start = map_anonymous(size, libc::MAP_HUGETLB | libc::MAP_HUGE_2MB)
            .map_err(|source| MemoryError::HugePages { pages: (size / HUGE_PAGE_BYTES) as u64, source })?;
        Ok(Self { start, size, flags: ANONYMOUS | libc::MAP_HUGETLB })
    }

    /// Maps more than needed and gives back what is before and behind an aligned range: only whole aligned huge pages become
    /// transparent ones.
    fn aligned(size: usize, advice: i32, flags: i32) -> Result<Self, MemoryError> {
        let fail = |source| MemoryError::Map { size_mib: size as u64 >> 20, source };
        let reserved =
            size.checked_add(HUGE_PAGE_BYTES).ok_or_else(|| fail(io::Error::from_raw_os_error(libc::ENOMEM)))?;
        let first = map_anonymous(reserved, flags).map_err(fail)?;
        let head = first.align_offset(HUGE_PAGE_BYTES);
        let tail = HUGE_PAGE_BYTES - head;
        // SAFETY: both ranges are parts of the mapping just made, which nothing else knows; `head + size + tail` is its size. The
        // advice changes no content. Failures are harmless: the ranges stay mapped, or pages stay small.
        let start = unsafe {
            let start = first.add(head);
            if head > 0 {
                libc::munmap(first.cast(), head);
            }
            if tail > 0 {
                libc::munmap(start.add(size).cast(), tail);
            }
            libc::madvise(start.cast(), size, advice);
            // A core dump of the monitor would contain the guest's secrets.
            libc::madvise(start.cast(), size, libc::MADV_DONTDUMP);
            start
        };
        Ok(Self { start, size, flags: ANONYMOUS | flags })
    }

    /// Hands the range to `vm-memory`.
    fn into_region(self) -> Result<MmapRegion, MemoryError> {
        // SAFETY: the range is mapped readable and writable with these flags, and is never unmapped.
        let region =
            unsafe { MmapRegion::build_raw(self.start, self.size, libc::PROT_READ | libc::PROT_WRITE, self.flags) };
        Ok(region?)
    }
}

fn map_anonymous(size: usize, flags: i32) -> io::Result<*mut u8> {
    // SAFETY: a new anonymous mapping at an address of the kernel's choice touches no existing memory.
    let address =
        unsafe { libc::mmap(ptr::null_mut(), size, libc::PROT_READ | libc::PROT_WRITE, ANONYMOUS | flags, -1, 0) };
    if address == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    Ok(address.cast())
}

/// Makes all threads share one heap arena: each further arena of the C library costs resident memory, and the monitor
/// allocates little once the guest runs.
pub fn limit_heap_arenas() {
    // SAFETY: sets a number inside the allocator; called before other threads exist.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests stop at the first surprise")]

    use vm_memory::{Bytes, GuestAddressSpace};

    use super::*;

    #[test]
    fn ram_is_aligned_to_huge_pages_and_zeroed() {
        let ram = create_ram(64 << 20, HugePages::Transparent).unwrap();
        let memory = ram.memory();
        let ranges = host_ranges(&memory);
        assert_eq!(ranges.len(), 1);
        assert_eq!(ranges[0].host % HUGE_PAGE_BYTES as u64, 0);
        assert_eq!(memory.read_obj::<u64>(GuestAddress((64 << 20) - 8)).unwrap(), 0);
    }

    #[test]
    fn ram_above_the_hole_is_split() {
        let ram = create_ram(5 << 30, HugePages::Transparent).unwrap();
        let memory = ram.memory();
        assert_eq!(memory.num_regions(), 2);
        assert!(memory.find_region(GuestAddress(layout::ECAM_START)).is_none());
        assert!(memory.find_region(GuestAddress(4 << 30)).is_some());
    }

    #[test]
    fn more_memory_than_the_host_has_is_a_clear_error() {
        let error = create_ram(1 << 46, HugePages::Transparent).unwrap_err();
        assert!(error.to_string().contains("can't give the VM"), "{error}");
    }

    #[test]
    fn odd_sizes_do_not_fit_huge_pages() {
        assert!(matches!(create_ram(33 << 20, HugePages::Hugetlb2M), Err(MemoryError::NotWholeHugePages)));
    }

    #[test]
    fn stores_to_config_pages_are_bounded() {
        let pages = ConfigPages::new().unwrap();
        let size = pages.mapping.size;
        pages.store(0x1000, &[1, 2, 3, 4]);
        pages.store(0x1005, &[5, 6]);
        for (offset, len) in [(size, 1), (size - 1, 2), (usize::MAX, 4), (usize::MAX - 3, 4)] {
            pages.store(offset, &[7, 7, 7, 7][..len]);
        }
        // SAFETY: inside the mapping, and nothing writes at the same time.
        let seen = unsafe { std::slice::from_raw_parts(pages.mapping.start.add(0x1000), 8) };
        assert_eq!(seen, [1, 2, 3, 4, 0, 5, 6, 0]);
    }
}
