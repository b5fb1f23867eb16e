//! A writer for uncompressed EROFS images (Linux `Documentation/filesystems/erofs.rst`, `fs/erofs/erofs_fs.h`).
//!
//! The file is written front to back, once:
//!
//! ```text
//! block 0      superblock (written last)
//! block 1..    file data, in the order in which the layers bring it     [`data::DataArea`]
//! then         directories and long symlinks that don't fit their inode [`writer`]
//! then         inodes with their xattrs and inlined tails, root first   [`writer`]
//! ```
//!
//! EROFS allows this order because the superblock says where the metadata begins and every inode has its own
//! data address. The last, partial block of a file goes beside its inode (`FLAT_INLINE`) when it fits; until
//! the metadata is written such tails wait in a spool (memory, then a temporary file). Data of files that a
//! later layer removes stays behind as a hole. The same input gives the same bytes.

pub(crate) mod data;
mod directory;
mod format;
mod metadata;
pub(crate) mod writer;
pub(crate) mod xattr;

pub(crate) use format::encode_device;

use crate::cancel::Cancelled;

/// Version of the writer: part of the name of every image, so that a better writer makes new files.
pub(crate) const WRITER_VERSION: u32 = 1;

/// Why an EROFS file can't be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// Writing, or reading back the spool, failed.
    #[error("Cannot write the EROFS file")]
    Io(#[source] std::io::Error),
    /// The file system of the store is (nearly) full.
    #[error(
        "No space left on the device of the image store ({available_bytes} bytes available, {reserve_bytes} kept free)"
    )]
    DiskFull {
        /// What the file system has left.
        available_bytes: u64,
        /// What must stay free.
        reserve_bytes: u64,
    },
    /// The image unpacks to more than the limit.
    #[error("The image unpacks to more than the limit of {0} bytes")]
    TooLarge(u64),
    /// More blocks than a 32-bit block address can say.
    #[error("The image has more than 2^32 blocks")]
    TooManyBlocks,
    /// Fewer bytes came than the file's size says.
    #[error("File data is shorter than its size")]
    ShortFile,
    /// The caller no longer waits for it.
    #[error("The image was given up")]
    Cancelled,
}

impl From<Cancelled> for WriteError {
    fn from(_: Cancelled) -> Self {
        WriteError::Cancelled
    }
}

impl From<std::io::Error> for WriteError {
    fn from(error: std::io::Error) -> Self {
        WriteError::Io(error)
    }
}
