//! The two halves of a request: what the device may read and what it may write.
//!
//! Every byte of guest memory is read at most once, so that the guest can't change what was checked.

use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;

use vm_memory::{ByteValued, GuestMemoryMmap};

use super::sys::{self, GuestSlice};
use crate::discard::discard_slice;

/// A cursor over guest memory.
#[derive(Default)]
struct Cursor<'m> {
    slices: Vec<GuestSlice<'m>>,
    /// First slice that isn't used up.
    next: usize,
    remaining: usize,
}

impl<'m> Cursor<'m> {
    fn new(slices: Vec<GuestSlice<'m>>) -> Self {
        let remaining = slices.iter().map(GuestSlice::len).sum();
        Self { slices, next: 0, remaining }
    }

    fn left(&self) -> &[GuestSlice<'m>] {
        self.slices.get(self.next..).unwrap_or_default()
    }

    fn advance(&mut self, bytes: usize) {
        let mut bytes = bytes.min(self.remaining);
        self.remaining -= bytes;
        while let Some(slice) = self.slices.get_mut(self.next) {
            if bytes < slice.len() {
                if let Ok(rest) = slice.offset(bytes) {
                    *slice = rest;
                }
                return;
            }
            bytes -= slice.len();
            self.next += 1;
        }
    }

    /// Calls `copy` for each piece with the place in the caller's buffer.
    fn each(&mut self, wanted: usize, mut copy: impl FnMut(&GuestSlice<'m>, usize)) -> usize {
        let wanted = wanted.min(self.remaining);
        let mut done = 0;
        while done < wanted {
            let Some(slice) = self.slices.get(self.next).copied() else { break };
            let bytes = slice.len().min(wanted - done);
            if let Ok(part) = slice.subslice(0, bytes) {
                copy(&part, done);
            }
            done += bytes;
            self.advance(bytes);
        }
        done
    }

    /// Takes the last `bytes` off the end.
    fn split_tail(&mut self, bytes: usize) -> Option<Cursor<'m>> {
        let keep = self.remaining.checked_sub(bytes)?;
        let mut head = Vec::with_capacity(self.left().len());
        let mut tail = Vec::new();
        let mut seen = 0;
        for slice in self.left() {
            let here = keep.saturating_sub(seen).min(slice.len());
            if here > 0 {
                head.push(slice.subslice(0, here).ok()?);
            }
            if here < slice.len() {
                tail.push(slice.offset(here).ok()?);
            }
            seen += slice.len();
        }
        *self = Cursor::new(head);
        Some(Cursor::new(tail))
    }
}

/// The device-readable part of a request.
#[derive(Default)]
pub struct Reader<'m>(Cursor<'m>);

impl<'m> Reader<'m> {
    pub(super) fn new(slices: Vec<GuestSlice<'m>>) -> Self {
        Self(Cursor::new(slices))
    }

    /// Bytes left.
    pub fn remaining(&self) -> usize {
        self.0.remaining
    }

    /// What is left.
    pub fn slices(&self) -> &[GuestSlice<'m>] {
        self.0.left()
    }

    /// Takes the next bytes as read by someone else.
    pub fn skip(&mut self, bytes: usize) {
        self.0.advance(bytes);
    }

    /// Copies bytes out and returns how many: fewer than asked for only at the end.
    pub fn read(&mut self, to: &mut [u8]) -> usize {
        self.0.each(to.len(), |slice, at| {
            if let Some(to) = to.get_mut(at..at.saturating_add(slice.len())) {
                slice.copy_to(to);
            }
        })
    }

    /// Copies a structure out; `None` if too few bytes are left.
    pub fn read_object<T: ByteValued + Default>(&mut self) -> Option<T> {
        let mut object = T::default();
        (self.read(object.as_mut_slice()) == size_of::<T>()).then_some(object)
    }

    /// Drops all behind the first `bytes`.
    pub fn truncate(&mut self, bytes: usize) {
        if let Some(excess) = self.0.remaining.checked_sub(bytes) {
            self.0.split_tail(excess);
        }
    }

