//! The front of the EROFS file: file data, written once, while the layers stream in.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::FallocateFlags;
use tempfile::SpooledTempFile;

use super::WriteError;
use super::format::{BLOCK_BYTES, EXTENDED_INODE_BYTES, NULL_BLOCK};
use crate::cancel::Cancel;
use crate::limits::Limits;

const BLOCK: u64 = BLOCK_BYTES as u64;
/// Write buffer; a multiple of the block size.
const BUFFER_BYTES: usize = 1 << 20;
/// Tails are kept in memory up to this size.
const SPOOL_MEMORY_BYTES: usize = 8 << 20;
/// How much is written between two looks at the free space.
const SPACE_CHECK_BYTES: u64 = 32 << 20;

/// Where a file's data is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Extent {
    /// First of the blocks, if the file has any.
    pub start_block: u32,
    pub size_bytes: u64,
    /// Place of the last, partial block in the spool, if it goes beside the inode.
    pub tail: Option<u64>,
}

impl Extent {
    pub(super) fn tail_bytes(&self) -> usize {
        if self.tail.is_some() { usize::try_from(self.size_bytes % BLOCK).unwrap_or_default() } else { 0 }
    }

    fn blocks(&self) -> u64 {
        if self.tail.is_some() { self.size_bytes / BLOCK } else { self.size_bytes.div_ceil(BLOCK) }
    }
}

/// The growing file. Blocks that are all zeros are never written: they stay holes of the host's file.
pub(crate) struct DataArea {
    file: File,
    /// Bytes after `flushed_bytes`; that is always at a block boundary.
    buffer: Vec<u8>,
    flushed_bytes: u64,
    tails: SpooledTempFile,
    tails_bytes: u64,
    data_bytes: u64,
    written_bytes: u64,
    space_check_at: u64,
    dead: Vec<Extent>,
    limits: Limits,
    cancel: Cancel,
}

impl DataArea {
    /// Starts at block 1 of an empty file. Tails that don't fit into memory go to an unnamed file in `spool_dir`.
    /// Whatever is being written ends with an error as soon as `cancel` says so, also inside a file.
    pub(crate) fn new(file: File, spool_dir: &Path, limits: &Limits, cancel: &Cancel) -> Self {
        DataArea {
            file,
            buffer: Vec::with_capacity(BUFFER_BYTES),
            flushed_bytes: BLOCK,
            tails: SpooledTempFile::new_in(SPOOL_MEMORY_BYTES, spool_dir),
            tails_bytes: 0,
            data_bytes: 0,
            written_bytes: 0,
            space_check_at: 0,
            dead: Vec::new(),
            limits: limits.clone(),
            cancel: cancel.clone(),
        }
    }

