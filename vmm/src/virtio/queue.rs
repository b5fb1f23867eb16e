//! The one gate through which devices use a virtqueue (virtio 1.2, section 2.7).
//!
//! `virtio-queue` walks rings and chains. This module adds what it leaves open: a chain that doesn't end properly, that mixes
//! readable and writable parts, is too long or lies outside of memory breaks the queue. A broken queue is reported once and
//! gives out nothing any more.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use thiserror::Error;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemory, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

use super::buffers::{Reader, Writer};
use super::counters::Counters;
use super::device::{ActiveQueue, Interrupt};
use super::spec::ring;
use super::sys::GuestSlice;

/// How long [`VirtQueue::drain`] goes on taking chains.
const DRAIN_TIME: Duration = Duration::from_millis(50);
/// How long a driver waits for news of requests that are done while others are taken.
pub const TELL_TIME: Duration = Duration::from_millis(1);

/// A rule of the ring that the driver broke.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum RingError {
    /// The available index is more than a queue size ahead (section 2.7.13.3), or its ring can't be read.
    #[error("Available ring index is out of range")]
    AvailableIndex,
    /// A loop, an index behind the table, a bad indirect table, or more than 2³² bytes (section 2.7.5).
    #[error("Descriptor chain {0} does not end properly")]
    Unterminated(u16),
    /// More descriptors than the queue has (section 2.7.5.3.1).
    #[error("Descriptor chain {0} is longer than the queue")]
    TooLong(u16),
    /// A readable descriptor follows a writable one (section 2.7.4.2).
    #[error("Descriptor chain {0} has a readable part behind a writable one")]
    Order(u16),
    /// A buffer isn't in guest memory.
    #[error("Descriptor chain {0} has a buffer outside of guest memory")]
    OutsideMemory(u16),
    /// The used ring, or a flag, can't be accessed.
    #[error("Ring is outside of guest memory")]
    RingMemory,
}

/// A request: a descriptor chain, checked as a whole.
pub struct Chain<'m> {
    /// What the driver sent.
    pub reader: Reader<'m>,
    /// Where the answer goes.
    pub writer: Writer<'m>,
    /// To be given back by [`VirtQueue::complete`].
    pub head: Head,
}

/// A request by the places of its buffers, checked as a whole, for a device whose library wants addresses. What the ring says
/// is read once: a guest that changes its descriptors later changes nothing here.
pub struct PieceChain {
    /// What the driver sent.
    pub readable: Vec<Piece>,
    /// Where the answer goes.
    pub writable: Vec<Piece>,
    /// To be given back by [`VirtQueue::complete`].
    pub head: Head,
}

/// A part of a buffer that lies in one region of guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Where it starts.
    pub address: GuestAddress,
    /// Its size.
    pub len_bytes: u32,
}

/// The right to complete one request.
#[derive(Debug)]
#[must_use = "a request that isn't completed is lost to the driver"]
pub struct Head(u16);

/// A virtqueue in the hands of a device's worker.
pub struct VirtQueue {
    index: u16,
    queue: Queue,
    doorbell: EventFd,
    interrupt: Arc<dyn Interrupt>,
    counters: Arc<Counters>,
    broken: bool,
    /// Used index at the last decision about a notification: chains completed since then are unsignalled.
    decided: u16,
}

impl VirtQueue {
    /// Takes over a queue.
    pub fn new(active: ActiveQueue, interrupt: Arc<dyn Interrupt>, counters: Arc<Counters>) -> Self {
        let ActiveQueue { index, queue, doorbell } = active;
        let decided = queue.next_used();
        Self { index, queue, doorbell, interrupt, counters, broken: false, decided }
    }

    /// Index of the queue in its device.
    pub fn index(&self) -> u16 {
        self.index
    }

    /// Becomes readable when the driver has made buffers available.
    pub fn doorbell(&self) -> &EventFd {
        &self.doorbell
    }

