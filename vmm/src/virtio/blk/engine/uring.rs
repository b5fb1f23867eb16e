//! Requests in flight through io_uring.
//!
//! The kernel works on the request's guest memory until the completion says otherwise. So each request stays in its place in
//! `slots`, with the vector that describes its buffers, until then; the engine waits for all of them before it goes.
#![allow(unsafe_code, reason = "the kernel reads and writes guest memory while the request is in flight")]
#![allow(clippy::cast_possible_truncation, reason = "slot numbers and vector lengths are small")]

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;

use io_uring::{IoUring, Probe, opcode, types};

use super::{Engine, Finished, Io, SyncEngine};
use crate::virtio::blk::backend::Backend;
use crate::virtio::blk::held::Held;
use crate::virtio::sys::{self, GuestSlice};

/// Most requests in flight in each queue.
const DEPTH: u32 = 128;
/// Most parts of one operation. A chain has fewer, unless it is at the edges of many memory regions; its rest is done plainly.
const MAX_PARTS: usize = 512;
/// Waiting gives up on a ring that fails this often: no completion can be had from it.
const MAX_FAILURES: u32 = 100;

struct Slot {
    held: Held,
    io: Io,
    /// Bytes that are still to be moved.
    left: usize,
    vecs: Box<[libc::iovec]>,
}

// SAFETY: the pointers in `vecs` point into guest memory that `held` keeps; they have no ties to a thread.
unsafe impl Send for Slot {}

/// An engine over one ring.
pub struct UringEngine {
    ring: IoUring,
    backend: Arc<dyn Backend>,
    slots: Vec<Option<Slot>>,
    free: Vec<usize>,
    /// Over, but not fetched yet.
    done: Vec<Finished>,
    /// Operations that the kernel has, or gets with the next `submit`.
    in_flight: usize,
    /// For what the ring can't do.
    plain: SyncEngine,
}

impl UringEngine {
    /// Makes a ring; an error if the host has no io_uring, forbids it, or the image isn't a plain file to it.
    pub fn new(backend: Arc<dyn Backend>) -> io::Result<Self> {
        if backend.file().is_none() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let ring = IoUring::builder().dontfork().build(DEPTH)?;
        let mut probe = Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        let needed = [opcode::Readv::CODE, opcode::Writev::CODE, opcode::Fsync::CODE];
        // Without the feature NODROP, completions can get lost.
        if !ring.params().is_feature_nodrop() || !needed.iter().all(|code| probe.is_supported(*code)) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let places = DEPTH as usize;
        Ok(Self {
            ring,
            plain: SyncEngine::new(Arc::clone(&backend)),
            backend,
            slots: (0..places).map(|_| None).collect(),
            free: (0..places).rev().collect(),
            done: Vec::new(),
            in_flight: 0,
        })
    }

    /// Puts the operation for a slot into the submission queue.
    fn push(&mut self, at: usize) -> io::Result<()> {
        let file = self.backend.file().map(|file| types::Fd(file.as_raw_fd()));
        let (Some(file), Some(Some(slot))) = (file, self.slots.get_mut(at)) else {
            return Err(io::ErrorKind::NotFound.into());
        };
        slot.vecs = slot.held.with(|parts| match slot.io {
            Io::Read { .. } => io_vecs(parts.writer.slices()),
            Io::Write { .. } => io_vecs(parts.reader.slices()),
            Io::Flush => Box::default(),
        });
        let (vecs, count) = (slot.vecs.as_ptr(), slot.vecs.len() as u32);
        let entry = match slot.io {
            Io::Read { offset } => opcode::Readv::new(file, vecs, count).offset(offset).build(),
            Io::Write { offset, durable } => {
                let flags = if durable { libc::RWF_DSYNC } else { 0 };
                opcode::Writev::new(file, vecs, count).offset(offset).rw_flags(flags).build()
            }
            Io::Flush => opcode::Fsync::new(file).flags(types::FsyncFlags::DATASYNC).build(),
        };
        // SAFETY: the buffers and the vector stay where they are until the completion arrives: the slot is emptied only then, and
        // dropping the engine waits for it or leaks them. The descriptor belongs to `backend`, which outlives the ring's requests.
        unsafe { self.ring.submission().push(&entry.user_data(at as u64)) }.map_err(io::Error::other)?;
        self.in_flight += 1;
        Ok(())
    }

    fn take(&mut self, at: usize, result: io::Result<()>) -> Option<Finished> {
        let slot = self.slots.get_mut(at)?.take()?;
        self.free.push(at);
        Some(Finished { held: slot.held, result })
    }

