//! One system call after the other on the worker's thread.

use std::sync::Arc;

use super::{Engine, Finished, Io};
use crate::virtio::blk::backend::Backend;
use crate::virtio::blk::held::Held;

/// An engine that has done a request when it returns.
pub struct SyncEngine {
    backend: Arc<dyn Backend>,
}

impl SyncEngine {
    /// An engine for `backend`.
    pub fn new(backend: Arc<dyn Backend>) -> Self {
        Self { backend }
    }
}

impl Engine for SyncEngine {
    fn start(&mut self, mut held: Held, io: Io) -> Option<Finished> {
        let backend = self.backend.as_ref();
        let result = held.with(|parts| match io {
            Io::Read { offset } => backend.read(&mut parts.writer, offset),
            Io::Write { offset, durable } => {
                backend.write(&mut parts.reader, offset)?;
                if durable { backend.flush() } else { Ok(()) }
            }
            Io::Flush => backend.flush(),
        });
        Some(Finished { held, result })
    }
}
