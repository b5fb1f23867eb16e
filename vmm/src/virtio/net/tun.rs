//! The ioctls of the kernel's tun driver (`linux/if_tun.h`) and of network interfaces (netdevice(7)).
#![allow(unsafe_code, reason = "ioctls with structures of the C library")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

/// Longest interface name (`IFNAMSIZ` without its NUL).
pub const MAX_NAME_BYTES: usize = libc::IFNAMSIZ - 1;

/// Several queues.
pub const MULTI_QUEUE: i16 = flag(libc::IFF_MULTI_QUEUE);
/// Each frame has a header about checksums and segments.
pub const VNET_HDR: i16 = flag(libc::IFF_VNET_HDR);
/// Ethernet frames.
pub const TAP: i16 = flag(libc::IFF_TAP);
/// No protocol information in front of a frame.
pub const NO_PI: i16 = flag(libc::IFF_NO_PI);

/// Offloads for `TUNSETOFFLOAD`; the C library lacks the last two, which came with Linux 6.2.
pub mod offload {
    /// Open checksums.
    pub const CSUM: libc::c_ulong = libc::TUN_F_CSUM as libc::c_ulong;
    /// Large TCP segments over IPv4.
    pub const TSO4: libc::c_ulong = libc::TUN_F_TSO4 as libc::c_ulong;
    /// Large TCP segments over IPv6.
    pub const TSO6: libc::c_ulong = libc::TUN_F_TSO6 as libc::c_ulong;
    /// Large TCP segments with congestion marks.
    pub const TSO_ECN: libc::c_ulong = libc::TUN_F_TSO_ECN as libc::c_ulong;
    /// Large UDP segments, over IPv4 and IPv6.
    pub const USO: libc::c_ulong = 0x20 | 0x40;
}

/// The flags fit: `ifr_flags` is a short, and the largest is 0x4000.
#[allow(clippy::cast_possible_truncation, reason = "the largest is 0x4000")]
const fn flag(value: libc::c_int) -> i16 {
    value as i16
}

fn request(name: &str) -> io::Result<libc::ifreq> {
    if name.is_empty() || name.len() > MAX_NAME_BYTES || name.bytes().any(|byte| byte == 0) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: all zeros is a valid request.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    Ok(request)
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Makes the descriptor a queue of the interface `name`, which is made if it doesn't exist.
pub fn set_interface(fd: &impl AsFd, name: &str, flags: i16) -> io::Result<()> {
    let mut request = request(name)?;
    request.ifr_ifru.ifru_flags = flags;
    // SAFETY: the request lives until the call is over.
    check(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::TUNSETIFF, &raw mut request) })
}

/// Flags of the interface that a descriptor belongs to. An error if it is not of the tun driver: then it was not touched. Takes a
/// number, because it is asked before anyone owns the descriptor.
pub fn flags_of(fd: RawFd) -> io::Result<i16> {
    // SAFETY: all zeros is a valid request.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // SAFETY: as in `set_interface`. Other drivers refuse a number they don't know.
    check(unsafe { libc::ioctl(fd, libc::TUNGETIFF, &raw mut request) })?;
    // SAFETY: the kernel has filled in the flags.
    Ok(unsafe { request.ifr_ifru.ifru_flags })
}

/// Sets the size of the header in front of each frame.
pub fn set_header_bytes(fd: &impl AsFd, bytes: libc::c_int) -> io::Result<()> {
    // SAFETY: the kernel reads an int.
    check(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const bytes) })
}

/// Sets which frames the kernel may leave unfinished.
pub fn set_offload(fd: &impl AsFd, offloads: libc::c_ulong) -> io::Result<()> {
    // SAFETY: no pointer is passed.
    check(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::TUNSETOFFLOAD, offloads) })
}

/// Takes a queue out of its interface, or puts it back.
pub fn set_attached(fd: &impl AsFd, attached: bool) -> io::Result<()> {
    // SAFETY: all zeros is a valid request.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let flags = if attached { libc::IFF_ATTACH_QUEUE } else { libc::IFF_DETACH_QUEUE };
    request.ifr_ifru.ifru_flags = flag(flags);
    // SAFETY: as in `set_interface`.
    check(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::TUNSETQUEUE, &raw mut request) })
}

/// Tells the host's side that the cable is in, or out.
pub fn set_carrier(fd: &impl AsFd, up: bool) -> io::Result<()> {
    let up = libc::c_int::from(up);
    // SAFETY: the kernel reads an int.
    check(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::TUNSETCARRIER, &raw const up) })
}

/// Largest packet of an interface of this network namespace.
pub fn mtu(name: &str) -> io::Result<u16> {
    let mut request = request(name)?;
    let socket = any_socket()?;
    // SAFETY: as in `set_interface`.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFMTU, &raw mut request) })?;
    // SAFETY: the kernel has filled in the MTU.
    let mtu = unsafe { request.ifr_ifru.ifru_mtu };
    Ok(u16::try_from(mtu).unwrap_or(u16::MAX))
}

/// Sets it.
pub fn set_mtu(name: &str, mtu: u16) -> io::Result<()> {
    let mut request = request(name)?;
    request.ifr_ifru.ifru_mtu = libc::c_int::from(mtu);
    let socket = any_socket()?;
    // SAFETY: as in `set_interface`.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFMTU, &raw mut request) })
}

/// Whether there is an interface of this name, of any kind.
pub fn exists(name: &str) -> bool {
    mtu(name).is_ok()
}

fn any_socket() -> io::Result<std::os::fd::OwnedFd> {
    Ok(socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?)
}
