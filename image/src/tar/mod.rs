//! A streaming tar reader for hostile input.
//!
//! Reads ustar, GNU (long names, sparse files, base-256 numbers) and PAX archives, one entry at a time,
//! from a plain [`Read`]. Everything an archive can make us hold in memory has a bound: extended headers
//! ([`MAX_EXTENDED_BYTES`]), sparse maps ([`sparse::MAX_SEGMENTS`]); file data is handed out in pieces of
//! the caller's buffer. Nothing here touches the host's file system.

mod header;
mod pax;
mod sparse;
#[cfg(test)]
mod tar_test;

use std::io::{Read, Seek};

use header::{BLOCK, Header};
use pax::Pax;
use sparse::Segment;

/// Largest PAX header or GNU long name that is read (the same bound as Go's `archive/tar`).
pub(crate) const MAX_EXTENDED_BYTES: u64 = 1 << 20;

/// What is wrong with an archive.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    /// The stream below failed (network, disk, decompression).
    #[error("Cannot read the archive")]
    Read(#[source] std::io::Error),
    /// The archive ends inside a header or inside a file's data.
    #[error("The archive is truncated")]
    Truncated,
    /// A header's checksum doesn't match: not a tar archive, or a damaged one.
    #[error("Not a tar header (wrong checksum)")]
    Checksum,
    /// A numeric field holds something else than a number in range.
    #[error("Header field {0} is not a valid number")]
    Number(&'static str),
    /// A PAX record is malformed.
    #[error("Malformed PAX record: {0}")]
    Pax(&'static str),
    /// An extended header is larger than any sane one.
    #[error("Extended header of {0} bytes is larger than the limit of {MAX_EXTENDED_BYTES}")]
    ExtendedTooLarge(u64),
    /// A sparse map is malformed, unordered or outside of the file.
    #[error("Malformed sparse map: {0}")]
    Sparse(&'static str),
    /// An entry type that has no meaning in an image layer.
    #[error("Unsupported entry type {:?}", char::from(*.0))]
    UnsupportedType(u8),
}

/// Type of an entry, with what only that type has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum EntryKind {
    File,
    Directory,
    Symlink { target: Vec<u8> },
    HardLink { target: Vec<u8> },
    CharDevice { major: u32, minor: u32 },
    BlockDevice { major: u32, minor: u32 },
    Fifo,
}

/// One member of an archive; its data follows from [`TarReader::next_chunk`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Name as stored: may be absolute, hostile, or not UTF-8.
    pub path: Vec<u8>,
    pub kind: EntryKind,
    /// Permission bits with set-id and sticky bits (`0o7777`).
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    pub mtime: i64,
    pub mtime_nsec: u32,
    /// Logical size of a file in bytes (holes of sparse files included).
    pub size: u64,
    /// Extended attributes, full names (`user.x`).
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Offset of the data in the archive; only meaningful for a file that isn't sparse.
    pub data_offset: u64,
}

/// A piece of a file.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Chunk {
    /// So many bytes at the start of the caller's buffer.
    Data(usize),
    /// A hole of so many bytes.
    Hole(u64),
}

/// Reads one archive from start to end.
pub(crate) struct TarReader<R> {
    inner: R,
    /// Bytes read from `inner`.
    position: u64,
    /// Stored bytes of the current entry not read yet, and the padding after them.
    remaining: u64,
    padding: u64,
    /// What is left of the current entry's logical data, last piece first.
    segments: Vec<Segment>,
    finished: bool,
}

impl<R: Read> TarReader<R> {
    pub(crate) fn new(inner: R) -> Self {
        TarReader { inner, position: 0, remaining: 0, padding: 0, segments: Vec::new(), finished: false }
    }

