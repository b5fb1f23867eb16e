//! Frames to the guest.
//!
//! A frame goes straight from the kernel into the driver's buffers. How long it is shows only then, so there are always buffers for one
//! as long as the last ones, and behind them memory of our own: what lands there is copied.

use std::sync::Arc;
use std::time::Instant;

use vm_memory::GuestMemoryMmap;

use super::checksum;
use super::pool::Pool;
use super::port::{Port, PortError};
use super::spec::{HEADER_BYTES, Header, MAX_FRAME_BYTES, MIN_FRAME_BYTES, Offloads};
use super::{FRAMES_AT_ONCE, Stop};
use crate::virtio::counters::Counters;
use crate::virtio::queue::VirtQueue;
use crate::virtio::rate_limiter::Gate;

/// Buffers for this much are ready at least.
const LEAST_BYTES: usize = 2048;

/// A frame that has arrived and has to wait for its turn, or for buffers.
struct Held {
    header: Header,
    frame: Vec<u8>,
    /// It has passed the rate limiter.
    admitted: bool,
}

/// The receive half of a queue pair.
pub struct Receiver {
    queue: VirtQueue,
    /// A frame may lie in several buffers.
    mergeable: bool,
    gate: Gate,
    counters: Arc<Counters>,
    tail: Box<[u8]>,
    held: Option<Held>,
    /// Bytes that the next frame may need, by the last ones.
    expected: usize,
}

impl Receiver {
    /// The half of a device that starts.
    pub fn new(queue: VirtQueue, mergeable: bool, gate: Gate, counters: Arc<Counters>) -> Self {
        // One more, so that a frame that is too long shows.
        let tail = vec![0; MAX_FRAME_BYTES + 1].into_boxed_slice();
        Self { queue, mergeable, gate, counters, tail, held: None, expected: LEAST_BYTES }
    }

    /// Its queue.
    pub fn queue(&self) -> &VirtQueue {
        &self.queue
    }

    /// When the rate limiter lets it go on.
    pub fn deadline(&self) -> Option<Instant> {
        self.gate.deadline()
    }

    /// Its rate limiter.
    pub fn gate(&mut self) -> &mut Gate {
        &mut self.gate
    }

    /// A frame waits here, not at the port.
    pub fn holds_frame(&self) -> bool {
        self.held.is_some()
    }

    /// Gives frames to the driver, which gets one notification for all of them.
    pub fn run(&mut self, memory: &GuestMemoryMmap, port: &mut Port, allowed: Offloads) -> Stop {
        self.queue.disable_notification(memory);
        let mut pool = Pool::default();
        let mut stop = Stop::Budget;
        for _ in 0..FRAMES_AT_ONCE {
            let result = match self.held.take() {
                Some(held) => self.deliver_held(memory, &mut pool, held),
                None => self.receive(memory, &mut pool, port, allowed),
            };
            if let Err(reason) = result {
                stop = reason;
                break;
            }
        }
        pool.give_back(&mut self.queue);
        self.queue.signal(memory);
        stop
    }

    /// Throws frames away: nobody is to see them.
    pub fn discard(&mut self, port: &mut Port) -> Stop {
        self.held = None;
        for _ in 0..FRAMES_AT_ONCE {
            match port.receive(&[], &mut self.tail) {
                Ok(_) | Err(PortError::Frame) => {}
                Err(PortError::Gone(reason)) => return Stop::Gone(reason),
                Err(PortError::Empty | PortError::Full) => return Stop::PortEmpty,
            }
        }
        Stop::Budget
    }