    /// Handles the result of an operation.
    fn complete(&mut self, at: usize, result: i32) -> Option<Finished> {
        self.in_flight = self.in_flight.saturating_sub(1);
        let slot = self.slots.get_mut(at)?.as_mut()?;
        let Ok(bytes) = usize::try_from(result) else {
            return match -result {
                libc::EAGAIN | libc::EINTR => self.finish_plainly(at),
                error => self.take(at, Err(io::Error::from_raw_os_error(error))),
            };
        };
        let moved = bytes.min(slot.left) as u64;
        match &mut slot.io {
            Io::Flush => return self.take(at, Ok(())),
            Io::Read { offset } => {
                slot.held.with(|parts| parts.writer.filled(bytes));
                *offset = offset.saturating_add(moved);
            }
            Io::Write { offset, .. } => {
                slot.held.with(|parts| parts.reader.skip(bytes));
                *offset = offset.saturating_add(moved);
            }
        }
        slot.left = slot.left.saturating_sub(bytes);
        match (slot.left, bytes) {
            (0, _) => self.take(at, Ok(())),
            (_, 0) => self.take(at, Err(io::ErrorKind::UnexpectedEof.into())),
            _ => self.finish_plainly(at),
        }
    }

    /// Does the rest of a request with system calls: the kernel did a part of it, which is rare.
    fn finish_plainly(&mut self, at: usize) -> Option<Finished> {
        let slot = self.slots.get_mut(at)?.take()?;
        self.free.push(at);
        self.plain.start(slot.held, slot.io)
    }

    /// The next request that the ring says is over.
    fn next_completion(&mut self) -> Option<Finished> {
        loop {
            let entry = self.ring.completion().next()?;
            let at = usize::try_from(entry.user_data()).unwrap_or(usize::MAX);
            if let Some(finished) = self.complete(at, entry.result()) {
                return Some(finished);
            }
        }
    }
}

impl Engine for UringEngine {
    fn start(&mut self, mut held: Held, io: Io) -> Option<Finished> {
        let align = self.backend.alignment();
        let (left, aligned) = held.with(|parts| {
            let slices = match io {
                Io::Read { .. } => parts.writer.slices(),
                Io::Write { .. } => parts.reader.slices(),
                Io::Flush => &[],
            };
            (slices.iter().map(GuestSlice::len).sum(), sys::is_aligned(slices, align))
        });
        // What direct I/O refuses goes through a buffer of the backend.
        if !aligned || (left == 0 && !matches!(io, Io::Flush)) {
            return self.plain.start(held, io);
        }
        let Some(at) = self.free.pop() else {
            return Some(Finished { held, result: Err(io::ErrorKind::WouldBlock.into()) });
        };
        if let Some(place) = self.slots.get_mut(at) {
            *place = Some(Slot { held, io, left, vecs: Box::default() });
        }
        match self.push(at) {
            Ok(()) => None,
            Err(error) => self.take(at, Err(error)),
        }
    }

    fn has_room(&self) -> bool {
        !self.free.is_empty()
    }

    fn submit(&mut self) {
        while !self.ring.submission().is_empty() {
            match self.ring.submit() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // What the kernel can't take now stays in the queue; it goes with the next completion, or when the service tries again.
                Err(_) => return,
                Ok(_) => {}
            }
        }
    }

    fn is_refused(&mut self) -> bool {
        let waiting = self.ring.submission().len();
        waiting > 0 && waiting == self.in_flight
    }

    fn reap(&mut self) -> Option<Finished> {
        self.done.pop().or_else(|| self.next_completion())
    }

    fn settle(&mut self) {
        let mut failures = 0;
        while self.in_flight > 0 && failures < MAX_FAILURES {
            if self.ring.submit_and_wait(1).is_err() {
                failures += 1;
            }
            while let Some(finished) = self.next_completion() {
                self.done.push(finished);
            }
        }
    }

    fn completions(&self) -> Option<BorrowedFd<'_>> {
        // SAFETY: the ring owns the descriptor, and the borrow ends before the ring does.
        Some(unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) })
    }
}

impl Drop for UringEngine {
    fn drop(&mut self) {
        self.settle();
        // Should the ring have failed, the kernel may still use the memory: it is never freed then.
        for slot in self.slots.drain(..) {
            mem::forget(slot);
        }
    }
}

fn io_vecs(slices: &[GuestSlice<'_>]) -> Box<[libc::iovec]> {
    let part =
        |slice: &GuestSlice<'_>| libc::iovec { iov_base: slice.ptr_guard_mut().as_ptr().cast(), iov_len: slice.len() };
    slices.iter().take(MAX_PARTS).map(part).collect()
}
