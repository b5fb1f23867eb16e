//! Directory data: blocks of entries sorted by name, each block with its own table and names.

use super::format::{BLOCK_BYTES, DIRENT_BYTES, put16, put64};

/// `erofs_dirent` file types (the same numbers as `DT_*` in the kernel's `fs_types.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum FileType {
    Regular = 1,
    Directory = 2,
    CharDevice = 3,
    BlockDevice = 4,
    Fifo = 5,
    Socket = 6,
    Symlink = 7,
}

/// An entry; the caller sorts them by name, `.` and `..` among the others.
pub(super) struct Entry<'a> {
    pub(super) name: &'a [u8],
    pub(super) nid: u64,
    pub(super) file_type: FileType,
}

/// Bytes of a directory with these names, in order.
pub(super) fn data_bytes<'a>(names: impl Iterator<Item = &'a [u8]>) -> u64 {
    let mut full_blocks = 0;
    let mut used = 0;
    for name in names {
        let entry = DIRENT_BYTES + name.len();
        if used + entry > BLOCK_BYTES {
            full_blocks += 1;
            used = 0;
        }
        used += entry;
    }
    full_blocks * BLOCK_BYTES as u64 + used as u64
}

/// The directory's data: every block but the last is filled up to the block size.
pub(super) fn data(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut data = Vec::new();
    let mut rest = entries;
    while !rest.is_empty() {
        data.resize(data.len().next_multiple_of(BLOCK_BYTES), 0);
        let mut used = 0;
        let count = rest
            .iter()
            .take_while(|entry| {
                used += DIRENT_BYTES + entry.name.len();
                used <= BLOCK_BYTES
            })
            .count()
            .max(1);
        let (block, later) = rest.split_at(count);
        append_block(block, &mut data);
        rest = later;
    }
    data
}

fn append_block(entries: &[Entry<'_>], data: &mut Vec<u8>) {
    let mut name_offset = entries.len() * DIRENT_BYTES;
    for entry in entries {
        put64(data, entry.nid);
        put16(data, u16::try_from(name_offset).unwrap_or_default());
        data.extend([entry.file_type as u8, 0]);
        name_offset += entry.name.len();
    }
    for entry in entries {
        data.extend(entry.name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_announced_size_is_the_written_size() {
        for count in [0, 1, 2, 100, 255, 256, 3000] {
            for length in [1, 4, 17, 255] {
                let names: Vec<Vec<u8>> = (0..count).map(|n| format!("{n:0length$}").into_bytes()).collect();
                let entries: Vec<Entry<'_>> =
                    names.iter().map(|name| Entry { name, nid: 1, file_type: FileType::Regular }).collect();
                let announced = data_bytes(names.iter().map(Vec::as_slice));
                assert_eq!(announced, data(&entries).len() as u64, "{count} names of {length}");
            }
        }
    }
}
