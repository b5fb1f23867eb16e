//! One block request: parse, check, status (virtio 1.2, section 5.2.6).

use std::io;
use std::sync::Arc;

use super::SECTOR_BYTES;
use super::engine::Io;
use super::held::{Held, Parts};
use super::image::Image;
use crate::virtio::buffers::{Reader, Writer};
use crate::virtio::counters::Counters;

/// Request types.
const T_IN: u32 = 0;
const T_OUT: u32 = 1;
const T_FLUSH: u32 = 4;
const T_GET_ID: u32 = 8;
const T_DISCARD: u32 = 11;
const T_WRITE_ZEROES: u32 = 13;
/// Length of a request's header: type, reserved, sector.
const HEADER_BYTES: usize = 16;
/// Length of a range of DISCARD and WRITE_ZEROES: sector, number of sectors, flags.
const RANGE_BYTES: usize = 16;
/// Flag of a range: WRITE_ZEROES may give its space back.
const RANGE_UNMAP: u32 = 1;

/// Most bytes of one data segment (`size_max`).
pub const SIZE_MAX: u32 = 256 << 10;
/// Most data segments of a request (`seg_max`): a header and a status go with them.
pub const SEG_MAX: u32 = 254;
/// Most data of a request, as a driver that keeps to the two has at most. It bounds how long one request can take, and with it how
/// long a pause or a stop has to wait.
const MAX_DATA_BYTES: usize = SIZE_MAX as usize * SEG_MAX as usize;
/// Limits of DISCARD: ranges, and sectors of each (1 GiB).
pub const MAX_DISCARD_SEGMENTS: u32 = 16;
/// See [`MAX_DISCARD_SEGMENTS`].
pub const MAX_DISCARD_SECTORS: u32 = 1 << 21;
/// Limits of WRITE_ZEROES: ranges, and sectors of each (32 MiB), since the zeros have to be written where the host can't do better.
pub const MAX_ZEROES_SEGMENTS: u32 = 1;
/// See [`MAX_ZEROES_SEGMENTS`].
pub const MAX_ZEROES_SECTORS: u32 = 1 << 16;

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// Done.
    Ok = 0,
    /// Failed, or not allowed.
    IoError = 1,
    /// Not known here.
    Unsupported = 2,
}

impl From<&io::Result<()>> for Status {
    fn from(result: &io::Result<()>) -> Self {
        if result.is_ok() { Self::Ok } else { Self::IoError }
    }
}

/// What a request asks for.
#[derive(Debug)]
pub enum Action {
    /// Moves data.
    Io(Io),
    /// Clears ranges; they are checked.
    Clear(Vec<Clear>),
    /// The disk's name.
    GetId,
    /// Nothing to do but to answer.
    Answer(Status),
}

/// A range to be cleared, in bytes.
#[derive(Debug, Clone, Copy)]
pub struct Clear {
    offset: u64,
    bytes: u64,
    how: How,
}

