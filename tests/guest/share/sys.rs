//! System calls without a safe interface.
#![allow(unsafe_code, reason = "mappings and holes")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

fn check(result: i64) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// A shared mapping of the start of a file.
pub struct Mapping {
    start: *mut u8,
    bytes: usize,
}

impl Mapping {
    pub fn new(file: &File, bytes: usize) -> io::Result<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let start =
            unsafe { libc::mmap(std::ptr::null_mut(), bytes, protection, libc::MAP_SHARED, file.as_raw_fd(), 0) };
        if start == libc::MAP_FAILED {
            Err(io::Error::last_os_error())
        } else {
            Ok(Self { start: start.cast(), bytes })
        }
    }

    pub fn write(&mut self, at: usize, data: &[u8]) {
        assert!(at + data.len() <= self.bytes);
        // SAFETY: inside the mapping, and nobody has a reference into it.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), self.start.add(at), data.len()) };
    }

    pub fn read(&self, at: usize, bytes: usize) -> Vec<u8> {
        assert!(at + bytes <= self.bytes);
        let mut data = vec![0; bytes];
        // SAFETY: as in `write`.
        unsafe { std::ptr::copy_nonoverlapping(self.start.add(at), data.as_mut_ptr(), bytes) };
        data
    }

    pub fn sync(&self) -> io::Result<()> {
        // SAFETY: the mapping is live.
        check(unsafe { libc::msync(self.start.cast(), self.bytes, libc::MS_SYNC) }.into()).map(drop)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own.
        unsafe { libc::munmap(self.start.cast(), self.bytes) };
    }
}

pub fn allocate(file: &File, mode: i32, offset: usize, bytes: usize) -> io::Result<()> {
    // SAFETY: changes a file only.
    check(unsafe { libc::fallocate(file.as_raw_fd(), mode, offset as i64, bytes as i64) }.into()).map(drop)
}
