//! Places for inodes in the metadata area.

use std::collections::BTreeMap;

use super::format::{BLOCK_BYTES, SLOT_BYTES};

/// Gives out places so that an inode with its attributes and inlined tail stays within one block (the kernel
/// wants that of tails and of inlined symlinks), choosing the fullest block with enough room.
pub(super) struct MetadataSpace {
    blocks: u64,
    /// Blocks with so many bytes free at their end.
    free: BTreeMap<usize, Vec<u64>>,
}

impl MetadataSpace {
    /// Space of which the first `reserved_bytes` (less than a block) are not given out.
    pub(super) fn new(reserved_bytes: usize) -> Self {
        let free = BLOCK_BYTES - reserved_bytes.next_multiple_of(SLOT_BYTES);
        MetadataSpace { blocks: 1, free: BTreeMap::from([(free, vec![0])]) }
    }

    /// Byte offset for `bytes`. More than a block starts a block of its own.
    pub(super) fn allocate(&mut self, bytes: usize) -> u64 {
        let bytes = bytes.next_multiple_of(SLOT_BYTES);
        if bytes > BLOCK_BYTES {
            let block = self.blocks;
            self.blocks += (bytes / BLOCK_BYTES) as u64;
            let rest = bytes % BLOCK_BYTES;
            if rest > 0 {
                self.put_back(BLOCK_BYTES - rest, self.blocks);
                self.blocks += 1;
            }
            return block * BLOCK_BYTES as u64;
        }
        let (block, free) = self.take(bytes).unwrap_or_else(|| {
            self.blocks += 1;
            (self.blocks - 1, BLOCK_BYTES)
        });
        self.put_back(free - bytes, block);
        block * BLOCK_BYTES as u64 + (BLOCK_BYTES - free) as u64
    }

    /// Blocks in use.
    pub(super) fn blocks(&self) -> u64 {
        self.blocks
    }

    fn take(&mut self, bytes: usize) -> Option<(u64, usize)> {
        let (&free, blocks) = self.free.range_mut(bytes..).next()?;
        let block = blocks.pop()?;
        if blocks.is_empty() {
            self.free.remove(&free);
        }
        Some((block, free))
    }

    fn put_back(&mut self, free: usize, block: u64) {
        if free >= SLOT_BYTES {
            self.free.entry(free).or_default().push(block);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_do_not_overlap_and_do_not_cross_blocks() {
        let mut space = MetadataSpace::new(64);
        let sizes = (0..2000).map(|n: usize| 32 + (n * 7919) % 4065).chain([5000, 9000, 64, 4096, 8192]);
        let mut places: Vec<(u64, u64)> = sizes.map(|bytes| (space.allocate(bytes), bytes as u64)).collect();
        places.sort_unstable();
        assert_eq!(places[0].0, 64);
        for pair in places.windows(2) {
            assert!(pair[0].0 + pair[0].1 <= pair[1].0, "{pair:?}");
        }
        for (offset, bytes) in places {
            let first = offset / 4096;
            assert!(bytes > 4096 || first == (offset + bytes - 1) / 4096);
            assert!(offset.is_multiple_of(32) && (offset + bytes).div_ceil(4096) <= space.blocks());
        }
    }
}
