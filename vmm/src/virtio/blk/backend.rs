//! What holds a disk's data: a raw file or block device, or a format library.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::virtio::buffers::{Reader, Writer};
use crate::virtio::sys::{self, Punch};

/// Piece in which data goes through a buffer.
pub const PIECE_BYTES: usize = 128 << 10;

/// Positions and lengths are checked by the caller: inside the disk, and whole blocks.
pub trait Backend: Send + Sync {
    /// Size in bytes as it is now.
    fn size(&self) -> io::Result<u64>;

    /// Fills all of `to` from `offset` on.
    fn read(&self, to: &mut Writer<'_>, offset: u64) -> io::Result<()>;

    /// Stores all of `from` at `offset`.
    fn write(&self, from: &mut Reader<'_>, offset: u64) -> io::Result<()>;

    /// Makes what was written durable.
    fn flush(&self) -> io::Result<()>;

    /// Gives space back; what is read there afterwards is undefined. Doing nothing is right, too.
    fn discard(&self, offset: u64, bytes: u64) -> io::Result<()>;

    /// Makes a range read as zeros; with `may_unmap` its space may be given back.
    fn write_zeroes(&self, offset: u64, bytes: u64, may_unmap: bool) -> io::Result<()>;

    /// The file for I/O past the backend; `None` if positions in the disk aren't positions in a file.
    fn file(&self) -> Option<&File> {
        None
    }

    /// Smallest unit, and the alignment of buffers in memory that is needed for I/O past the backend.
    fn alignment(&self) -> u32 {
        1
    }
}

/// A file that is the disk.
pub struct RawBackend {
    file: File,
    /// 1, or what direct I/O asks for.
    alignment: u32,
    /// The file system can't do it: not tried again.
    no_zero_range: AtomicBool,
}

impl RawBackend {
    /// A backend with buffered I/O for an alignment of 1, else direct I/O.
    pub fn new(file: File, alignment: u32) -> Self {
        Self { file, alignment, no_zero_range: AtomicBool::new(false) }
    }

    fn buffer(&self) -> AlignedBuffer {
        AlignedBuffer::new(self.alignment as usize)
    }

    fn write_zeros_plainly(&self, mut offset: u64, mut bytes: u64) -> io::Result<()> {
        let zeros = self.buffer();
        while bytes > 0 {
            let piece = usize::try_from(bytes).unwrap_or(usize::MAX).min(PIECE_BYTES);
            sys::write_all_at(&self.file, zeros.piece(piece), offset)?;
            offset = offset.saturating_add(piece as u64);
            bytes -= piece as u64;
        }
        Ok(())
    }
}

impl Backend for RawBackend {
    fn size(&self) -> io::Result<u64> {
        sys::file_size(&self.file)
    }

    fn read(&self, to: &mut Writer<'_>, mut offset: u64) -> io::Result<()> {
        let mut bounce = None;
        while to.remaining() > 0 {
            let bytes = if sys::is_aligned(to.slices(), self.alignment) {
                retry(|| to.read_from_file(&self.file, offset))?
            } else {
                let bounce = bounce.get_or_insert_with(|| self.buffer());
                let piece = bounce.piece_mut(to.remaining().min(PIECE_BYTES));
                sys::read_exact_at(&self.file, piece, offset)?;
                to.write(piece)
            };
            if bytes == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            offset = offset.saturating_add(bytes as u64);
        }
        Ok(())
    }

    fn write(&self, from: &mut Reader<'_>, mut offset: u64) -> io::Result<()> {
        let mut bounce = None;
        while from.remaining() > 0 {
            let bytes = if sys::is_aligned(from.slices(), self.alignment) {
                retry(|| from.write_to_file(&self.file, offset))?
            } else {
                let bounce = bounce.get_or_insert_with(|| self.buffer());
                let piece = bounce.piece_mut(from.remaining().min(PIECE_BYTES));
                from.read(piece);
                sys::write_all_at(&self.file, piece, offset)?;
                piece.len()
            };
            if bytes == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            offset = offset.saturating_add(bytes as u64);
        }
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn discard(&self, offset: u64, bytes: u64) -> io::Result<()> {
        match sys::punch(&self.file, Punch::Hole, offset, bytes) {
            Err(error) if unsupported(&error) => Ok(()),
            result => result,
        }
    }

    fn write_zeroes(&self, offset: u64, bytes: u64, may_unmap: bool) -> io::Result<()> {
        let ways: &[Punch] = if may_unmap { &[Punch::Hole, Punch::Zeros] } else { &[Punch::Zeros] };
        for way in ways {
            if *way == Punch::Zeros && self.no_zero_range.load(Ordering::Relaxed) {
                continue;
            }
            match sys::punch(&self.file, *way, offset, bytes) {
                Err(error) if unsupported(&error) => {
                    if *way == Punch::Zeros {
                        self.no_zero_range.store(true, Ordering::Relaxed);
                    }
                }
                result => return result,
            }
        }
        self.write_zeros_plainly(offset, bytes)
    }

    fn file(&self) -> Option<&File> {
        Some(&self.file)
    }

    fn alignment(&self) -> u32 {
        self.alignment
    }
}

fn unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::ENODEV))
}

fn retry(mut call: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// A buffer of [`PIECE_BYTES`] at an address with an alignment.
pub struct AlignedBuffer {
    bytes: Vec<u8>,
    start: usize,
}

impl AlignedBuffer {
    /// Zeros, at a multiple of `alignment`.
    pub fn new(alignment: usize) -> Self {
        let bytes = vec![0; PIECE_BYTES.saturating_add(alignment)];
        let start = bytes.as_ptr().align_offset(alignment.max(1));
        Self { bytes, start }
    }

    /// The first `bytes`.
    pub fn piece(&self, bytes: usize) -> &[u8] {
        self.bytes.get(self.start..self.start.saturating_add(bytes)).unwrap_or_default()
    }

    /// The first `bytes`, to be filled.
    pub fn piece_mut(&mut self, bytes: usize) -> &mut [u8] {
        self.bytes.get_mut(self.start..self.start.saturating_add(bytes)).unwrap_or_default()
    }
}