    fn receive<'m>(
        &mut self,
        memory: &'m GuestMemoryMmap,
        pool: &mut Pool<'m>,
        port: &mut Port,
        allowed: Offloads,
    ) -> Result<(), Stop> {
        let expected = if self.mergeable { self.expected } else { 1 };
        self.fill(memory, pool, expected);
        if pool.is_empty() && !self.fill_or_wait(memory, pool, 1) {
            return Err(Stop::Ring);
        }
        let space = pool.space(HEADER_BYTES);
        let space_bytes: usize = space.iter().map(|slice| slice.len()).sum();
        let (mut header, bytes) = match port.receive(&space, &mut self.tail) {
            Ok(frame) => frame,
            Err(PortError::Gone(reason)) => return Err(Stop::Gone(reason)),
            Err(PortError::Frame) => {
                self.counters.errors.add(1);
                return Ok(());
            }
            Err(PortError::Empty | PortError::Full) => return Err(Stop::PortEmpty),
        };
        let total = HEADER_BYTES + bytes;
        self.expected = total.max(self.expected - self.expected / 8).max(LEAST_BYTES);
        let fits =
            (MIN_FRAME_BYTES..=MAX_FRAME_BYTES).contains(&bytes) && (self.mergeable || total <= pool.first_bytes());
        if !fits || !header.is_allowed(bytes, allowed) {
            self.counters.errors.add(1);
            return Ok(());
        }
        header.keep_allowed_flags(allowed);
        let in_space = bytes.min(space_bytes);
        let has_room = self.fill(memory, pool, total);
        if !has_room || !self.gate.admit(bytes as u64, 1) {
            let mut frame = vec![0; in_space];
            pool.read(HEADER_BYTES, &mut frame);
            frame.extend(self.tail.get(..bytes - in_space).unwrap_or_default());
            self.held = Some(Held { header, frame, admitted: false });
            // The next round finds out what it has to wait for.
            return if self.gate.is_shut() { Err(Stop::Throttled) } else { Ok(()) };
        }
        pool.write(HEADER_BYTES + in_space, self.tail.get(..bytes - in_space).unwrap_or_default());
        finish_checksum(&mut header, pool, bytes);
        self.finish(memory, pool, header, bytes);
        Ok(())
    }

    fn deliver_held<'m>(
        &mut self,
        memory: &'m GuestMemoryMmap,
        pool: &mut Pool<'m>,
        mut held: Held,
    ) -> Result<(), Stop> {
        let bytes = held.frame.len();
        held.admitted = held.admitted || self.gate.admit(bytes as u64, 1);
        if !held.admitted {
            self.held = Some(held);
            return Err(Stop::Throttled);
        }
        let needed = if self.mergeable { HEADER_BYTES + bytes } else { 1 };
        if !self.fill_or_wait(memory, pool, needed) {
            // All that the driver can ever give may be not enough.
            if pool.len() >= usize::from(self.queue.size()) {
                self.counters.errors.add(1);
                return Ok(());
            }
            self.held = Some(held);
            return Err(Stop::Ring);
        }
        if HEADER_BYTES + bytes > pool.bytes() {
            self.counters.errors.add(1);
            return Ok(());
        }
        pool.write(HEADER_BYTES, &held.frame);
        finish_checksum(&mut held.header, pool, bytes);
        self.finish(memory, pool, held.header, bytes);
        Ok(())
    }

    fn finish(&mut self, memory: &GuestMemoryMmap, pool: &mut Pool<'_>, header: Header, bytes: usize) {
        let total = HEADER_BYTES + bytes;
        pool.write(0, &header.for_driver(pool.count(total)).to_bytes());
        self.queue.complete_all(memory, pool.take(total));
        self.counters.bytes_to_guest.add(bytes as u64);
    }

    /// Takes buffers until there are `wanted` bytes. False if the driver has not given so many.
    fn fill<'m>(&mut self, memory: &'m GuestMemoryMmap, pool: &mut Pool<'m>, wanted: usize) -> bool {
        // A driver could give useless buffers for ever.
        let mut budget = self.queue.size();
        loop {
            // The first buffer has to hold the header and something (section 5.1.6.3.1).
            while !pool.is_empty() && pool.first_bytes() <= HEADER_BYTES {
                if let Some(head) = pool.take_first() {
                    self.counters.errors.add(1);
                    self.queue.complete(memory, head, 0);
                }
            }
            if pool.bytes() >= wanted || pool.len() >= usize::from(self.queue.size()) || budget == 0 {
                break;
            }
            let Some(chain) = self.queue.pop(memory) else { break };
            pool.push(chain);
            budget -= 1;
        }
        pool.bytes() >= wanted
    }

    /// As [`Receiver::fill`]; when it returns false, the driver's next buffer rings the doorbell.
    fn fill_or_wait<'m>(&mut self, memory: &'m GuestMemoryMmap, pool: &mut Pool<'m>, wanted: usize) -> bool {
        // While they are taken from the ring, so that the doorbell rings for those that follow.
        for _ in 0..=self.queue.size() {
            if self.fill(memory, pool, wanted) {
                return true;
            }
            if pool.len() >= usize::from(self.queue.size()) || !self.queue.enable_notification(memory) {
                return false;
            }
            self.queue.disable_notification(memory);
        }
        false
    }
}

fn finish_checksum(header: &mut Header, pool: &Pool<'_>, bytes: usize) {
    let Some((start, field)) = header.open_checksum().filter(|_| bytes <= checksum::MAX_BYTES) else { return };
    let mut frame = [0; checksum::MAX_BYTES];
    let Some(frame) = frame.get_mut(..bytes) else { return };
    pool.read(HEADER_BYTES, frame);
    if let Some(sum) = checksum::of_dhcp_answer(frame, start, field) {
        pool.write(HEADER_BYTES + field, &sum);
        header.close_checksum();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::os::unix::net::UnixDatagram;

    use vm_memory::GuestAddressSpace;

    use super::*;
    use crate::virtio::net::spec::feature;
    use crate::virtio::net::tap::Tap;
    use crate::virtio::rate_limiter::SharedLimiter;
    use crate::virtio::rng::Rng;
    use crate::virtio::testing::{Machine, Part};

    #[test]
    fn flags_of_a_checksum_reach_only_a_driver_that_knows_them() {
        // The kernel says that the checksum is valid (2), and something that no specification knows.
        for (features, flags) in [(0, 0), (feature::GUEST_CSUM, 2)] {
            let machine = Machine::new();
            let mut ring = machine.plug(Box::new(Rng::new())).make_queue(0, 4);
            let address = machine.allocate(2048);
            ring.add(&[Part { address, len: 2048, writable: true }]);
            let (host, device) = UnixDatagram::pair().unwrap();
            device.set_nonblocking(true).unwrap();
            host.send(&[&[0x82][..], &[0; HEADER_BYTES - 1], &[7; 64]].concat()).unwrap();
            let counters = Arc::new(Counters::default());
            let gate = Gate::new(SharedLimiter::new(None).unwrap(), Arc::clone(&counters));
            let mut receiver = Receiver::new(ring.device_side(&counters), true, gate, counters);
            let mut port = Port::tap(&Arc::new(Tap::of_datagrams(device)), 0);
            receiver.run(&machine.memory.memory(), &mut port, Offloads::of_device(features));
            assert_eq!(ring.poll_used(), Some((0, 76)));
            assert_eq!(machine.read(address, 1), [flags]);
        }
    }
}
