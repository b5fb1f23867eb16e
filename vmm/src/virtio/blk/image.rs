//! The host's file behind a block device.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::backend::{AlignedBuffer, Backend, RawBackend};
use super::qcow2::Qcow2Backend;
use super::{BlockConfig, BlockError, Format, SECTOR_BYTES};
use crate::virtio::sys;

/// Length of the answer to GET_ID (section 5.2.6).
pub const SERIAL_BYTES: usize = 20;
/// Units of direct I/O that file systems and devices ask for.
const DIRECT_UNITS: [u32; 4] = [512, 1024, 2048, 4096];

/// An open and locked image.
pub struct Image {
    backend: Arc<dyn Backend>,
    sectors: AtomicU64,
    /// Unit of requests (`blk_size`).
    pub block_bytes: u32,
    /// Writes are refused.
    pub read_only: bool,
    /// Padded with zeros.
    pub serial: [u8; SERIAL_BYTES],
}

impl Image {
    /// Opens and locks an image.
    pub fn open(config: &BlockConfig) -> Result<Self, BlockError> {
        let BlockConfig { path, id, read_only, direct, format, .. } = config;
        let (path, id) = (path.clone(), id.clone());
        let mut serial = [0; SERIAL_BYTES];
        let Some(space) = serial.get_mut(..id.len()) else { return Err(BlockError::Id(id)) };
        space.copy_from_slice(id.as_bytes());

        let file = match open(&path, *read_only, *direct) {
            Ok(Some(file)) => file,
            Ok(None) => return Err(BlockError::Kind { id, path }),
            Err(source) if *direct && source.kind() == io::ErrorKind::InvalidInput => {
                return Err(BlockError::Direct { id, path, source });
            }
            Err(source) => return Err(BlockError::Open { id, path, source }),
        };
        match sys::lock_file(&file, !read_only) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(BlockError::InUse { id, path }),
            Err(source) => return Err(BlockError::Lock { id, path, source }),
        }
        let alignment = match direct_unit(&file, *direct) {
            Ok(alignment) => alignment,
            Err(source) => return Err(BlockError::Direct { id, path, source }),
        };
        let backend: Arc<dyn Backend> = match format {
            Format::Raw => Arc::new(RawBackend::new(file, alignment)),
            Format::Qcow2 if !read_only => {
                let source = io::Error::from(io::ErrorKind::ReadOnlyFilesystem);
                return Err(BlockError::Qcow2 { id, path, source });
            }
            Format::Qcow2 => match Qcow2Backend::open(file, &path, *direct) {
                Ok(backend) => Arc::new(backend),
                Err(source) => return Err(BlockError::Qcow2 { id, path, source }),
            },
        };
        let block_bytes = if *format == Format::Raw { alignment.max(512) } else { 512 };
        let image = Self { backend, sectors: AtomicU64::new(0), block_bytes, read_only: *read_only, serial };
        match image.refresh() {
            Ok(0) => Err(BlockError::Empty { id, path }),
            Ok(_) => Ok(image),
            Err(source) => Err(BlockError::Open { id, path, source }),
        }
    }

    /// Where the data is.
    pub fn backend(&self) -> &Arc<dyn Backend> {
        &self.backend
    }

    /// Size in sectors; what is behind the last whole block isn't visible.
    pub fn sectors(&self) -> u64 {
        self.sectors.load(Ordering::Acquire)
    }

    /// Looks at the size anew and returns it in sectors.
    pub fn refresh(&self) -> io::Result<u64> {
        let block = u64::from(self.block_bytes);
        let sectors = self.backend.size()? / block * (block / SECTOR_BYTES);
        self.sectors.store(sectors, Ordering::Release);
        Ok(sectors)
    }
}

/// Opens an image; `None` if it is neither a regular file nor a block device.
pub fn open(path: &Path, read_only: bool, direct: bool) -> io::Result<Option<File>> {
    // Without waiting, so that a path to a pipe is an error and not a hang.
    let flags = libc::O_NONBLOCK | if direct { libc::O_DIRECT } else { 0 };
    let file = OpenOptions::new().read(true).write(!read_only).custom_flags(flags).open(path)?;
    let kind = file.metadata()?.file_type();
    Ok((kind.is_file() || kind.is_block_device()).then_some(file))
}

/// The unit in which a file opened for direct I/O can be read: tried, since old kernels don't tell. 1 without direct I/O.
fn direct_unit(file: &File, direct: bool) -> io::Result<u32> {
    if !direct {
        return Ok(1);
    }
    let mut refusal = io::Error::from(io::ErrorKind::InvalidInput);
    for unit in DIRECT_UNITS {
        // At an odd multiple of the unit, so that it serves as the alignment in memory as well.
        let mut buffer = AlignedBuffer::new(4096);
        let bytes = buffer.piece_mut(2 * unit as usize);
        match file.read_at(bytes.get_mut(unit as usize..).unwrap_or_default(), 0) {
            Ok(_) => return Ok(unit),
            Err(error) => refusal = error,
        }
    }
    Err(refusal)
}
