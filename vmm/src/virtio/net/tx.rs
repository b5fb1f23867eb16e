//! Frames from the guest.

use std::sync::Arc;
use std::time::Instant;

use vm_memory::GuestMemoryMmap;

use super::io::MAX_SLICES;
use super::port::{Port, PortError};
use super::spec::{HEADER_BYTES, Header, MAX_FRAME_BYTES, MIN_FRAME_BYTES, Offloads};
use super::{FRAMES_AT_ONCE, Stop};
use crate::virtio::buffers::Reader;
use crate::virtio::counters::Counters;
use crate::virtio::queue::{Chain, VirtQueue};
use crate::virtio::rate_limiter::Gate;

/// The transmit half of a queue pair.
pub struct Transmitter {
    queue: VirtQueue,
    allowed: Offloads,
    gate: Gate,
    counters: Arc<Counters>,
    /// The frame at the head of the ring has passed the rate limiter.
    admitted: bool,
}

impl Transmitter {
    /// The half of a device whose driver may leave `allowed` to it.
    pub fn new(queue: VirtQueue, allowed: Offloads, gate: Gate, counters: Arc<Counters>) -> Self {
        Self { queue, allowed, gate, counters, admitted: false }
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

    /// Takes frames from the driver, which gets at most one notification for all of them. Without a port they go nowhere.
    pub fn run(&mut self, memory: &GuestMemoryMmap, mut port: Option<&mut Port>) -> Stop {
        self.queue.disable_notification(memory);
        let mut stop = Stop::Budget;
        for _ in 0..FRAMES_AT_ONCE {
            let Some(chain) = self.next(memory) else {
                stop = Stop::Ring;
                break;
            };
            let Chain { mut reader, head, .. } = chain;
            let result = port.as_deref_mut().map_or(Ok(()), |port| self.send(port, &mut reader));
            match result {
                Ok(()) => {}
                Err(Stop::Gone(reason)) => {
                    self.queue.complete(memory, head, 0);
                    stop = Stop::Gone(reason);
                    break;
                }
                Err(reason) => {
                    self.queue.unpop(head);
                    stop = reason;
                    break;
                }
            }
            self.admitted = false;
            self.queue.complete(memory, head, 0);
        }
        self.queue.signal(memory);
        stop
    }

    /// The next chain; if there is none, the doorbell rings for the one that follows.
    fn next<'m>(&mut self, memory: &'m GuestMemoryMmap) -> Option<Chain<'m>> {
        if let Some(chain) = self.queue.pop(memory) {
            return Some(chain);
        }
        if !self.queue.enable_notification(memory) {
            return None;
        }
        self.queue.disable_notification(memory);
        self.queue.pop(memory)
    }

    /// Sends one frame, or drops it if it breaks a rule. An error leaves it in the ring.
    fn send(&mut self, port: &mut Port, reader: &mut Reader<'_>) -> Result<(), Stop> {
        let mut header = [0; HEADER_BYTES];
        let complete = reader.read(&mut header) == HEADER_BYTES;
        let header = Header::from_bytes(header);
        let bytes = reader.remaining();
        let valid = complete
            && (MIN_FRAME_BYTES..=MAX_FRAME_BYTES).contains(&bytes)
            && reader.slices().len() <= MAX_SLICES
            && header.is_allowed(bytes, self.allowed);
        if !valid {
            self.counters.errors.add(1);
            return Ok(());
        }
        self.admitted = self.admitted || self.gate.admit(bytes as u64, 1);
        if !self.admitted {
            return Err(Stop::Throttled);
        }
        match port.send(header.for_kernel(), reader.slices(), bytes) {
            Ok(()) => self.counters.bytes_from_guest.add(bytes as u64),
            Err(PortError::Gone(reason)) => return Err(Stop::Gone(reason)),
            Err(PortError::Full | PortError::Empty) => return Err(Stop::PortFull),
            Err(PortError::Frame) => self.counters.errors.add(1),
        }
        Ok(())
    }
}