    /// The driver broke the ring.
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// Clears the doorbell; before looking at the ring.
    pub fn acknowledge(&self) {
        if self.doorbell.read().is_ok() {
            self.counters.notifications.add(1);
        }
    }

    /// Gives available chains to `handle`, until there are none. After a few rounds of the ring, or when it takes long, it stops
    /// and rings the doorbell itself, so that a driver that never stops or asks for much can't keep the worker from its other
    /// work, and from a pause or a stop.
    pub fn drain<'m>(&mut self, memory: &'m GuestMemoryMmap, handle: impl FnMut(&mut Self, Chain<'m>)) {
        self.drain_as(memory, Self::pop, handle);
    }

    /// [`drain`](VirtQueue::drain) for chains in the form that `pop` takes them from the ring.
    pub fn drain_as<'m, C>(
        &mut self,
        memory: &'m GuestMemoryMmap,
        pop: impl Fn(&mut Self, &'m GuestMemoryMmap) -> Option<C>,
        mut handle: impl FnMut(&mut Self, C),
    ) {
        self.drain_with(memory, pop, |queue, chain| {
            handle(queue, chain);
            ControlFlow::Continue(())
        });
    }

    /// [`drain`](VirtQueue::drain) until `handle` gives a chain back that has to wait. Then the driver's notifications are off: call
    /// this again when it may go on.
    pub fn drain_while<'m>(
        &mut self,
        memory: &'m GuestMemoryMmap,
        handle: impl FnMut(&mut Self, Chain<'m>) -> ControlFlow<Head>,
    ) {
        self.drain_with(memory, Self::pop, handle);
    }

    fn drain_with<'m, C>(
        &mut self,
        memory: &'m GuestMemoryMmap,
        pop: impl Fn(&mut Self, &'m GuestMemoryMmap) -> Option<C>,
        mut handle: impl FnMut(&mut Self, C) -> ControlFlow<Head>,
    ) {
        let mut budget = 4 * u32::from(self.queue.size());
        let start = Instant::now();
        let (mut now, mut told) = (start, start);
        self.disable_notification(memory);
        while budget > 0 && now.duration_since(start) < DRAIN_TIME {
            // An empty ring counts as well: a driver that moves its index to and fro can make it look empty again and again.
            budget -= 1;
            if let Some(chain) = pop(self, memory) {
                if let ControlFlow::Break(head) = handle(self, chain) {
                    self.unpop(head);
                    return self.signal(memory);
                }
                now = Instant::now();
                // The driver shouldn't wait for the end of a long turn.
                if now.duration_since(told) >= TELL_TIME {
                    self.signal(memory);
                    told = now;
                }
                continue;
            }
            self.signal(memory);
            if !self.enable_notification(memory) {
                return;
            }
            self.disable_notification(memory);
        }
        self.signal(memory);
        self.ring();
    }

