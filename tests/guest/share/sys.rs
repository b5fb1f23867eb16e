//! System calls without a safe interface.
#![allow(unsafe_code, reason = "mappings, extended attributes, holes and locks")]

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

fn c_path(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap()
}

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

pub fn set_xattr(path: &Path, name: &str, value: &[u8]) -> io::Result<()> {
    let (path, name) = (c_path(path), CString::new(name).unwrap());
    // SAFETY: strings end with NUL, and the value has the given length.
    let result = unsafe { libc::setxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    check(result.into()).map(drop)
}

pub fn get_xattr(path: &Path, name: &str) -> io::Result<Vec<u8>> {
    let (path, name) = (c_path(path), CString::new(name).unwrap());
    let mut value = vec![0; 65536];
    // SAFETY: as in `set_xattr`; the buffer has the given length.
    let bytes = unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
    value.truncate(check(bytes as i64)?);
    Ok(value)
}

pub fn list_xattr(path: &Path) -> io::Result<String> {
    let path = c_path(path);
    let mut names = vec![0u8; 65536];
    // SAFETY: as in `get_xattr`.
    let bytes = unsafe { libc::listxattr(path.as_ptr(), names.as_mut_ptr().cast(), names.len()) };
    names.truncate(check(bytes as i64)?);
    Ok(String::from_utf8(names).unwrap())
}

pub fn remove_xattr(path: &Path, name: &str) -> io::Result<()> {
    let (path, name) = (c_path(path), CString::new(name).unwrap());
    // SAFETY: as in `set_xattr`.
    check(unsafe { libc::removexattr(path.as_ptr(), name.as_ptr()) }.into()).map(drop)
}

pub fn allocate(file: &File, mode: i32, offset: usize, bytes: usize) -> io::Result<()> {
    // SAFETY: changes a file only.
    check(unsafe { libc::fallocate(file.as_raw_fd(), mode, offset as i64, bytes as i64) }.into()).map(drop)
}

pub fn seek(file: &File, offset: i64, whence: i32) -> io::Result<usize> {
    // SAFETY: changes a position only.
    check(unsafe { libc::lseek(file.as_raw_fd(), offset, whence) })
}

/// `flock` without waiting.
pub fn lock_whole(file: &File, operation: i32) -> io::Result<()> {
    // SAFETY: changes a lock only.
    check(unsafe { libc::flock(file.as_raw_fd(), operation | libc::LOCK_NB) }.into()).map(drop)
}

/// Open file description lock on the first ten bytes, without waiting.
pub fn lock_range(file: &File, kind: i32) -> io::Result<()> {
    // SAFETY: all zeros is a valid description.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = kind as i16;
    lock.l_len = 10;
    // SAFETY: the description lives until the call is over.
    check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) }.into()).map(drop)
}

pub fn rename_with(from: &Path, to: &Path, flags: u32) -> io::Result<()> {
    let (from, to) = (c_path(from), c_path(to));
    // SAFETY: strings end with NUL.
    check(unsafe { libc::renameat2(libc::AT_FDCWD, from.as_ptr(), libc::AT_FDCWD, to.as_ptr(), flags) }.into())
        .map(drop)
}

pub fn make_node(path: &Path, mode: u32, device: u64) -> io::Result<()> {
    // SAFETY: the string ends with NUL.
    check(unsafe { libc::mknod(c_path(path).as_ptr(), mode, device) }.into()).map(drop)
}

/// Free and all blocks of the file system.
pub fn blocks(path: &Path) -> io::Result<(u64, u64)> {
    // SAFETY: all zeros is a valid structure, and the call fills it.
    let (result, space) = unsafe {
        let mut space: libc::statvfs = std::mem::zeroed();
        (libc::statvfs(c_path(path).as_ptr(), &raw mut space), space)
    };
    check(result.into())?;
    Ok((space.f_bfree, space.f_blocks))
}
