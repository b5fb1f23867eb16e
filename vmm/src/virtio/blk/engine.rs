//! How data gets between guest memory and an image.

use std::io;
use std::sync::Arc;

use super::image::Image;
use crate::virtio::buffers::{Reader, Writer};

/// Moves the data of one request. All of it, or an error.
pub trait Engine: Send {
    /// Fills `to` from `offset` bytes into the image.
    fn read(&self, to: &mut Writer<'_>, offset: u64) -> io::Result<()>;
    /// Stores all of `from` at `offset` bytes into the image.
    fn write(&self, from: &mut Reader<'_>, offset: u64) -> io::Result<()>;
    /// Makes what was written durable.
    fn flush(&self) -> io::Result<()>;
}

/// One system call after the other on the worker's thread.
pub struct SyncEngine {
    image: Arc<Image>,
}

impl SyncEngine {
    /// An engine for `image`.
    pub fn new(image: Arc<Image>) -> Self {
        Self { image }
    }
}

impl Engine for SyncEngine {
    fn read(&self, to: &mut Writer<'_>, mut offset: u64) -> io::Result<()> {
        while to.remaining() > 0 {
            match retry(|| to.read_from_file(&self.image.file, offset))? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                bytes => offset = offset.saturating_add(bytes as u64),
            }
        }
        Ok(())
    }

    fn write(&self, from: &mut Reader<'_>, mut offset: u64) -> io::Result<()> {
        while from.remaining() > 0 {
            match retry(|| from.write_to_file(&self.image.file, offset))? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                bytes => offset = offset.saturating_add(bytes as u64),
            }
        }
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        self.image.file.sync_data()
    }
}

fn retry(mut call: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}
