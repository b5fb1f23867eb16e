//! Changes of a network namespace, as the kernel tells them (rtnetlink(7)): that there is one, never what.
#![allow(unsafe_code, reason = "registering a descriptor with the runtime has no safe form")]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use nix::sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::timeout;

/// Interfaces, addresses and routes.
const GROUPS: i32 = libc::RTMGRP_LINK
    | libc::RTMGRP_IPV4_IFADDR
    | libc::RTMGRP_IPV6_IFADDR
    | libc::RTMGRP_IPV4_ROUTE
    | libc::RTMGRP_IPV6_ROUTE;
/// An interface comes in many steps: when nothing has changed for so long, somebody is done.
const SETTLED: Duration = Duration::from_millis(100);
/// Somebody who never is done is not waited for.
const PATIENCE: Duration = Duration::from_secs(2);

/// Tells when a namespace has changed. What is told before somebody asks waits in the kernel, with a bound.
pub struct Changes(AsyncFd<OwnedFd>);

impl Changes {
    /// `socket` was made by [`listen`] in the namespace.
    pub fn new(socket: OwnedFd) -> io::Result<Self> {
        // SAFETY: the AsyncFd owns the descriptor, which nothing replaces or closes while it is registered.
        Ok(Self(unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }?))
    }

    /// Waits for a change, and until no other has followed for a while.
    pub async fn settled(&self) -> io::Result<()> {
        self.one().await?;
        let quiet = async {
            while let Ok(more) = timeout(SETTLED, self.one()).await {
                more?;
            }
            Ok(())
        };
        timeout(PATIENCE, quiet).await.unwrap_or(Ok(()))
    }

    async fn one(&self) -> io::Result<()> {
        // What doesn't fit is dropped: a message is looked at no further.
        let mut message = [0; 64];
        let receive = |socket: &OwnedFd| match recv(socket.as_raw_fd(), &mut message, MsgFlags::empty()) {
            // The kernel had more to tell than it keeps.
            Ok(_) | Err(nix::Error::ENOBUFS) => Ok(()),
            Err(error) => Err(error.into()),
        };
        self.0.async_io(Interest::READABLE, receive).await
    }
}

/// A socket that hears of the changes of the calling thread's namespace, wherever it is used.
pub fn listen() -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, GROUPS.cast_unsigned()))?;
    Ok(socket)
}
