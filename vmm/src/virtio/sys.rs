//! System calls on guest memory and sockets that no safe interface covers.
#![allow(unsafe_code, reason = "vectored I/O straight into guest memory, and a few calls that std lacks")]
#![allow(clippy::cast_possible_truncation, reason = "small constants and sizes in the types of the C library")]

use std::fs::File;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use vm_memory::VolatileSlice;

/// Guest memory as a device sees it.
pub type GuestSlice<'a> = VolatileSlice<'a, ()>;

/// Parts of one system call. More parts than this take several calls.
const MAX_PARTS: usize = 64;

/// Buffers for one vectored call, with the guards that keep the memory mapped.
struct IoVecs {
    vecs: [libc::iovec; MAX_PARTS],
    len: usize,
}

impl IoVecs {
    /// At most [`MAX_PARTS`] parts and `limit` bytes.
    fn new(slices: &[GuestSlice<'_>], limit: usize) -> Self {
        let empty = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        let mut this = Self { vecs: [empty; MAX_PARTS], len: 0 };
        let mut left = limit;
        for (vec, slice) in this.vecs.iter_mut().zip(slices) {
            let bytes = slice.len().min(left);
            *vec = libc::iovec { iov_base: slice.ptr_guard_mut().as_ptr().cast(), iov_len: bytes };
            this.len += 1;
            left -= bytes;
            if left == 0 {
                break;
            }
        }
        this
    }

    fn count(&self) -> libc::c_int {
        // At most MAX_PARTS.
        self.len as libc::c_int
    }

    fn message(&mut self) -> libc::msghdr {
        // SAFETY: all zeros is a valid message header: no name, no buffers, no control data.
        let mut message: libc::msghdr = unsafe { mem::zeroed() };
        message.msg_iov = self.vecs.as_mut_ptr();
        message.msg_iovlen = self.len;
        message
    }
}

fn check(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// Reads from `offset` of a file into guest memory. Returns the number of bytes, which may be fewer than the slices hold.
pub fn read_at(file: &File, slices: &[GuestSlice<'_>], offset: u64) -> io::Result<usize> {
    let vecs = IoVecs::new(slices, usize::MAX);
    let offset = file_offset(offset)?;
    // SAFETY: each part lies in a mapping of guest memory that the slices keep alive. Nobody has Rust references into it, and
    // the guest may change it at any time anyway.
    check(unsafe { libc::preadv(file.as_raw_fd(), vecs.vecs.as_ptr(), vecs.count(), offset) })
}

/// Writes guest memory to `offset` of a file. Returns the number of bytes, which may be fewer than the slices hold.
pub fn write_at(file: &File, slices: &[GuestSlice<'_>], offset: u64) -> io::Result<usize> {
    let vecs = IoVecs::new(slices, usize::MAX);
    let offset = file_offset(offset)?;
    // SAFETY: as in `read_at`.
    check(unsafe { libc::pwritev(file.as_raw_fd(), vecs.vecs.as_ptr(), vecs.count(), offset) })
}

/// Receives at most `limit` bytes from a socket into guest memory, without waiting.
pub fn receive(socket: BorrowedFd<'_>, slices: &[GuestSlice<'_>], limit: usize) -> io::Result<usize> {
    let mut vecs = IoVecs::new(slices, limit);
    let mut message = vecs.message();
    // SAFETY: as in `read_at`; the header points to `vecs`, which lives until the call is over.
    check(unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) })
}

/// Sends guest memory to a socket, without waiting and without SIGPIPE.
pub fn send(socket: BorrowedFd<'_>, slices: &[GuestSlice<'_>]) -> io::Result<usize> {
    let mut vecs = IoVecs::new(slices, usize::MAX);
    let message = vecs.message();
    // SAFETY: as in `receive`.
    check(unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) })
}

/// Sends bytes to a socket, without waiting and without SIGPIPE.
pub fn send_bytes(socket: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: pointer and length are those of a slice.
    check(unsafe { libc::send(socket.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), flags) })
}

/// Fills `buffer` with random bytes.
pub fn random(buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: pointer and length are those of a slice.
    check(unsafe { libc::getrandom(buffer.as_mut_ptr().cast(), buffer.len(), 0) })
}

/// Connects to a Unix socket without waiting for a place in the listener's queue: a full queue is an error
/// ([`io::ErrorKind::WouldBlock`]).
pub fn connect_unix(path: &Path) -> io::Result<UnixStream> {
    let bytes = path.as_os_str().as_bytes();
    // SAFETY: all zeros is a valid address.
    let mut address: libc::sockaddr_un = unsafe { mem::zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    if bytes.len() >= address.sun_path.len() || bytes.contains(&0) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in address.sun_path.iter_mut().zip(bytes) {
        *to = from.cast_signed();
    }
    let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: makes a new file descriptor.
    let fd = unsafe { libc::socket(libc::AF_UNIX, kind, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `fd` is new and nobody else owns it.
    let socket = UnixStream::from(unsafe { OwnedFd::from_raw_fd(fd) });
    // SAFETY: the address is an initialised `sockaddr_un` of the given size.
    let result =
        unsafe { libc::connect(fd, (&raw const address).cast(), size_of::<libc::sockaddr_un>() as libc::socklen_t) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(socket)
}

/// Takes an open file description lock on a whole file, without waiting. [`io::ErrorKind::WouldBlock`] says that someone
/// else has a conflicting one.
pub fn lock_file(file: &File, exclusive: bool) -> io::Result<()> {
    // SAFETY: all zeros is a valid lock description: from the start of the file to its end.
    let mut lock: libc::flock = unsafe { mem::zeroed() };
    lock.l_type = if exclusive { libc::F_WRLCK } else { libc::F_RDLCK } as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    // SAFETY: `lock` lives until the call is over.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// All of these lie at multiples of `alignment` and are as long: what direct I/O asks for.
pub fn is_aligned(slices: &[GuestSlice<'_>], alignment: u32) -> bool {
    let alignment = alignment as usize;
    alignment <= 1
        || slices.iter().all(|slice| {
            (slice.ptr_guard().as_ptr() as usize).is_multiple_of(alignment) && slice.len().is_multiple_of(alignment)
        })
}

/// Fills a buffer from `offset` of a file.
pub fn read_exact_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, buffer, offset)
}

/// Writes a buffer to `offset` of a file.
pub fn write_all_at(file: &File, buffer: &[u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, buffer, offset)
}

/// Size of a file or block device.
pub fn file_size(file: &File) -> io::Result<u64> {
    // The position is nobody else's: all I/O gives its own.
    io::Seek::seek(&mut &*file, io::SeekFrom::End(0))
}

/// A way to clear a range of a file without writing it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Punch {
    /// Its space is given back.
    Hole,
    /// Its space stays allocated.
    Zeros,
}

/// Clears a range of a file or block device. The file keeps its size.
pub fn punch(file: &File, how: Punch, offset: u64, bytes: u64) -> io::Result<()> {
    let mode = libc::FALLOC_FL_KEEP_SIZE
        | match how {
            Punch::Hole => libc::FALLOC_FL_PUNCH_HOLE,
            Punch::Zeros => libc::FALLOC_FL_ZERO_RANGE,
        };
    let (offset, bytes) = (file_offset(offset)?, file_offset(bytes)?);
    loop {
        // SAFETY: plain numbers and an open file.
        if unsafe { libc::fallocate(file.as_raw_fd(), mode, offset, bytes) } == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

fn file_offset(offset: u64) -> io::Result<libc::off_t> {
    libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput.into())
}
