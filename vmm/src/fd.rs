//! File descriptors that the caller's process passed by number.
#![allow(unsafe_code, reason = "a number on the command line has to become an owned descriptor somewhere")]

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

/// Takes an inherited descriptor and makes sure that no child inherits it again. Call it once for a number, before the process opens
/// files of its own.
pub fn take_inherited(number: RawFd) -> io::Result<OwnedFd> {
    if number <= libc::STDERR_FILENO {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: only sets a flag, and tells whether the descriptor is open.
    if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is open, and by the contract nothing else in this process knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}