    /// Moves to the next entry, skipping what is left of the current one. `None` at the end of the archive.
    pub(crate) fn next_entry(&mut self) -> Result<Option<Entry>, TarError> {
        let mut pax = Pax::default();
        let mut long_name = None;
        let mut long_link = None;
        loop {
            self.skip_rest()?;
            let Some(header) = self.next_header()? else { return Ok(None) };
            let size = header.size()?;
            match header.type_flag() {
                b'x' => pax = Pax::parse(&self.read_extended(size)?)?,
                // Global defaults: image builders write comments only, and docker ignores them as well.
                b'g' => drop(self.read_extended(size)?),
                b'L' => long_name = Some(until_nul(self.read_extended(size)?)),
                b'K' => long_link = Some(until_nul(self.read_extended(size)?)),
                // Volume label of GNU tar.
                b'V' => self.set_body(size)?,
                _ => return self.entry(&header, pax, long_name, long_link).map(Some),
            }
        }
    }

    /// Next piece of the current entry's data, at most `buffer` long. `None` at the end of the entry.
    pub(crate) fn next_chunk(&mut self, buffer: &mut [u8]) -> Result<Option<Chunk>, TarError> {
        let Some(segment) = self.segments.last_mut() else { return Ok(None) };
        if segment.hole {
            let bytes = segment.bytes;
            self.segments.pop();
            return Ok(Some(Chunk::Hole(bytes)));
        }
        let want = usize::try_from(segment.bytes).unwrap_or(usize::MAX).min(buffer.len());
        let target = buffer.get_mut(..want).unwrap_or_default();
        let read = read_some(&mut self.inner, target)?;
        if read == 0 {
            return Err(TarError::Truncated);
        }
        self.position += read as u64;
        self.remaining = self.remaining.saturating_sub(read as u64);
        segment.bytes -= read as u64;
        if segment.bytes == 0 {
            self.segments.pop();
        }
        Ok(Some(Chunk::Data(read)))
    }

    fn entry(
        &mut self,
        header: &Header,
        pax: Pax,
        long_name: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
    ) -> Result<Entry, TarError> {
        let mut path = pax.path.clone().or(long_name).unwrap_or_else(|| header.path());
        let link = pax.link.clone().or(long_link).unwrap_or_else(|| header.link());
        let stored = pax.size.map_or_else(|| header.size(), Ok)?;
        let (mtime, mtime_nsec) = pax.mtime.map_or_else(|| header.mtime().map(|seconds| (seconds, 0)), Ok)?;
        let kind = header.kind(&path, link)?;
        // Only files have data; a size on any other type is ignored, as GNU tar and Go do. What became a directory
        // by its name alone still has its data skipped.
        let has_data = matches!(header.type_flag(), b'0' | 0 | b'7' | b'S');
        self.set_body(if has_data { stored } else { 0 })?;
        let mut size = if kind == EntryKind::File { stored } else { 0 };
        let data_offset = self.position;
        if kind == EntryKind::File {
            if header.type_flag() == b'S' {
                size = self.gnu_sparse(header)?;
            } else if let Some(map) = &pax.sparse {
                size = self.pax_sparse(map)?;
                if let Some(name) = &map.name {
                    path.clone_from(name);
                }
            } else if stored > 0 {
                self.segments.push(Segment { hole: false, bytes: stored });
            }
        }
        Ok(Entry {
            path,
            kind,
            mode: header.mode()?,
            uid: pax.uid.map_or_else(|| header.uid(), Ok)?,
            gid: pax.gid.map_or_else(|| header.gid(), Ok)?,
            mtime,
            mtime_nsec,
            size,
            xattrs: pax.xattrs,
            data_offset,
        })
    }

    fn gnu_sparse(&mut self, header: &Header) -> Result<u64, TarError> {
        let mut map = header.sparse_map()?;
        let mut more = header.sparse_continues();
        while more {
            let mut block = [0; BLOCK];
            // Map blocks stand before the data and are not counted in the entry's size.
            self.read_exact(&mut block)?;
            more = sparse::read_gnu_block(&block, &mut map)?;
        }
        let size = header.sparse_real_size()?;
        self.segments = sparse::segments(&map, size, self.remaining)?;
        Ok(size)
    }

