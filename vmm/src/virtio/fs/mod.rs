//! File system device (virtio 1.2, section 5.11): a directory of the host, served by the `virtiofsd` library on a thread of the
//! monitor.
//!
//! The library believes what a chain says and checks names for NUL only. So requests pass two gates of ours before it acts:
//! chains come out of [`VirtQueue`] checked and are given to it on a ring of our own ([`messages`]), and a file system of ours
//! stands before its own ([`gate`]). The thread that runs it has a root directory and rights of its own ([`confine`]).

mod alias;
mod confine;
mod gate;
mod ids;
mod messages;
mod server;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use thiserror::Error;
use vm_memory::GuestAddressSpace;
use vmm_sys_util::epoll::EventSet;

use self::messages::Messages;
use self::server::{Directory, Server};
use super::counters::Counters;
use super::device::{ActivateError, Activation, VirtioDevice};
use super::queue::VirtQueue;
use super::spec::device_type;
use super::worker::{Quiesce, Service, Watch, Workers};
use crate::config;
use crate::memory::GuestRam;

/// High priority queue and one request queue (section 5.11.2). A request for 1 MiB in pages has 260 parts.
const QUEUE_SIZES: &[u16] = &[64, 512];
const HIGH_PRIORITY: u16 = 0;
const REQUESTS: u16 = 1;

/// A share can't be made.
#[derive(Debug, Error)]
pub enum ShareError {
    /// The directory can't be opened, or isn't one.
    #[error("Can't open the directory of share {tag} at {}", path.display())]
    Open {
        /// Share.
        tag: String,
        /// Directory.
        path: PathBuf,
        /// What open says.
        source: io::Error,
    },
    /// Without it, no file can be opened.
    #[error("Can't open /proc/self/fd, which shares need")]
    Proc(#[source] io::Error),
}

/// A directory that the guest can mount.
pub struct Share {
    counters: Arc<Counters>,
    tag: String,
    directory: Arc<Directory>,
    workers: Workers<ShareService>,
}

impl Share {
    /// Opens the directory. `max_open_files` bounds the files and directories that the guest knows or has open: each costs the
    /// monitor a file descriptor.
    pub fn new(config: &config::Share, max_open_files: u64) -> Result<Self, ShareError> {
        Ok(Self {
            counters: Arc::default(),
            tag: config.tag.clone(),
            directory: Arc::new(Directory::open(config, max_open_files)?),
            workers: Workers::default(),
        })
    }
}

impl VirtioDevice for Share {
    fn device_type(&self) -> u16 {
        device_type::FILE_SYSTEM
    }

    fn queue_max_sizes(&self) -> &[u16] {
        QUEUE_SIZES
    }

    fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// Device-specific configuration (section 5.11.4): the tag, padded with zeros, and the number of request queues.
    fn config_space(&self) -> Vec<u8> {
        let tag = self.tag.bytes().chain(std::iter::repeat(0)).take(config::MAX_TAG_BYTES);
        tag.chain(1u32.to_le_bytes()).collect()
    }

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        let mut queues = activation.queues(&self.counters);
        let service = ShareService {
            queues: [queues.take(HIGH_PRIORITY)?, queues.take(REQUESTS)?],
            messages: Messages::new().map_err(|error| ActivateError(error.to_string()))?,
            memory: activation.memory,
            directory: Arc::clone(&self.directory),
            counters: Arc::clone(&self.counters),
            server: None,
        };
        Ok(self.workers.start("fs", [service])?)
    }

    fn reset(&mut self) {
        self.workers.stop();
    }

    fn workers(&self) -> &dyn Quiesce {
        &self.workers
    }
}

struct ShareService {
    queues: [VirtQueue; 2],
    memory: GuestRam,
    messages: Messages,
    directory: Arc<Directory>,
    counters: Arc<Counters>,
    /// Made on the thread that it runs on. Gone after a panic in the library.
    server: Option<Server>,
}

impl ShareService {
    fn serve(&mut self) {
        let memory = self.memory.memory().into_inner();
        let Self { queues, messages, counters, server, .. } = self;
        for queue in queues {
            queue.drain_as(&memory, VirtQueue::pop_pieces, |queue, chain| {
                let outcome = messages.exchange(&memory, &chain, counters, |request, reply| match server.as_ref() {
                    Some(server) => server.handle(request, reply),
                    None => server::Handled::Gone,
                });
                match outcome {
                    server::Handled::Reply(bytes) => queue.complete(&memory, chain.head, bytes),
                    server::Handled::Gone => {
                        *server = None;
                        queue.fail(&ServerGone);
                    }
                }
            });
        }
    }
}

impl Service for ShareService {
    fn start(&mut self, watch: &Watch) -> io::Result<()> {
        self.server = Some(self.directory.serve()?);
        for queue in &self.queues {
            watch.add(queue.doorbell(), EventSet::IN, u64::from(queue.index()))?;
        }
        self.serve();
        Ok(())
    }

    fn fail(&mut self, error: &io::Error) {
        self.queues.iter_mut().for_each(|queue| queue.fail(error));
    }

    fn handle(&mut self, _watch: &Watch, token: u64, _events: EventSet) {
        // Both at once would be right too; a doorbell that isn't acknowledged would ring for ever.
        if let Some(queue) = self.queues.iter().find(|queue| u64::from(queue.index()) == token) {
            queue.acknowledge();
        }
        self.serve();
    }
}

#[derive(Debug, Error)]
#[error("The file system server has failed")]
struct ServerGone;

#[cfg(test)]
mod test_guest;

#[cfg(test)]
mod fs_test;

#[cfg(test)]
mod escape_test;
