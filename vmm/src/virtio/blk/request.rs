//! One block request: parse, check, execute, status (virtio 1.2, section 5.2.6).

use std::io;
use std::sync::Arc;

use super::SECTOR_BYTES;
use super::engine::Engine;
use super::image::Image;
use crate::virtio::buffers::{Reader, Writer};
use crate::virtio::counters::Counters;
use crate::virtio::queue::{Chain, Head};

/// Request types.
const T_IN: u32 = 0;
const T_OUT: u32 = 1;
const T_FLUSH: u32 = 4;
const T_GET_ID: u32 = 8;
/// Length of a request's header: type, reserved, sector.
const HEADER_BYTES: usize = 16;

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Status {
    Ok = 0,
    IoError = 1,
    Unsupported = 2,
}

impl From<io::Result<()>> for Status {
    fn from(result: io::Result<()>) -> Self {
        match result {
            Ok(()) => Self::Ok,
            Err(_) => Self::IoError,
        }
    }
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
    /// Executes a request. Returns its head and the number of bytes written into guest memory.
    ///
    /// The last writable byte is the status. A request without one can't be answered, so it completes with nothing written.
    pub fn execute(&self, engine: &dyn Engine, chain: Chain<'_>) -> (Head, u32) {
        let Chain { mut reader, writer: mut data, head } = chain;
        let Some(mut status_byte) = data.split_tail(1) else {
            self.counters.errors.add(1);
            return (head, 0);
        };
        let status = self.perform(engine, &mut reader, &mut data);
        if status != Status::Ok {
            self.counters.errors.add(1);
        }
        self.counters.bytes_to_guest.add(u64::from(data.written()));
        status_byte.write(&[status as u8]);
        (head, data.written().saturating_add(status_byte.written()))
    }

    fn perform(&self, engine: &dyn Engine, reader: &mut Reader<'_>, data: &mut Writer<'_>) -> Status {
        let mut header = [0; HEADER_BYTES];
        if reader.read(&mut header) != HEADER_BYTES {
            return Status::IoError;
        }
        let [a, b, c, d, _, _, _, _, sector @ ..] = header;
        let sector = u64::from_le_bytes(sector);
        match u32::from_le_bytes([a, b, c, d]) {
            T_IN => match self.offset(sector, data.remaining()) {
                Some(offset) => engine.read(data, offset).into(),
                None => Status::IoError,
            },
            T_OUT if self.image.read_only => Status::IoError,
            T_OUT => match self.offset(sector, reader.remaining()) {
                Some(offset) => self.write(engine, reader, offset).into(),
                None => Status::IoError,
            },
            // A read-only image has nothing to flush, and some file systems refuse to try.
            T_FLUSH if self.image.read_only => Status::Ok,
            T_FLUSH => engine.flush().into(),
            T_GET_ID => {
                data.write(&self.image.serial);
                Status::Ok
            }
            _ => Status::Unsupported,
        }
    }

    fn write(&self, engine: &dyn Engine, reader: &mut Reader<'_>, offset: u64) -> io::Result<()> {
        let bytes = reader.remaining() as u64;
        engine.write(reader, offset)?;
        self.counters.bytes_from_guest.add(bytes);
        if self.write_through { engine.flush() } else { Ok(()) }
    }

    /// Place in the image, if whole sectors are wanted and all of them are inside (section 5.2.6.1).
    fn offset(&self, sector: u64, bytes: usize) -> Option<u64> {
        let bytes = bytes as u64;
        if !bytes.is_multiple_of(SECTOR_BYTES) {
            return None;
        }
        let end = sector.checked_add(bytes / SECTOR_BYTES)?;
        if end > self.image.sectors {
            return None;
        }
        sector.checked_mul(SECTOR_BYTES)
    }
}
