//! The host's file behind a block device.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};

use super::{BlockConfig, BlockError, SECTOR_BYTES};
use crate::virtio::sys;

/// Length of the answer to GET_ID (section 5.2.6).
pub const SERIAL_BYTES: usize = 20;

/// An open and locked image.
pub struct Image {
    /// The file.
    pub file: File,
    /// Size in sectors; what is behind the last whole sector isn't visible.
    pub sectors: u64,
    /// Writes are refused.
    pub read_only: bool,
    /// Padded with zeros.
    pub serial: [u8; SERIAL_BYTES],
}

impl Image {
    /// Opens and locks an image.
    pub fn open(config: &BlockConfig) -> Result<Self, BlockError> {
        let BlockConfig { path, id, read_only } = config;
        let (path, id, read_only) = (path.clone(), id.clone(), *read_only);
        let mut serial = [0; SERIAL_BYTES];
        let Some(space) = serial.get_mut(..id.len()) else { return Err(BlockError::Id(id)) };
        space.copy_from_slice(id.as_bytes());

        // Without waiting, so that a path to a pipe is an error and not a hang.
        let open = OpenOptions::new().read(true).write(!read_only).custom_flags(libc::O_NONBLOCK).open(&path);
        let mut file = match open {
            Ok(file) => file,
            Err(source) => return Err(BlockError::Open { id, path, source }),
        };
        let bytes = match size_of(&mut file) {
            Ok(Some(bytes)) => bytes,
            Ok(None) => return Err(BlockError::Kind { id, path }),
            Err(source) => return Err(BlockError::Open { id, path, source }),
        };
        let sectors = bytes / SECTOR_BYTES;
        if sectors == 0 {
            return Err(BlockError::Empty { id, path });
        }
        match sys::lock_file(&file, !read_only) {
            Ok(()) => Ok(Self { file, sectors, read_only, serial }),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(BlockError::InUse { id, path }),
            Err(source) => Err(BlockError::Lock { id, path, source }),
        }
    }
}

/// Size of a file or block device; `None` for anything else.
fn size_of(file: &mut File) -> io::Result<Option<u64>> {
    let kind = file.metadata()?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Ok(None);
    }
    file.seek(SeekFrom::End(0)).map(Some)
}
