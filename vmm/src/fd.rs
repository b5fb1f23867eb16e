//! File descriptors: those that the caller's process passed by number, and how many there may be.
#![allow(unsafe_code, reason = "a number on the command line has to become an owned descriptor somewhere")]

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Lets this process open up to `most` files, as far as it may: with what there was before it has to do otherwise.
pub fn raise_limit(most: u64) {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, soft.max(most.min(hard)), hard);
    }
}

/// Takes an inherited descriptor and makes sure that no child inherits it again. A number that was taken before, or that is a file
/// of this process, is refused: those are close-on-exec, which nothing that was inherited can be.
pub fn take_inherited(number: RawFd) -> io::Result<OwnedFd> {
    if number <= libc::STDERR_FILENO {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: only reads the flags.
    let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
    if flags >= 0 && flags & libc::FD_CLOEXEC != 0 {
        return Err(io::Error::from_raw_os_error(libc::EBUSY));
    }
    // SAFETY: only sets a flag, and tells whether the descriptor is open.
    if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is open, and nothing else in this process owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}
