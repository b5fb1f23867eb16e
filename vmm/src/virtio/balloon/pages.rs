//! Page numbers in the balloon's queues (virtio 1.2, section 5.5.6): from a list to ranges.

use vm_memory::{GuestAddress, GuestMemory, GuestMemoryMmap};

use crate::discard::PAGE_BYTES;
use crate::virtio::buffers::Reader;

/// Most page numbers of one request; Linux sends 256. Keeps one request from taking long.
pub const MAX_PAGES: usize = 4096;

/// Pages that a driver names.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Pages {
    /// Ranges in guest memory, ascending, as far apart as possible: start and size in bytes.
    pub ranges: Vec<(GuestAddress, u64)>,
    /// Page numbers that are not in guest memory, or too many for one request.
    pub ignored: u64,
}

/// Reads a list of page numbers, 32 bits each.
pub fn read(reader: &mut Reader<'_>, memory: &GuestMemoryMmap) -> Pages {
    let mut pages = Pages::default();
    let mut numbers = Vec::with_capacity((reader.remaining() / 4).min(MAX_PAGES));
    let mut number = [0; 4];
    while numbers.len() < MAX_PAGES && reader.read(&mut number) == number.len() {
        let page = u64::from(u32::from_le_bytes(number));
        // Regions of memory begin and end with a page.
        if memory.find_region(GuestAddress(page * PAGE_BYTES)).is_some() {
            numbers.push(page);
        } else {
            pages.ignored += 1;
            if pages.ignored >= MAX_PAGES as u64 {
                break;
            }
        }
    }
    pages.ignored += (reader.remaining() / number.len()) as u64;
    numbers.sort_unstable();
    numbers.dedup();
    pages.ranges = merge(&numbers);
    pages
}

fn merge(ascending: &[u64]) -> Vec<(GuestAddress, u64)> {
    let mut ranges: Vec<(GuestAddress, u64)> = Vec::new();
    for start in ascending.iter().map(|number| number * PAGE_BYTES) {
        match ranges.last_mut() {
            Some((first, bytes)) if first.0 + *bytes == start => *bytes += PAGE_BYTES,
            _ => ranges.push((GuestAddress(start), PAGE_BYTES)),
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_become_one_range() {
        let range = |page: u64, count: u64| (GuestAddress(page * PAGE_BYTES), count * PAGE_BYTES);
        assert_eq!(merge(&[]), []);
        assert_eq!(merge(&[1, 2, 3, 5, 7, 8]), [range(1, 3), range(5, 1), range(7, 2)]);
    }
}
