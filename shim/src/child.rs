//! Descriptors that a child inherits under numbers that a protocol prescribes.
#![allow(unsafe_code, reason = "`pre_exec` is the only way to let one child, and no other, inherit a descriptor")]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use nix::fcntl::{FcntlArg, fcntl};
use tokio::process::Command;

/// First number behind the standard streams.
const FIRST: RawFd = 3;
/// Beyond every number that [`inherit`] prescribes.
const ASIDE: RawFd = 64;

/// Lets the child that `command` starts inherit `fds` as 3, 4, and so on. This process's copies are closed when `command` is
/// dropped.
pub fn inherit(command: &mut Command, fds: Vec<OwnedFd>) -> io::Result<()> {
    // Out of the way first: one's number may be the other's place.
    let aside = fds
        .iter()
        .map(|fd| {
            let number = fcntl(fd, FcntlArg::F_DUPFD_CLOEXEC(ASIDE))?;
            // SAFETY: the kernel has just made this descriptor, and nothing else knows of it.
            Ok(unsafe { OwnedFd::from_raw_fd(number) })
        })
        .collect::<io::Result<Vec<_>>>()?;
    drop(fds);
    let place = move || {
        for (fd, place) in aside.iter().zip(FIRST..ASIDE) {
            // SAFETY: both are numbers; the child has nothing of its own in that place yet.
            if unsafe { libc::dup2(fd.as_raw_fd(), place) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: between fork and exec the closure only calls dup2, which is async-signal-safe, and allocates nothing.
    unsafe { command.pre_exec(place) };
    Ok(())
}