    /// Begins a file of exactly `size_bytes`, whose inode will have `xattr_bytes` of attributes.
    pub(crate) fn begin(&mut self, size_bytes: u64, xattr_bytes: usize) -> Result<FileWriter<'_>, WriteError> {
        self.cancel.check()?;
        self.data_bytes = self.data_bytes.saturating_add(size_bytes);
        if self.data_bytes > self.limits.max_data_bytes {
            return Err(WriteError::TooLarge(self.limits.max_data_bytes));
        }
        let tail_bytes = size_bytes % BLOCK;
        let beside = EXTENDED_INODE_BYTES as u64 + xattr_bytes as u64 + tail_bytes;
        let inline = tail_bytes > 0 && beside <= BLOCK;
        let body_left = if inline { size_bytes - tail_bytes } else { size_bytes };
        let extent = Extent {
            start_block: if body_left == 0 { NULL_BLOCK } else { self.next_block()? },
            size_bytes,
            tail: inline.then_some(self.tails_bytes),
        };
        Ok(FileWriter { area: self, extent, body_left, tail_left: if inline { tail_bytes } else { 0 } })
    }

    /// The data of a file that no longer exists: becomes a hole.
    pub(crate) fn discard(&mut self, extent: Extent) {
        if extent.blocks() > 0 {
            self.dead.push(extent);
        }
    }

    /// Bytes really written to the file so far.
    pub(crate) fn written_bytes(&self) -> u64 {
        self.written_bytes
    }

    /// The block at which the next data begins; the area must be at a block boundary.
    pub(super) fn next_block(&self) -> Result<u32, WriteError> {
        u32::try_from(self.position() / BLOCK)
            .ok()
            .filter(|block| *block != NULL_BLOCK)
            .ok_or(WriteError::TooManyBlocks)
    }

    /// Appends bytes that belong to no file (directories, inodes).
    pub(super) fn push(&mut self, mut bytes: &[u8]) -> Result<(), WriteError> {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(BUFFER_BYTES - self.buffer.len()));
            self.buffer.extend_from_slice(now);
            bytes = later;
            if self.buffer.len() == BUFFER_BYTES {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// Fills up to the next block boundary with zeros.
    pub(super) fn align(&mut self) -> Result<(), WriteError> {
        let padding = usize::try_from(self.position().wrapping_neg() % BLOCK).unwrap_or_default();
        self.push([0; BLOCK_BYTES].get(..padding).unwrap_or_default())
    }

    /// Reads a tail back from the spool.
    pub(super) fn append_tail(&mut self, extent: &Extent, target: &mut Vec<u8>) -> Result<(), WriteError> {
        let Some(offset) = extent.tail else { return Ok(()) };
        self.tails.seek(SeekFrom::Start(offset))?;
        let length = extent.tail_bytes();
        let read = std::io::copy(&mut std::io::Read::take(&mut self.tails, length as u64), target)?;
        if read == length as u64 { Ok(()) } else { Err(WriteError::ShortFile) }
    }

    /// Writes block 0, makes holes of dead data, syncs, and hands the file over.
    pub(super) fn finish(mut self, superblock: &[u8]) -> Result<File, WriteError> {
        self.align()?;
        self.flush()?;
        self.file.set_len(self.flushed_bytes)?;
        self.punch_dead()?;
        self.file.write_all_at(superblock, 0)?;
        self.file.sync_data()?;
        Ok(self.file)
    }

    fn position(&self) -> u64 {
        self.flushed_bytes + self.buffer.len() as u64
    }

    fn skip(&mut self, mut bytes: u64) -> Result<(), WriteError> {
        let zeros = [0; BLOCK_BYTES];
        let head = (self.position().wrapping_neg() % BLOCK).min(bytes);
        self.push(zeros.get(..usize::try_from(head).unwrap_or_default()).unwrap_or_default())?;
        bytes -= head;
        if bytes >= BLOCK {
            self.flush()?;
            self.flushed_bytes += bytes - bytes % BLOCK;
            bytes %= BLOCK;
        }
        self.push(zeros.get(..usize::try_from(bytes).unwrap_or_default()).unwrap_or_default())
    }

    /// Writes the buffer, which ends at a block boundary, leaving out blocks of zeros.
    fn flush(&mut self) -> Result<(), WriteError> {
        self.cancel.check()?;
        self.check_space()?;
        let mut offset = self.flushed_bytes;
        for run in runs(&self.buffer) {
            if run.zeros {
                offset += run.bytes.len() as u64;
                continue;
            }
            self.file.write_all_at(run.bytes, offset)?;
            offset += run.bytes.len() as u64;
            self.written_bytes += run.bytes.len() as u64;
        }
        self.flushed_bytes = offset;
        self.buffer.clear();
        Ok(())
    }

    fn check_space(&mut self) -> Result<(), WriteError> {
        if self.written_bytes < self.space_check_at {
            return Ok(());
        }
        self.space_check_at = self.written_bytes + SPACE_CHECK_BYTES;
        let status = rustix::fs::fstatvfs(&self.file).map_err(std::io::Error::from)?;
        let available_bytes = status.f_bavail.saturating_mul(status.f_frsize);
        let reserve_bytes = self.limits.min_free_bytes;
        if available_bytes < reserve_bytes {
            return Err(WriteError::DiskFull { available_bytes, reserve_bytes });
        }
        Ok(())
    }

    fn punch_dead(&mut self) -> Result<(), WriteError> {
        for extent in std::mem::take(&mut self.dead) {
            let (offset, length) = (u64::from(extent.start_block) * BLOCK, extent.blocks() * BLOCK);
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            if rustix::fs::fallocate(&self.file, flags, offset, length).is_err() {
                // No holes on this file system: zeros are the same bytes.
                self.overwrite_with_zeros(offset, length)?;
            }
        }
        Ok(())
    }

    fn overwrite_with_zeros(&self, mut offset: u64, length: u64) -> Result<(), WriteError> {
        let end = offset + length;
        while offset < end {
            self.file.write_all_at(&[0; BLOCK_BYTES], offset)?;
            offset += BLOCK;
        }
        Ok(())
    }
}

/// Takes the data of one file.
pub(crate) struct FileWriter<'a> {
    area: &'a mut DataArea,
    extent: Extent,
    body_left: u64,
    tail_left: u64,
}

impl FileWriter<'_> {
    /// Appends data; more than the announced size is an error.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        self.area.cancel.check()?;
        let (body, tail) = bytes.split_at(usize::try_from(self.body_left).unwrap_or(usize::MAX).min(bytes.len()));
        self.area.push(body)?;
        self.body_left -= body.len() as u64;
        self.tail_left = self.tail_left.checked_sub(tail.len() as u64).ok_or(WriteError::ShortFile)?;
        self.area.tails.write_all(tail)?;
        self.area.tails_bytes += tail.len() as u64;
        Ok(())
    }

    /// Appends zeros without writing them.
    pub(crate) fn hole(&mut self, bytes: u64) -> Result<(), WriteError> {
        let body = bytes.min(self.body_left);
        self.area.skip(body)?;
        self.body_left -= body;
        let tail =
            usize::try_from(bytes - body).ok().filter(|tail| *tail <= BLOCK_BYTES).ok_or(WriteError::ShortFile)?;
        self.write([0; BLOCK_BYTES].get(..tail).unwrap_or_default())
    }

    /// Ends the file; all its bytes must have come.
    pub(crate) fn finish(self) -> Result<Extent, WriteError> {
        if self.body_left > 0 || self.tail_left > 0 {
            return Err(WriteError::ShortFile);
        }
        self.area.align()?;
        Ok(self.extent)
    }
}

/// Neighbouring blocks that are all zeros, or none of them.
struct Run<'a> {
    bytes: &'a [u8],
    zeros: bool,
}

fn runs(mut rest: &[u8]) -> impl Iterator<Item = Run<'_>> {
    std::iter::from_fn(move || {
        let zeros = is_zero(rest.chunks(BLOCK_BYTES).next()?);
        let blocks = 1 + rest.chunks(BLOCK_BYTES).skip(1).take_while(|block| is_zero(block) == zeros).count();
        let (bytes, later) = rest.split_at((blocks * BLOCK_BYTES).min(rest.len()));
        rest = later;
        Some(Run { bytes, zeros })
    })
}

fn is_zero(block: &[u8]) -> bool {
    // Most blocks of real data differ early; comparing words lets the compiler use wide registers.
    block.iter().take(16).all(|byte| *byte == 0)
        && block.chunks(64).all(|chunk| chunk.iter().fold(0, |or, byte| or | byte) == 0)
}
