//! Receive buffers that are ready for the next frames, in the order in which the driver gave them.

use std::collections::VecDeque;

use super::io::MAX_SLICES;
use crate::virtio::queue::{Chain, Head, VirtQueue};
use crate::virtio::sys::GuestSlice;

struct Buffer<'m> {
    head: Head,
    slices: Vec<GuestSlice<'m>>,
    bytes: usize,
}

/// Buffers taken from the ring.
#[derive(Default)]
pub struct Pool<'m> {
    buffers: VecDeque<Buffer<'m>>,
    bytes: usize,
}

impl<'m> Pool<'m> {
    /// Adds the writable part of a chain.
    pub fn push(&mut self, chain: Chain<'m>) {
        let bytes = chain.writer.remaining();
        self.bytes = self.bytes.saturating_add(bytes);
        self.buffers.push_back(Buffer { head: chain.head, slices: chain.writer.into_slices(), bytes });
    }

    /// Number of buffers.
    pub fn len(&self) -> usize {
        self.buffers.len()
    }

    /// No buffer is left.
    pub fn is_empty(&self) -> bool {
        self.buffers.is_empty()
    }

    /// Bytes of all buffers.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Bytes of the first buffer.
    pub fn first_bytes(&self) -> usize {
        self.buffers.front().map_or(0, |buffer| buffer.bytes)
    }

    /// Memory behind the first `skip` bytes, as much as fits into a system call.
    pub fn space(&self, skip: usize) -> Vec<GuestSlice<'m>> {
        let mut skip = skip;
        let slices = self.buffers.iter().flat_map(|buffer| &buffer.slices).filter_map(|slice| {
            let here = skip.min(slice.len());
            skip -= here;
            slice.offset(here).ok().filter(|rest| !rest.is_empty())
        });
        slices.take(MAX_SLICES).collect()
    }

    /// Copies `from` to `offset`.
    pub fn write(&self, offset: usize, from: &[u8]) {
        let mut rest = from;
        for slice in self.space(offset) {
            let (now, later) = rest.split_at(rest.len().min(slice.len()));
            slice.copy_from(now);
            rest = later;
            if rest.is_empty() {
                break;
            }
        }
    }

    /// Copies `to.len()` bytes from `offset` on out.
    pub fn read(&self, offset: usize, to: &mut [u8]) {
        let mut rest = to;
        for slice in self.space(offset) {
            let (now, later) = rest.split_at_mut(rest.len().min(slice.len()));
            slice.copy_to(now);
            rest = later;
            if rest.is_empty() {
                break;
            }
        }
    }

    /// How many buffers hold the first `bytes` bytes.
    pub fn count(&self, bytes: usize) -> u16 {
        let mut seen = 0usize;
        let used = self.buffers.iter().take_while(|buffer| {
            let needed = seen < bytes;
            seen = seen.saturating_add(buffer.bytes);
            needed
        });
        u16::try_from(used.count()).unwrap_or(u16::MAX)
    }

    /// Takes the buffers that hold the first `bytes` bytes out, with the bytes of each.
    pub fn take(&mut self, bytes: usize) -> Vec<(Head, u32)> {
        let count = usize::from(self.count(bytes));
        let mut left = bytes;
        let mut taken = Vec::with_capacity(count);
        for buffer in self.buffers.drain(..count.min(self.buffers.len())) {
            let used = left.min(buffer.bytes);
            left -= used;
            self.bytes = self.bytes.saturating_sub(buffer.bytes);
            taken.push((buffer.head, u32::try_from(used).unwrap_or(u32::MAX)));
        }
        taken
    }

    /// Takes the first buffer out: it is of no use.
    pub fn take_first(&mut self) -> Option<Head> {
        let buffer = self.buffers.pop_front()?;
        self.bytes = self.bytes.saturating_sub(buffer.bytes);
        Some(buffer.head)
    }

    /// Puts all buffers back into the ring.
    pub fn give_back(&mut self, queue: &mut VirtQueue) {
        while let Some(buffer) = self.buffers.pop_back() {
            queue.unpop(buffer.head);
        }
        self.bytes = 0;
    }
}
