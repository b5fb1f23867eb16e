//! How requests get done: one after the other on the worker's thread, or many at once by io_uring.

mod sync;
mod uring;

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use serde::Serialize;

pub use self::sync::SyncEngine;
pub use self::uring::UringEngine;
use super::backend::Backend;
use super::held::Held;

/// The engine in use, as statistics show it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum EngineKind {
    /// System calls on the worker's thread.
    Sync,
    /// io_uring.
    Async,
}

/// What is to be done with the data of a request.
#[derive(Debug, Clone, Copy)]
pub enum Io {
    /// From the image into the request's buffers.
    Read {
        /// Place in the image.
        offset: u64,
    },
    /// From the request's buffers into the image.
    Write {
        /// Place in the image.
        offset: u64,
        /// It has to be durable when it completes.
        durable: bool,
    },
    /// Make durable what was written.
    Flush,
}

/// A request that is over.
pub struct Finished {
    /// The request.
    pub held: Held,
    /// Whether all of it was done.
    pub result: io::Result<()>,
}

/// Does requests. All of the data of each, or an error.
pub trait Engine: Send {
    /// Starts a request; it may be over at once. Only while there is [room](Engine::has_room).
    fn start(&mut self, held: Held, io: Io) -> Option<Finished>;

    /// Another request can be started.
    fn has_room(&self) -> bool {
        true
    }

    /// Hands over what was started.
    fn submit(&mut self) {}

    /// The host refuses what was started, for now, and no completion will come that would be the moment to try again.
    fn is_refused(&mut self) -> bool {
        false
    }

    /// A request that is over by now.
    fn reap(&mut self) -> Option<Finished> {
        None
    }

    /// Waits until no request is in the kernel's hands any more. Bounded by the kernel, which ends every request.
    fn settle(&mut self) {}

    /// Readable when [`Engine::reap`] has something.
    fn completions(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

/// An engine for each of `queues` queues. Where the host has no io_uring for us, the synchronous engine takes its place.
pub fn make(backend: &Arc<dyn Backend>, wanted: EngineKind, queues: usize) -> (EngineKind, Vec<Box<dyn Engine>>) {
    if wanted == EngineKind::Async {
        let engines: io::Result<Vec<_>> = (0..queues).map(|_| UringEngine::new(Arc::clone(backend))).collect();
        match engines {
            Ok(engines) => {
                let boxed = engines.into_iter().map(|engine| Box::new(engine) as Box<dyn Engine>);
                return (EngineKind::Async, boxed.collect());
            }
            Err(error) => crate::log::line(&format!("No io_uring for block devices: {error}; using synchronous I/O")),
        }
    }
    let engines = (0..queues).map(|_| Box::new(SyncEngine::new(Arc::clone(backend))) as Box<dyn Engine>);
    (EngineKind::Sync, engines.collect())
}
