//! Vectored I/O of whole frames between a descriptor and guest memory.
#![allow(unsafe_code, reason = "a frame goes straight into and out of guest memory")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::virtio::sys::GuestSlice;

/// Most parts of a system call (`IOV_MAX`).
const MAX_PARTS: usize = 1024;
/// Most parts of a frame: two more are for its header and its tail.
pub const MAX_SLICES: usize = MAX_PARTS - 2;

/// The parts of one frame for one system call. Kept to use the allocation again.
#[derive(Default)]
pub struct FrameParts {
    vecs: Vec<libc::iovec>,
}

// SAFETY: the pointers are only used within a call that has made them; between calls the vector is empty.
unsafe impl Send for FrameParts {}

impl FrameParts {
    /// Reads a frame: first into `header`, then into `slices`, then into `tail`. Returns the bytes of all.
    pub fn read(
        &mut self,
        fd: BorrowedFd<'_>,
        header: &mut [u8],
        slices: &[GuestSlice<'_>],
        tail: &mut [u8],
    ) -> io::Result<usize> {
        self.vecs.push(part(header.as_mut_ptr(), header.len()));
        self.add(slices, MAX_SLICES);
        self.vecs.push(part(tail.as_mut_ptr(), tail.len()));
        // SAFETY: each part is a mutable slice of the caller, or lies in a mapping of guest memory that the slices keep alive;
        // nobody has Rust references into the latter, and the guest may change it at any time anyway.
        let result = unsafe { libc::readv(fd.as_raw_fd(), self.vecs.as_ptr(), self.count()) };
        self.finish(result)
    }

    /// Writes a frame in one call: `header`, then `slices`.
    pub fn write(&mut self, fd: BorrowedFd<'_>, header: &[u8], slices: &[GuestSlice<'_>]) -> io::Result<usize> {
        self.vecs.push(part(header.as_ptr().cast_mut(), header.len()));
        self.add(slices, MAX_SLICES);
        // SAFETY: as in `read`; the kernel only reads the parts.
        let result = unsafe { libc::writev(fd.as_raw_fd(), self.vecs.as_ptr(), self.count()) };
        self.finish(result)
    }

    /// Sends to a stream socket what it takes without waiting, and without SIGPIPE.
    pub fn send(&mut self, socket: BorrowedFd<'_>, header: &[u8], slices: &[GuestSlice<'_>]) -> io::Result<usize> {
        self.vecs.push(part(header.as_ptr().cast_mut(), header.len()));
        self.add(slices, MAX_SLICES);
        // SAFETY: all zeros is a valid message header: no name, no buffers, no control data.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = self.vecs.as_mut_ptr();
        message.msg_iovlen = self.vecs.len();
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        // SAFETY: as in `write`; the header points to `vecs`, which lives until the call is over.
        let result = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, flags) };
        self.finish(result)
    }

    fn add(&mut self, slices: &[GuestSlice<'_>], most: usize) {
        self.vecs.extend(slices.iter().take(most).map(|slice| part(slice.ptr_guard_mut().as_ptr(), slice.len())));
    }

    fn count(&self) -> libc::c_int {
        libc::c_int::try_from(self.vecs.len()).unwrap_or(libc::c_int::MAX)
    }

    fn finish(&mut self, result: isize) -> io::Result<usize> {
        let result = usize::try_from(result).map_err(|_| io::Error::last_os_error());
        self.vecs.clear();
        result
    }
}

fn part(start: *mut u8, bytes: usize) -> libc::iovec {
    libc::iovec { iov_base: start.cast(), iov_len: bytes }
}
