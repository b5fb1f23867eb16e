//! The on-disk structures, as in Linux `fs/erofs/erofs_fs.h`; all numbers little endian.

/// Block size; every kernel that knows EROFS can read 4 KiB blocks.
pub(crate) const BLOCK_BYTES: usize = 4096;
/// Inodes stand at multiples of this; an inode's number counts them from the start of the metadata.
pub(super) const SLOT_BYTES: usize = 32;
pub(super) const COMPACT_INODE_BYTES: usize = 32;
pub(super) const EXTENDED_INODE_BYTES: usize = 64;
pub(super) const DIRENT_BYTES: usize = 12;

const MAGIC: u32 = 0xe0f5_e1e2;
const SUPERBLOCK_OFFSET: usize = 1024;
const BLOCK_BITS: u8 = 12;
const FEATURE_COMPAT_SB_CHKSUM: u32 = 1;
const FEATURE_COMPAT_MTIME: u32 = 2;

/// `i_format` data layouts (bits 1 to 3).
const LAYOUT_FLAT_PLAIN: u16 = 0;
const LAYOUT_FLAT_INLINE: u16 = 2;
/// No block address.
pub(super) const NULL_BLOCK: u32 = u32::MAX;

/// What the superblock says; the rest is constant.
pub(super) struct Superblock {
    pub(super) root_nid: u16,
    pub(super) inodes: u64,
    pub(super) blocks: u32,
    pub(super) meta_block: u32,
    /// Time of all compact inodes.
    pub(super) build_time: i64,
    pub(super) build_time_nsec: u32,
    pub(super) uuid: [u8; 16],
}

impl Superblock {
    /// Block 0: empty space for boot code, the superblock at 1024, zeros.
    pub(super) fn to_block(&self) -> Vec<u8> {
        let mut bytes = vec![0; SUPERBLOCK_OFFSET];
        put32(&mut bytes, MAGIC);
        put32(&mut bytes, 0); // checksum, below
        put32(&mut bytes, FEATURE_COMPAT_SB_CHKSUM | FEATURE_COMPAT_MTIME);
        bytes.extend([BLOCK_BITS, 0]); // sb_extslots
        put16(&mut bytes, self.root_nid);
        put64(&mut bytes, self.inodes);
        bytes.extend(self.build_time.to_le_bytes());
        put32(&mut bytes, self.build_time_nsec);
        put32(&mut bytes, self.blocks);
        put32(&mut bytes, self.meta_block);
        put32(&mut bytes, 0); // xattr_blkaddr: no shared xattrs
        bytes.extend(self.uuid);
        bytes.extend([0; 16]); // volume name
        put32(&mut bytes, 0); // feature_incompat
        bytes.resize(BLOCK_BYTES, 0);
        let checksum = crc32c(bytes.get(SUPERBLOCK_OFFSET..).unwrap_or_default());
        if let Some(field) = bytes.get_mut(SUPERBLOCK_OFFSET + 4..SUPERBLOCK_OFFSET + 8) {
            field.copy_from_slice(&checksum.to_le_bytes());
        }
        bytes
    }
}

/// An inode as it is written.
pub(super) struct InodeRecord {
    pub(super) compact: bool,
    pub(super) inline: bool,
    /// `i_xattr_icount`.
    pub(super) xattr_count: u16,
    /// Type and permission bits.
    pub(super) mode: u16,
    pub(super) links: u32,
    pub(super) size: u64,
    /// Start block or device number.
    pub(super) address: u32,
    /// Serial number for 32-bit `stat`.
    pub(super) serial: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: i64,
    pub(super) mtime_nsec: u32,
}

impl InodeRecord {
    /// Appends the inode. A compact one is only asked for when its narrow fields suffice.
    #[allow(clippy::cast_possible_truncation, reason = "the caller chose compact because the values fit")]
    pub(super) fn write(&self, bytes: &mut Vec<u8>) {
        let layout = if self.inline { LAYOUT_FLAT_INLINE } else { LAYOUT_FLAT_PLAIN };
        put16(bytes, layout << 1 | u16::from(!self.compact));
        put16(bytes, self.xattr_count);
        put16(bytes, self.mode);
        if self.compact {
            put16(bytes, self.links as u16);
            put32(bytes, self.size as u32);
            put32(bytes, 0);
            put32(bytes, self.address);
            put32(bytes, self.serial);
            put16(bytes, self.uid as u16);
            put16(bytes, self.gid as u16);
            put32(bytes, 0);
        } else {
            put16(bytes, 0);
            put64(bytes, self.size);
            put32(bytes, self.address);
            put32(bytes, self.serial);
            put32(bytes, self.uid);
            put32(bytes, self.gid);
            bytes.extend(self.mtime.to_le_bytes());
            put32(bytes, self.mtime_nsec);
            put32(bytes, self.links);
            bytes.extend([0; 16]);
        }
    }
}

/// Linux's `new_encode_dev`; `None` if major or minor is out of its range (12 and 20 bits).
pub(crate) fn encode_device(major: u32, minor: u32) -> Option<u32> {
    (major < 1 << 12 && minor < 1 << 20).then_some((minor & 0xff) | (major << 8) | ((minor & !0xff) << 12))
}

pub(super) fn put16(bytes: &mut Vec<u8>, value: u16) {
    bytes.extend(value.to_le_bytes());
}

pub(super) fn put32(bytes: &mut Vec<u8>, value: u32) {
    bytes.extend(value.to_le_bytes());
}

pub(super) fn put64(bytes: &mut Vec<u8>, value: u64) {
    bytes.extend(value.to_le_bytes());
}

/// CRC-32C as the kernel's `crc32c(~0, ...)`: no final inversion. For one block only, so no table.
fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = !0_u32;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = crc >> 1 ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 };
        }
    }
    crc
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc32c_has_the_known_check_value() {
        assert_eq!(!crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn inodes_have_the_sizes_of_the_format() {
        for compact in [true, false] {
            let mut bytes = Vec::new();
            let inode = InodeRecord {
                compact,
                inline: false,
                xattr_count: 0,
                mode: 0o100_644,
                links: 1,
                size: 5,
                address: 1,
                serial: 1,
                uid: 0,
                gid: 0,
                mtime: 0,
                mtime_nsec: 0,
            };
            inode.write(&mut bytes);
            assert_eq!(bytes.len(), if compact { COMPACT_INODE_BYTES } else { EXTENDED_INODE_BYTES });
        }
    }
}
