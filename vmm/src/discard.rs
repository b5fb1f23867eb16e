//! Gives pages of guest memory back to the host: the next access finds zeros.
//!
//! Only private anonymous memory is given back. To do the same to a file would make holes in it.
#![allow(unsafe_code, reason = "madvise takes an address")]

use vm_memory::{Address, GuestAddress, GuestMemory, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap};

use crate::memory::HUGE_PAGE_BYTES;
use crate::virtio::sys::GuestSlice;

/// Unit of what can be given back, and of addresses in the balloon (virtio 1.2, section 5.5.6).
pub const PAGE_BYTES: u64 = 4096;

/// Gives back the whole pages of a range and returns how many bytes that were. What is not guest memory, is no whole page, or
/// belongs to a file, stays as it is.
///
/// Of memory in transparent huge pages a part can be given back too; the host's kernel frees a huge page when all of it is.
pub fn discard(memory: &GuestMemoryMmap, start: GuestAddress, bytes: u64) -> u64 {
    let (mut at, mut left, mut given) = (start, bytes, 0);
    while left > 0 {
        let Some(region) = memory.find_region(at) else { break };
        let offset = at.unchecked_offset_from(region.start_addr());
        let here = left.min(region.len() - offset);
        given += discard_part(region, offset, here);
        left -= here;
        let Some(next) = at.checked_add(here) else { break };
        at = next;
    }
    given
}

/// As [`discard`], for a part of guest memory that a descriptor names.
pub fn discard_slice(memory: &GuestMemoryMmap, slice: &GuestSlice<'_>) -> u64 {
    let start = slice.ptr_guard().as_ptr() as u64;
    let place = memory.iter().find_map(|region| {
        let offset = start.checked_sub(region.as_ptr() as u64)?;
        (offset < region.len()).then_some((region, offset))
    });
    // A slice is a part of one region.
    place.map_or(0, |(region, offset)| discard_part(region, offset, (slice.len() as u64).min(region.len() - offset)))
}

fn discard_part(region: &GuestRegionMmap, offset: u64, bytes: u64) -> u64 {
    let flags = region.flags();
    if flags & libc::MAP_ANONYMOUS == 0 || flags & libc::MAP_PRIVATE == 0 {
        return 0;
    }
    let unit = if flags & libc::MAP_HUGETLB != 0 { HUGE_PAGE_BYTES as u64 } else { PAGE_BYTES };
    let start = offset.next_multiple_of(unit);
    let end = (offset + bytes) / unit * unit;
    let (Some(size), Ok(skip)) = (end.checked_sub(start).filter(|&size| size > 0), usize::try_from(start)) else {
        return 0;
    };
    let Ok(length) = usize::try_from(size) else { return 0 };
    // SAFETY: the range is inside the region's mapping, which is never unmapped. It holds guest memory and nothing else; nobody has
    // Rust references into it, and its content may change at any time.
    let result = unsafe { libc::madvise(region.as_ptr().add(skip).cast(), length, libc::MADV_DONTNEED) };
    // Kernels before 5.18 refuse it for pages of hugetlbfs.
    if result == 0 { size } else { 0 }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests stop at the first surprise")]

    use vm_memory::{Bytes, GuestAddressSpace, VolatileMemory};

    use super::*;
    use crate::config::HugePages;
    use crate::memory::create_ram;

    const MIB: u64 = 1 << 20;

    fn byte_at(memory: &GuestMemoryMmap, address: u64) -> u8 {
        memory.read_obj(GuestAddress(address)).unwrap()
    }

    #[test]
    fn only_whole_pages_inside_memory_are_given_back() {
        let ranges = [(GuestAddress(0), 64 << 10), (GuestAddress(64 << 10), 64 << 10), (GuestAddress(MIB), 64 << 10)];
        let memory = GuestMemoryMmap::from_ranges(&ranges).unwrap();
        for (start, size) in ranges {
            memory.write_slice(&vec![7; size], start).unwrap();
        }
        assert_eq!(discard(&memory, GuestAddress(1), 4095), 0);
        assert_eq!(discard(&memory, GuestAddress(1), 8191), 4096);
        assert_eq!((byte_at(&memory, 4095), byte_at(&memory, 4096), byte_at(&memory, 8192)), (7, 0, 7));
        // Across the border of two regions, and up to a hole.
        assert_eq!(discard(&memory, GuestAddress(60 << 10), 8192), 8192);
        assert_eq!(discard(&memory, GuestAddress(120 << 10), MIB), 8 << 10);
        assert_eq!((byte_at(&memory, MIB), byte_at(&memory, 127 << 10)), (7, 0));
        assert_eq!(discard(&memory, GuestAddress(512 << 10), 4096), 0);
        assert_eq!(discard(&memory, GuestAddress(u64::MAX - 4095), u64::MAX), 0);
        let slice = memory.get_slice(GuestAddress(MIB), 8192).unwrap();
        assert_eq!(discard_slice(&memory, &slice.get_slice(100, 8000).unwrap()), 0);
        assert_eq!(discard_slice(&memory, &slice), 8192);
        assert_eq!(byte_at(&memory, MIB), 0);
    }

    #[test]
    fn resident_memory_falls() {
        let ram = create_ram(64 << 20, HugePages::Transparent).unwrap();
        let memory = ram.memory();
        let resident = crate::resident::ResidentMemory::new(crate::memory::host_ranges(&memory)).unwrap();
        memory.write_slice(&vec![1; 32 << 20], GuestAddress(0)).unwrap();
        assert!(resident.read().unwrap().guest_resident_kib >= 32 << 10);
        assert_eq!(discard(&memory, GuestAddress(0), 32 << 20), 32 << 20);
        assert!(resident.read().unwrap().guest_resident_kib < 4 << 10);
    }
}