    /// The next available chain.
    pub fn pop<'m>(&mut self, memory: &'m GuestMemoryMmap) -> Option<Chain<'m>> {
        self.pop_as(memory, collect)
    }

    /// The next available chain, as pieces.
    pub fn pop_pieces(&mut self, memory: &GuestMemoryMmap) -> Option<PieceChain> {
        self.pop_as(memory, collect_pieces)
    }

    fn pop_as<'m, C>(
        &mut self,
        memory: &'m GuestMemoryMmap,
        collect: impl Fn(Descriptors<'m>, &'m GuestMemoryMmap, u16) -> Result<C, RingError>,
    ) -> Option<C> {
        if self.broken {
            return None;
        }
        let size = self.queue.size();
        let next = self.queue.next_avail();
        if self.queue.avail_idx(memory, Ordering::Acquire).is_ok_and(|index| index.0 == next) {
            return None;
        }
        let chain = match self.queue.iter(memory).map(|mut available| available.next()) {
            Ok(Some(chain)) => chain,
            // There is one, but its place in the ring is no memory (any more). `virtio-queue` says nothing of that.
            Ok(None) => {
                self.fail(&RingError::RingMemory);
                return None;
            }
            Err(_) => {
                self.fail(&RingError::AvailableIndex);
                return None;
            }
        };
        match collect(chain, memory, size) {
            Ok(chain) => {
                self.counters.requests.add(1);
                Some(chain)
            }
            Err(error) => {
                self.fail(&error);
                None
            }
        }
    }

    /// Puts the chain popped last back: the device has nothing to fill it with yet.
    pub fn unpop(&mut self, head: Head) {
        let Head(_) = head;
        self.queue.go_to_previous_position();
        self.counters.requests.take_back(1);
    }

    /// Gives a chain back to the driver, `written` bytes of it filled.
    pub fn complete(&mut self, memory: &GuestMemoryMmap, head: Head, written: u32) {
        self.complete_all(memory, [(head, written)]);
    }

    /// Gives chains back together: the driver sees all of them or none. A packet in several buffers needs that, for drivers
    /// take its first buffer as the sign that all are there (section 5.1.6.4).
    pub fn complete_all(&mut self, memory: &GuestMemoryMmap, chains: impl IntoIterator<Item = (Head, u32)>) {
        if !self.broken && self.add_used(memory, chains).is_err() {
            self.fail(&RingError::RingMemory);
        }
    }

    fn add_used(
        &mut self,
        memory: &GuestMemoryMmap,
        chains: impl IntoIterator<Item = (Head, u32)>,
    ) -> Result<(), RingError> {
        let size = self.queue.size();
        let mut next = self.queue.next_used();
        for (Head(head), written) in chains {
            let at = ring::used_element(next.checked_rem(size).unwrap_or(0));
            let address = self.queue.used_ring().checked_add(at).ok_or(RingError::RingMemory)?;
            // Identifier, then length (section 2.7.8).
            let element = u64::from(head) | u64::from(written) << 32;
            memory.write_obj(element.to_le(), GuestAddress(address)).map_err(|_| RingError::RingMemory)?;
            next = next.wrapping_add(1);
        }
        self.queue.set_next_used(next);
        let address = self.queue.used_ring().checked_add(ring::USED_INDEX).ok_or(RingError::RingMemory)?;
        memory.store(next.to_le(), GuestAddress(address), Ordering::Release).map_err(|_| RingError::RingMemory)
    }

    /// Number of entries of the ring.
    pub fn size(&self) -> u16 {
        self.queue.size()
    }

    /// Notifies the driver of chains completed since the last call, if it wants to know (section 2.7.7).
    pub fn signal(&mut self, memory: &GuestMemoryMmap) {
        if self.broken || self.decided == self.queue.next_used() {
            return;
        }
        match self.wants_signal(memory) {
            Ok(true) => {
                self.counters.interrupts.add(1);
                self.interrupt.signal_used(self.index);
            }
            Ok(false) => {}
            Err(error) => self.fail(&error),
        }
    }

    /// Asks the driver for notifications. True if chains are available already.
    pub fn enable_notification(&mut self, memory: &GuestMemoryMmap) -> bool {
        if self.broken {
            return false;
        }
        self.queue.enable_notification(memory).unwrap_or_else(|_| {
            self.fail(&RingError::RingMemory);
            false
        })
    }

    /// Tells the driver that notifications are not needed.
    pub fn disable_notification(&mut self, memory: &GuestMemoryMmap) {
        if !self.broken && self.queue.disable_notification(memory).is_err() {
            self.fail(&RingError::RingMemory);
        }
    }

    /// Rings the doorbell, to go on later.
    pub fn ring(&self) {
        // A full counter already means that the doorbell rings.
        let _ = self.doorbell.write(1);
    }

    /// Marks the queue as broken and reports it, once.
    pub fn fail(&mut self, error: &dyn std::error::Error) {
        if !self.broken {
            self.broken = true;
            self.interrupt.signal_needs_reset(&format!("queue {}: {error}", self.index));
        }
    }

    fn wants_signal(&mut self, memory: &GuestMemoryMmap) -> Result<bool, RingError> {
        let used = self.queue.next_used();
        let old = std::mem::replace(&mut self.decided, used);
        // Completed chains must be visible before the driver's wish is read (section 2.7.7.2).
        std::sync::atomic::fence(Ordering::SeqCst);
        let load = |offset: u64| {
            let address = self.queue.avail_ring().checked_add(offset).ok_or(RingError::RingMemory)?;
            let value: u16 =
                memory.load(GuestAddress(address), Ordering::Relaxed).map_err(|_| RingError::RingMemory)?;
            Ok(u16::from_le(value))
        };
        if self.queue.event_idx_enabled() {
            let event = load(ring::used_event(self.queue.size()))?;
            return Ok(used.wrapping_sub(event).wrapping_sub(1) < used.wrapping_sub(old));
        }
        Ok(load(0)? & ring::AVAILABLE_F_NO_INTERRUPT == 0)
    }
}

