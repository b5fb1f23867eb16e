//! Sparse maps: which parts of a file are stored, in GNU's old format and PAX 0.0, 0.1 and 1.0.

use std::io::Read;

use super::header::{BLOCK, number};
use super::pax::decimal;
use super::{TarError, read_some};

/// Most pieces a sparse file may have. 131,072 pieces take 2 MiB of memory.
pub(super) const MAX_SEGMENTS: usize = 1 << 17;

/// A stored piece of a sparse file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) offset: u64,
    pub(super) bytes: u64,
}

/// A run of data or a hole, in file order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) hole: bool,
    pub(super) bytes: u64,
}

/// Turns a map into alternating runs, **last first**, that add up to `size` and to `stored` bytes of data.
pub(super) fn segments(map: &[Piece], size: u64, stored: u64) -> Result<Vec<Segment>, TarError> {
    let mut segments = Vec::with_capacity(map.len() * 2 + 1);
    let mut position = 0_u64;
    let mut data = 0_u64;
    let mut push = |hole, bytes| {
        if bytes > 0 {
            segments.push(Segment { hole, bytes });
        }
    };
    for piece in map {
        let hole = piece.offset.checked_sub(position).ok_or(TarError::Sparse("pieces overlap"))?;
        position = piece.offset.checked_add(piece.bytes).ok_or(TarError::Sparse("piece out of range"))?;
        data = data.checked_add(piece.bytes).ok_or(TarError::Sparse("piece out of range"))?;
        push(true, hole);
        push(false, piece.bytes);
    }
    push(true, size.checked_sub(position).ok_or(TarError::Sparse("piece after the end of the file"))?);
    if data != stored {
        return Err(TarError::Sparse("map and stored size differ"));
    }
    segments.reverse();
    Ok(segments)
}

/// Pieces of an old-format GNU header or extension block: pairs of 12-byte numbers up to an empty one.
pub(super) fn read_gnu_pieces(bytes: &[u8], map: &mut Vec<Piece>) -> Result<(), TarError> {
    for pair in bytes.chunks_exact(24) {
        let (offset, length) = pair.split_at(12);
        if offset.first() == Some(&0) || length.first() == Some(&0) {
            break;
        }
        let value = |field| number(field).and_then(|value| u64::try_from(value).ok());
        let offset = value(offset).ok_or(TarError::Sparse("offset is not a number"))?;
        let bytes = value(length).ok_or(TarError::Sparse("length is not a number"))?;
        push(map, Piece { offset, bytes })?;
    }
    Ok(())
}

/// One extension block of the old GNU format; `true` if another follows.
pub(super) fn read_gnu_block(block: &[u8; BLOCK], map: &mut Vec<Piece>) -> Result<bool, TarError> {
    let before = map.len();
    read_gnu_pieces(block.get(..21 * 24).unwrap_or_default(), map)?;
    let more = block.get(504).is_some_and(|byte| *byte != 0);
    if more && map.len() == before {
        // A chain of empty blocks would never reach the limit of pieces.
        return Err(TarError::Sparse("empty extension block"));
    }
    Ok(more)
}

/// The map at the start of the data (PAX 1.0): a count, then offsets and lengths, one decimal number a
/// line, padded to a block. Returns the map and the bytes read, at most `limit`.
pub(super) fn read_map_1_0(reader: &mut impl Read, limit: u64) -> Result<(Vec<Piece>, u64), TarError> {
    let mut lines = Lines { reader, block: [0; BLOCK], next: BLOCK, read: 0, limit };
    let count = lines.number()?;
    if count > MAX_SEGMENTS as u64 {
        return Err(TarError::Sparse("too many pieces"));
    }
    let mut map = Vec::new();
    for _ in 0..count {
        let offset = lines.number()?;
        map.push(Piece { offset, bytes: lines.number()? });
    }
    Ok((map, lines.read))
}

fn push(map: &mut Vec<Piece>, piece: Piece) -> Result<(), TarError> {
    if map.len() >= MAX_SEGMENTS {
        return Err(TarError::Sparse("too many pieces"));
    }
    map.push(piece);
    Ok(())
}

/// Decimal numbers, one a line, read in whole blocks.
struct Lines<'a, R> {
    reader: &'a mut R,
    block: [u8; BLOCK],
    next: usize,
    read: u64,
    limit: u64,
}

impl<R: Read> Lines<'_, R> {
    fn number(&mut self) -> Result<u64, TarError> {
        let mut digits = Vec::new();
        loop {
            match self.byte()? {
                b'\n' => return decimal(&digits, "sparse map"),
                byte if digits.len() < 20 => digits.push(byte),
                _ => return Err(TarError::Sparse("number too long")),
            }
        }
    }

    fn byte(&mut self) -> Result<u8, TarError> {
        if self.next >= BLOCK {
            if self.read + BLOCK as u64 > self.limit {
                return Err(TarError::Sparse("map longer than the data"));
            }
            let mut filled = 0;
            while let Some(rest) = self.block.get_mut(filled..).filter(|rest| !rest.is_empty()) {
                match read_some(self.reader, rest)? {
                    0 => return Err(TarError::Truncated),
                    read => filled += read,
                }
            }
            self.read += BLOCK as u64;
            self.next = 0;
        }
        let byte = self.block.get(self.next).copied().unwrap_or_default();
        self.next += 1;
        Ok(byte)
    }
}