impl Clear {
    /// Bytes that the host writes at worst.
    fn written_bytes(&self) -> u64 {
        match self.how {
            How::Discard => 0,
            How::Zero { .. } => self.bytes,
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum How {
    Discard,
    Zero { may_unmap: bool },
}

/// What requests are about.
pub struct Disk {
    /// The image.
    pub image: Arc<Image>,
    /// Counters of the device.
    pub counters: Arc<Counters>,
    /// Each write has to be durable when it completes.
    pub write_through: bool,
}

impl Disk {
    /// What a request asks for, and how many bytes it moves, or fills with zeros that the host may have to write. Reads the header
    /// and ranges, and nothing else of what is data.
    pub fn parse(&self, held: &mut Held) -> (Action, u64) {
        held.with(|parts| {
            let action = self.parse_parts(parts).unwrap_or_else(Action::Answer);
            let bytes = match &action {
                Action::Io(Io::Read { .. }) => parts.writer.remaining() as u64,
                Action::Io(Io::Write { .. }) => parts.reader.remaining() as u64,
                Action::Clear(ranges) => ranges.iter().map(Clear::written_bytes).sum(),
                _ => 0,
            };
            (action, bytes)
        })
    }

    fn parse_parts(&self, parts: &mut Parts<'_>) -> Result<Action, Status> {
        // Without a status byte nothing can be answered, so nothing is done.
        if parts.status.is_none() {
            return Err(Status::IoError);
        }
        let mut header = [0; HEADER_BYTES];
        if parts.reader.read(&mut header) != HEADER_BYTES {
            return Err(Status::IoError);
        }
        let [a, b, c, d, _, _, _, _, sector @ ..] = header;
        let sector = u64::from_le_bytes(sector);
        let read_only = self.image.read_only;
        match u32::from_le_bytes([a, b, c, d]) {
            T_IN => Ok(Action::Io(Io::Read { offset: self.place(sector, parts.writer.remaining())? })),
            T_OUT | T_DISCARD | T_WRITE_ZEROES if read_only => Err(Status::IoError),
            T_OUT => {
                let offset = self.place(sector, parts.reader.remaining())?;
                Ok(Action::Io(Io::Write { offset, durable: self.write_through }))
            }
            // A read-only image has nothing to flush, and some file systems refuse to try.
            T_FLUSH if read_only => Ok(Action::Answer(Status::Ok)),
            T_FLUSH => Ok(Action::Io(Io::Flush)),
            T_GET_ID => Ok(Action::GetId),
            kind @ (T_DISCARD | T_WRITE_ZEROES) => self.ranges(kind, &mut parts.reader),
            _ => Err(Status::Unsupported),
        }
    }

    fn ranges(&self, kind: u32, reader: &mut Reader<'_>) -> Result<Action, Status> {
        let (segments, sectors) = match kind {
            T_DISCARD => (MAX_DISCARD_SEGMENTS, MAX_DISCARD_SECTORS),
            _ => (MAX_ZEROES_SEGMENTS, MAX_ZEROES_SECTORS),
        };
        let length = reader.remaining();
        if length == 0 || !length.is_multiple_of(RANGE_BYTES) || length / RANGE_BYTES > segments as usize {
            return Err(Status::IoError);
        }
        let mut ranges = Vec::with_capacity(length / RANGE_BYTES);
        let mut bytes = [0; RANGE_BYTES];
        while reader.read(&mut bytes) == RANGE_BYTES {
            let [start @ .., c0, c1, c2, c3, f0, f1, f2, f3] = bytes;
            let (start, count) = (u64::from_le_bytes(start), u32::from_le_bytes([c0, c1, c2, c3]));
            // Section 5.2.6.2: flags other than unmap are reserved, and a discard must not have that one.
            let how = match (kind, u32::from_le_bytes([f0, f1, f2, f3])) {
                (T_DISCARD, 0) => How::Discard,
                (T_WRITE_ZEROES, flags @ (0 | RANGE_UNMAP)) => How::Zero { may_unmap: flags == RANGE_UNMAP },
                _ => return Err(Status::Unsupported),
            };
            if count > sectors {
                return Err(Status::IoError);
            }
            let bytes = u64::from(count) * SECTOR_BYTES;
            ranges.push(Clear { offset: self.inside(start, bytes)?, bytes, how });
        }
        Ok(Action::Clear(ranges))
    }

    /// Place in the image of so much data (section 5.2.6.1).
    fn place(&self, sector: u64, bytes: usize) -> Result<u64, Status> {
        if bytes > MAX_DATA_BYTES {
            return Err(Status::IoError);
        }
        self.inside(sector, bytes as u64)
    }

    /// Place in the image, if whole blocks are wanted and all of them are inside.
    fn inside(&self, sector: u64, bytes: u64) -> Result<u64, Status> {
        let block = u64::from(self.image.block_bytes);
        let end = sector.checked_add(bytes / SECTOR_BYTES).ok_or(Status::IoError)?;
        if !bytes.is_multiple_of(block) || end > self.image.sectors() {
            return Err(Status::IoError);
        }
        let offset = sector.checked_mul(SECTOR_BYTES).ok_or(Status::IoError)?;
        if offset.is_multiple_of(block) { Ok(offset) } else { Err(Status::IoError) }
    }

    /// Clears ranges one after the other.
    pub fn clear(&self, ranges: &[Clear]) -> io::Result<()> {
        let backend = self.image.backend();
        for Clear { offset, bytes, how } in ranges.iter().filter(|range| range.bytes > 0) {
            match how {
                How::Discard => backend.discard(*offset, *bytes)?,
                How::Zero { may_unmap } => backend.write_zeroes(*offset, *bytes, *may_unmap)?,
            }
        }
        if self.write_through { backend.flush() } else { Ok(()) }
    }

    /// Answers with the name of the disk.
    pub fn give_id(&self, held: &mut Held) {
        held.with(|parts| parts.writer.write(&self.image.serial));
    }

    /// Puts the status into a request that is over. Returns the number of bytes written into guest memory.
    pub fn finish(&self, held: &mut Held, status: Status) -> u32 {
        let counters = &self.counters;
        held.with(|parts| {
            if status != Status::Ok {
                counters.errors.add(1);
            }
            counters.bytes_to_guest.add(u64::from(parts.writer.written()));
            let written = parts.status.as_mut().map_or(0, |byte: &mut Writer<'_>| {
                byte.write(&[status as u8]);
                byte.written()
            });
            parts.writer.written().saturating_add(written)
        })
    }
}