    fn pax_sparse(&mut self, pax: &pax::SparseMap) -> Result<u64, TarError> {
        let map = if pax.in_data {
            let (map, bytes) = sparse::read_map_1_0(&mut self.inner, self.remaining)?;
            self.position += bytes;
            self.remaining -= bytes;
            map
        } else {
            pax.map.clone()
        };
        let size = pax.real_size.ok_or(TarError::Sparse("no real size"))?;
        self.segments = sparse::segments(&map, size, self.remaining)?;
        Ok(size)
    }

    /// The entry that begins has `size` stored bytes.
    fn set_body(&mut self, size: u64) -> Result<(), TarError> {
        if size > i64::MAX as u64 {
            return Err(TarError::Number("size"));
        }
        self.segments.clear();
        self.remaining = size;
        self.padding = size.wrapping_neg() % BLOCK as u64;
        Ok(())
    }

    fn read_extended(&mut self, size: u64) -> Result<Vec<u8>, TarError> {
        if size > MAX_EXTENDED_BYTES {
            return Err(TarError::ExtendedTooLarge(size));
        }
        self.set_body(size)?;
        let mut data = Vec::new();
        let read = (&mut self.inner).take(size).read_to_end(&mut data).map_err(TarError::Read)?;
        self.position += read as u64;
        self.remaining = size - read as u64;
        if self.remaining > 0 {
            return Err(TarError::Truncated);
        }
        Ok(data)
    }

    fn skip_rest(&mut self) -> Result<(), TarError> {
        self.segments.clear();
        let skip = self.remaining + self.padding;
        self.remaining = 0;
        self.padding = 0;
        let skipped = std::io::copy(&mut (&mut self.inner).take(skip), &mut std::io::sink()).map_err(TarError::Read)?;
        self.position += skipped;
        if skipped < skip { Err(TarError::Truncated) } else { Ok(()) }
    }

    /// Next header block; `None` at the end-of-archive marker or where the stream ends between entries.
    fn next_header(&mut self) -> Result<Option<Header>, TarError> {
        if self.finished {
            return Ok(None);
        }
        let mut block = [0; BLOCK];
        if !self.read_block(&mut block)? {
            self.finished = true;
            return Ok(None);
        }
        if block.iter().all(|byte| *byte == 0) {
            self.finished = true;
            let mut second = [0; BLOCK];
            if self.read_block(&mut second)? && second.iter().any(|byte| *byte != 0) {
                return Err(TarError::Checksum);
            }
            return Ok(None);
        }
        Header::parse(block).map(Some)
    }

    /// Reads a block; `false` if the stream ended before it.
    fn read_block(&mut self, block: &mut [u8; BLOCK]) -> Result<bool, TarError> {
        let mut filled = 0;
        while let Some(rest) = block.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match read_some(&mut self.inner, rest)? {
                0 if filled == 0 => return Ok(false),
                0 => return Err(TarError::Truncated),
                read => filled += read,
            }
        }
        self.position += BLOCK as u64;
        Ok(true)
    }

    fn read_exact(&mut self, block: &mut [u8; BLOCK]) -> Result<(), TarError> {
        if self.read_block(block)? { Ok(()) } else { Err(TarError::Truncated) }
    }
}

impl<R: Read + Seek> TarReader<R> {
    /// Skips the rest of the current entry by seeking. A truncated archive shows when the next header is read.
    pub(crate) fn seek_rest(&mut self) -> Result<(), TarError> {
        let skip = i64::try_from(self.remaining + self.padding).map_err(|_| TarError::Number("size"))?;
        self.inner.seek_relative(skip).map_err(TarError::Read)?;
        self.position += skip.cast_unsigned();
        (self.remaining, self.padding) = (0, 0);
        self.segments.clear();
        Ok(())
    }
}

/// One `read`, repeated when interrupted.
fn read_some(reader: &mut impl Read, buffer: &mut [u8]) -> Result<usize, TarError> {
    loop {
        match reader.read(buffer) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            result => return result.map_err(TarError::Read),
        }
    }
}

fn until_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    let length = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    bytes.truncate(length);
    bytes
}