type Descriptors<'m> = DescriptorChain<&'m GuestMemoryMmap>;

fn collect<'m>(chain: Descriptors<'m>, memory: &'m GuestMemoryMmap, size: u16) -> Result<Chain<'m>, RingError> {
    let mut readable = Vec::new();
    let mut writable = Vec::new();
    let head = walk(chain, size, |descriptor| {
        let part = if descriptor.is_write_only() { &mut writable } else { &mut readable };
        add_slices(part, descriptor, memory)
    })?;
    Ok(Chain { reader: Reader::new(readable), writer: Writer::new(writable), head })
}

fn collect_pieces(chain: Descriptors<'_>, memory: &GuestMemoryMmap, size: u16) -> Result<PieceChain, RingError> {
    let mut readable = Vec::new();
    let mut writable = Vec::new();
    let head = walk(chain, size, |descriptor| {
        let part = if descriptor.is_write_only() { &mut writable } else { &mut readable };
        add_pieces(part, descriptor, memory)
    })?;
    Ok(PieceChain { readable, writable, head })
}

/// Walks a chain once, and checks its shape. `add` says whether a buffer is in memory.
fn walk(
    descriptors: Descriptors<'_>,
    size: u16,
    mut add: impl FnMut(&Descriptor) -> Option<()>,
) -> Result<Head, RingError> {
    let head = descriptors.head_index();
    let mut writable = false;
    // `virtio-queue` ends a bad chain as it ends a good one; a good one ends with a descriptor that has no next.
    let mut ended = false;
    for (count, descriptor) in descriptors.enumerate() {
        if count >= usize::from(size) {
            return Err(RingError::TooLong(head));
        }
        if writable && !descriptor.is_write_only() {
            return Err(RingError::Order(head));
        }
        writable = descriptor.is_write_only();
        add(&descriptor).ok_or(RingError::OutsideMemory(head))?;
        ended = !descriptor.has_next();
    }
    if !ended {
        return Err(RingError::Unterminated(head));
    }
    Ok(Head(head))
}

fn add_slices<'m>(part: &mut Vec<GuestSlice<'m>>, descriptor: &Descriptor, memory: &'m GuestMemoryMmap) -> Option<()> {
    for slice in memory.get_slices(descriptor.addr(), usize::try_from(descriptor.len()).ok()?) {
        part.push(slice.ok()?);
    }
    Some(())
}

fn add_pieces(part: &mut Vec<Piece>, descriptor: &Descriptor, memory: &GuestMemoryMmap) -> Option<()> {
    let mut address = descriptor.addr();
    for slice in memory.get_slices(address, usize::try_from(descriptor.len()).ok()?) {
        let len_bytes = u32::try_from(slice.ok()?.len()).ok()?;
        part.push(Piece { address, len_bytes });
        address = address.checked_add(u64::from(len_bytes))?;
    }
    Some(())
}