    /// Writes what fits into one call to a file at `offset`.
    pub fn write_to_file(&mut self, file: &File, offset: u64) -> io::Result<usize> {
        let bytes = sys::write_at(file, self.0.left(), offset)?;
        self.0.advance(bytes);
        Ok(bytes)
    }

    /// Sends what a socket takes without waiting.
    pub fn send(&mut self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        let bytes = sys::send(socket, self.0.left())?;
        self.0.advance(bytes);
        Ok(bytes)
    }
}

/// The device-writable part of a request.
#[derive(Default)]
pub struct Writer<'m> {
    cursor: Cursor<'m>,
    written: u32,
}

impl<'m> Writer<'m> {
    pub(super) fn new(slices: Vec<GuestSlice<'m>>) -> Self {
        Self { cursor: Cursor::new(slices), written: 0 }
    }

    /// Bytes of space left.
    pub fn remaining(&self) -> usize {
        self.cursor.remaining
    }

    /// Bytes written so far, for the used ring.
    pub fn written(&self) -> u32 {
        self.written
    }

    /// The space that is left.
    pub fn slices(&self) -> &[GuestSlice<'m>] {
        self.cursor.left()
    }

    /// Takes the next bytes as written by someone else.
    pub fn filled(&mut self, bytes: usize) {
        let bytes = bytes.min(self.cursor.remaining);
        self.cursor.advance(bytes);
        self.count(bytes);
    }

    /// Copies bytes in and returns how many: fewer than given only when the space ends.
    pub fn write(&mut self, from: &[u8]) -> usize {
        let bytes = self.cursor.each(from.len(), |slice, at| {
            if let Some(from) = from.get(at..at.saturating_add(slice.len())) {
                slice.copy_from(from);
            }
        });
        self.count(bytes);
        bytes
    }

    /// What is left, for a gate of its own such as that of the network device, which counts by itself.
    pub(super) fn into_slices(self) -> Vec<GuestSlice<'m>> {
        let Cursor { mut slices, next, .. } = self.cursor;
        slices.drain(..next.min(slices.len()));
        slices
    }

    /// Takes the last `bytes` off as a writer of its own: for a status behind the data. `None` if there are fewer.
    pub fn split_tail(&mut self, bytes: usize) -> Option<Writer<'m>> {
        self.cursor.split_tail(bytes).map(|cursor| Writer { cursor, written: 0 })
    }

    /// Adds what was written through a part that [`Writer::split_tail`] took off.
    pub fn count_tail(&mut self, tail: &Writer<'_>) {
        self.written = self.written.saturating_add(tail.written);
    }

    /// Gives the whole pages of the space left back to the host, as far as they can be, and returns how many bytes that were. Nothing
    /// counts as written.
    pub fn discard(&mut self, memory: &GuestMemoryMmap) -> u64 {
        let given = self.cursor.left().iter().map(|slice| discard_slice(memory, slice)).sum();
        self.cursor.advance(self.cursor.remaining);
        given
    }

    /// Reads what one call gets from a file at `offset`.
    pub fn read_from_file(&mut self, file: &File, offset: u64) -> io::Result<usize> {
        let bytes = sys::read_at(file, self.cursor.left(), offset)?;
        self.cursor.advance(bytes);
        self.count(bytes);
        Ok(bytes)
    }

    /// Receives at most `limit` bytes that a socket has, without waiting.
    pub fn receive(&mut self, socket: BorrowedFd<'_>, limit: usize) -> io::Result<usize> {
        let bytes = sys::receive(socket, self.cursor.left(), limit)?;
        self.cursor.advance(bytes);
        self.count(bytes);
        Ok(bytes)
    }

    /// Chains are shorter than 4 GiB, so this never saturates.
    fn count(&mut self, bytes: usize) {
        self.written = self.written.saturating_add(u32::try_from(bytes).unwrap_or(u32::MAX));
    }
}
