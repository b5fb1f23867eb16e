//! Requests and replies in the form that the library takes: a reader and a writer over descriptor chains.
//!
//! The library walks a chain again when it makes a reader, and once more for a writer. On the guest's ring it could meet
//! another chain than the one that was checked. So it gets chains on a ring in memory of our own, made of the checked pieces.

use std::sync::Arc;

use thiserror::Error;
use vhost_user_backend::bitmap::BitmapMmapRegion;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{DescriptorChain, Queue, QueueT};
use virtiofsd::descriptor_utils::{Reader, Writer};
use vm_memory::{Address, ByteValued, Bytes, GuestAddress, GuestMemoryMmap};

use super::alias::Alias;
use super::server::Handled;
use crate::virtio::counters::Counters;
use crate::virtio::queue::{Piece, PieceChain};

/// Entries of our ring: a chain has at most as many descriptors as the guest's queue, and a few more where they cross regions.
const RING_SIZE: u16 = 1024;
const TABLE: GuestAddress = GuestAddress(0);
const AVAILABLE: GuestAddress = GuestAddress(16 * RING_SIZE as u64);
const USED: GuestAddress = GuestAddress(32 * RING_SIZE as u64);
const RING_BYTES: usize = 64 * RING_SIZE as usize;
/// Descriptor flags (virtio 1.2, section 2.7.5).
const F_NEXT: u16 = 1;
const F_WRITE: u16 = 2;

/// Most bytes of either side: the library offers 1 MiB of data, and headers come on top.
const MAX_BYTES: u64 = (1 << 20) + (64 << 10);
/// `struct fuse_in_header`.
const IN_HEADER_BYTES: u64 = 40;
/// `struct fuse_out_header`. The library splits it off without looking whether there is room.
const OUT_HEADER_BYTES: u32 = 16;
/// Room for a reply that nobody reads: the longest that isn't data.
const NOWHERE_BYTES: u32 = 4096;

/// A message can't be given to the library.
#[derive(Debug, Error)]
#[error("Can't pass a message to the file system server: {0}")]
pub struct MessageError(String);

impl MessageError {
    pub(super) fn because(error: impl std::fmt::Display) -> Self {
        Self(error.to_string())
    }
}

/// Turns checked chains into messages.
pub struct Messages {
    ring: Ring,
    /// Takes replies to requests that have no room for any.
    nowhere: GuestMemoryMmap<BitmapMmapRegion>,
    guest: Option<Alias>,
}

impl Messages {
    /// Makes the ring.
    pub fn new() -> Result<Self, MessageError> {
        let nowhere = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), NOWHERE_BYTES as usize)]);
        Ok(Self { ring: Ring::new()?, nowhere: nowhere.map_err(MessageError::because)?, guest: None })
    }

    /// Lets `handle` answer a request. Returns what it returns, with the number of bytes that are really in the chain.
    pub fn exchange(
        &mut self,
        memory: &Arc<GuestMemoryMmap>,
        chain: &PieceChain,
        counters: &Counters,
        handle: impl FnOnce(Reader<'_>, Writer<'_>) -> Handled,
    ) -> Handled {
        let (sent, room) = (total(&chain.readable), total(&chain.writable));
        counters.bytes_from_guest.add(sent);
        if !(IN_HEADER_BYTES..=MAX_BYTES).contains(&sent) || room > MAX_BYTES {
            counters.errors.add(1);
            return Handled::Reply(0);
        }
        match self.pass(memory, chain, room, handle) {
            Ok(Handled::Reply(bytes)) => {
                let bytes = if u64::from(bytes) <= room { bytes } else { 0 };
                counters.bytes_to_guest.add(u64::from(bytes));
                Handled::Reply(bytes)
            }
            Ok(Handled::Gone) => Handled::Gone,
            Err(_) => {
                counters.errors.add(1);
                Handled::Reply(0)
            }
        }
    }

    fn pass(
        &mut self,
        memory: &Arc<GuestMemoryMmap>,
        chain: &PieceChain,
        room: u64,
        handle: impl FnOnce(Reader<'_>, Writer<'_>) -> Handled,
    ) -> Result<Handled, MessageError> {
        let guest = match self.guest.take().filter(|guest| guest.is_of(memory)) {
            Some(guest) => guest,
            None => Alias::new(Arc::clone(memory))?,
        };
        let guest = self.guest.insert(guest);
        let request = guest.reader(self.ring.chain(&chain.readable, 0)?)?;
        let reply = if room >= u64::from(OUT_HEADER_BYTES) {
            guest.writer(self.ring.chain(&chain.writable, F_WRITE)?)?
        } else {
            let nowhere = Piece { address: GuestAddress(0), len_bytes: NOWHERE_BYTES };
            let chain = self.ring.chain(&[nowhere], F_WRITE)?;
            Writer::new(&self.nowhere, chain).map_err(MessageError::because)?
        };
        Ok(handle(request, reply))
    }
}

fn total(pieces: &[Piece]) -> u64 {
    pieces.iter().map(|piece| u64::from(piece.len_bytes)).sum()
}

/// A ring that only we can write.
struct Ring {
    memory: GuestMemoryMmap,
    queue: Queue,
    available: u16,
}

impl Ring {
    fn new() -> Result<Self, MessageError> {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RING_BYTES)]).map_err(MessageError::because)?;
        let mut queue = Queue::new(RING_SIZE).map_err(MessageError::because)?;
        queue.set_size(RING_SIZE);
        queue.try_set_desc_table_address(TABLE).map_err(MessageError::because)?;
        queue.try_set_avail_ring_address(AVAILABLE).map_err(MessageError::because)?;
        queue.try_set_used_ring_address(USED).map_err(MessageError::because)?;
        queue.set_ready(true);
        Ok(Self { memory, queue, available: 0 })
    }

    /// Puts pieces into the table, over what was there, and takes them out as a chain. Nobody may use the last one any more.
    fn chain(&mut self, pieces: &[Piece], flags: u16) -> Result<DescriptorChain<&GuestMemoryMmap>, MessageError> {
        if pieces.is_empty() || pieces.len() > usize::from(RING_SIZE) {
            return Err(MessageError("it has too many parts, or none".to_owned()));
        }
        for (index, piece) in (0u16..).zip(pieces) {
            let last = usize::from(index) + 1 == pieces.len();
            let flags = if last { flags } else { flags | F_NEXT };
            let descriptor = Descriptor::new(piece.address.0, piece.len_bytes, flags, index.wrapping_add(1));
            let at = TABLE.unchecked_add(16 * u64::from(index));
            self.memory.write_slice(descriptor.as_slice(), at).map_err(MessageError::because)?;
        }
        // The head is always entry 0, and so is every entry of the available ring.
        self.available = self.available.wrapping_add(1);
        let index = AVAILABLE.unchecked_add(2);
        self.memory.write_obj(self.available.to_le(), index).map_err(MessageError::because)?;
        let chain = self.queue.pop_descriptor_chain(&self.memory);
        chain.ok_or_else(|| MessageError("the ring is empty".to_owned()))
    }
}
