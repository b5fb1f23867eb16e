//! The kernel's announcements that a device came, went, or got its driver.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket};

use crate::failure::{Context, Failure};

/// The kernel's own announcements; other groups are for programs.
const KERNEL_GROUP: u32 = 1;
/// An announcement has at most so many bytes; its content doesn't matter here.
const MAX_BYTES: usize = 4096;
/// Announcements can be lost when many come at once: look again after this time anyway.
const PATIENCE: Duration = Duration::from_millis(500);

/// Wakes whoever waits for a state that the kernel announces.
pub struct Uevents(OwnedFd);

impl Uevents {
    /// Listens from now on.
    pub fn listen() -> Result<Self, Failure> {
        const ACTION: &str = "listen to the kernel's announcements";
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let protocol = SockProtocol::NetlinkKObjectUEvent;
        let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol).context(ACTION)?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, KERNEL_GROUP)).context(ACTION)?;
        Ok(Self(socket))
    }

    /// Looks with `look` after each announcement until it finds something; `None` when `limit` has passed.
    pub fn wait<T>(
        &self,
        limit: Duration,
        mut look: impl FnMut() -> Result<Option<T>, Failure>,
    ) -> Result<Option<T>, Failure> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(found) = look()? {
                return Ok(Some(found));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            let pause = PollTimeout::try_from(left.min(PATIENCE)).unwrap_or(PollTimeout::ZERO);
            match poll(&mut [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)], pause) {
                Ok(_) | Err(Errno::EINTR) => self.drain(),
                Err(error) => return Err(error).context("wait for the kernel's announcement"),
            }
        }
    }

    /// One look is enough for all announcements so far.
    fn drain(&self) {
        let mut buffer = [0; MAX_BYTES];
        for _ in 0..1000 {
            // ENOBUFS says that some were lost; there may be others behind it.
            match recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Ok(_) | Err(Errno::ENOBUFS | Errno::EINTR) => {}
                Err(_) => return,
            }
        }
    }
}
