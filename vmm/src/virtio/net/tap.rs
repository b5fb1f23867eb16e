//! Backend: a tap interface of the host.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

use thiserror::Error;

use super::spec::{HEADER_BYTES, feature};
use super::tun::{self, offload};
use crate::fd;

const DEVICE: &str = "/dev/net/tun";
const KIND: i16 = tun::TAP | tun::NO_PI | tun::VNET_HDR;
const BASIC_OFFLOADS: libc::c_ulong = offload::CSUM | offload::TSO4 | offload::TSO6 | offload::TSO_ECN;

/// A tap can't be used.
#[derive(Debug, Error)]
pub enum TapError {
    /// The tun driver is missing.
    #[error("There is no {DEVICE}: load the kernel module tun")]
    NoDriver(#[source] io::Error),
    /// The tun driver can't be opened.
    #[error("Can't open {DEVICE}")]
    Open(#[source] io::Error),
    /// There is no such tap, or it belongs to another user.
    #[error(
        "No permission to make or use tap {0}: it takes CAP_NET_ADMIN, or a tap made for this user (ip tuntap add {0} mode tap user NAME)"
    )]
    Permission(String, #[source] io::Error),
    /// All queues are taken.
    #[error("Tap {0} is in use by another process")]
    Busy(String, #[source] io::Error),
    /// It is a tun, or another interface.
    #[error("Interface {0} exists and is not a tap")]
    Kind(String, #[source] io::Error),
    /// The inherited descriptor is unusable.
    #[error("Descriptor {0} is not an inherited tap with a header (IFF_TAP, IFF_NO_PI, IFF_VNET_HDR)")]
    Descriptor(RawFd, #[source] io::Error),
    /// The kernel refuses a step.
    #[error("Can't set {what} of tap {name}")]
    Setting {
        /// Tap.
        name: String,
        /// What was to be set.
        what: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// A tap with one descriptor a queue. An interface that was made here disappears with it.
pub struct Tap {
    name: String,
    queues: Vec<File>,
    /// The kernel leaves large UDP segments whole.
    segments_udp: bool,
    mtu: Option<u16>,
}

impl Tap {
    /// A tap that is none: datagrams stand for its frames.
    #[cfg(test)]
    pub fn of_datagrams(socket: std::os::unix::net::UnixDatagram) -> Self {
        let queues = vec![std::os::fd::OwnedFd::from(socket).into()];
        Self { name: "test".to_owned(), queues, segments_udp: false, mtu: None }
    }

    /// Opens the interface `name` with up to `pairs` queues, or makes it. An existing one with a single queue is used as it is.
    pub fn open(name: &str, pairs: u16, mtu: Option<u16>) -> Result<Self, TapError> {
        let existed = tun::exists(name);
        let wishes = [(pairs, if pairs > 1 { tun::MULTI_QUEUE } else { 0 }), (1, 0), (1, tun::MULTI_QUEUE)];
        let mut result = Err(io::ErrorKind::InvalidInput.into());
        for (count, flags) in wishes {
            result = open_queues(name, count, KIND | flags)?;
            // What exists has one queue, or several: only trying tells.
            if !matches!(&result, Err(error) if existed && error.raw_os_error() == Some(libc::EINVAL)) {
                break;
            }
        }
        let queues = result.map_err(|error| explain(name, error))?;
        let mut this = Self { name: name.to_owned(), queues, segments_udp: false, mtu };
        this.set_up()?;
        match mtu {
            Some(mtu) if !existed => tun::set_mtu(name, mtu).map_err(|error| this.setting("the MTU", error))?,
            Some(_) => {}
            None => this.mtu = tun::mtu(name).ok(),
        }
        Ok(this)
    }

    /// Takes an inherited descriptor of a tap, which may be in another network namespace. It has one queue.
    pub fn inherited(number: RawFd, mtu: Option<u16>) -> Result<Self, TapError> {
        let fail = |error| TapError::Descriptor(number, error);
        let flags = tun::flags_of(number).map_err(fail)?;
        if flags & KIND != KIND {
            return Err(fail(io::ErrorKind::InvalidInput.into()));
        }
        let file = File::from(fd::take_inherited(number).map_err(fail)?);
        set_nonblocking(&file).map_err(fail)?;
        let name = format!("of descriptor {number}");
        let mut this = Self { name, queues: vec![file], segments_udp: false, mtu };
        this.set_up()?;
        Ok(this)
    }

    /// Number of queues.
    pub fn pairs(&self) -> u16 {
        u16::try_from(self.queues.len()).unwrap_or(u16::MAX)
    }

    /// Largest packet, if it is known.
    pub fn mtu(&self) -> Option<u16> {
        self.mtu
    }

    /// Features of the network device that the kernel makes possible.
    pub fn features(&self) -> u64 {
        let udp = feature::GUEST_USO4 | feature::GUEST_USO6 | feature::HOST_USO;
        let all = feature::GUEST_OFFLOADS | feature::HOST_OFFLOADS;
        if self.segments_udp { all } else { all & !udp }
    }

    /// Tells the kernel what a driver that accepted `features` can cope with.
    pub fn set_guest_offloads(&self, features: u64) -> io::Result<()> {
        let mut wanted = 0;
        // The kernel refuses large segments without open checksums.
        if features & feature::GUEST_CSUM != 0 {
            wanted |= offload::CSUM;
            for (bit, flag) in [
                (feature::GUEST_TSO4, offload::TSO4),
                (feature::GUEST_TSO6, offload::TSO6),
                (feature::GUEST_ECN, offload::TSO_ECN),
            ] {
                wanted |= if features & bit != 0 { flag } else { 0 };
            }
            let udp = feature::GUEST_USO4 | feature::GUEST_USO6;
            wanted |= if features & udp == udp && self.segments_udp { offload::USO } else { 0 };
        }
        self.queues.first().map_or(Ok(()), |queue| tun::set_offload(queue, wanted))
    }

    /// Takes a queue into use or out of it: the kernel gives frames only to those in use.
    pub fn set_attached(&self, pair: u16, attached: bool) -> io::Result<()> {
        if self.queues.len() == 1 {
            return Ok(());
        }
        match self.queues.get(usize::from(pair)).map(|queue| tun::set_attached(queue, attached)) {
            // It is as wanted already.
            Some(Err(error)) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
            Some(result) => result,
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    /// Shows the state of the link to the host. Older kernels can't, which does no harm.
    pub fn set_carrier(&self, up: bool) {
        if let Some(queue) = self.queues.first() {
            let _ = tun::set_carrier(queue, up);
        }
    }

    /// Descriptor of a queue.
    pub fn queue(&self, pair: u16) -> Option<BorrowedFd<'_>> {
        self.file(pair).map(AsFd::as_fd)
    }

    /// File of a queue.
    pub fn file(&self, pair: u16) -> Option<&File> {
        self.queues.get(usize::from(pair))
    }

    fn set_up(&mut self) -> Result<(), TapError> {
        for queue in &self.queues {
            let bytes = libc::c_int::try_from(HEADER_BYTES).unwrap_or(0);
            tun::set_header_bytes(queue, bytes).map_err(|error| self.setting("the header size", error))?;
        }
        let Some(queue) = self.queues.first() else { return Ok(()) };
        self.segments_udp = tun::set_offload(queue, BASIC_OFFLOADS | offload::USO).is_ok();
        tun::set_offload(queue, 0).map_err(|error| self.setting("offloads", error))
    }

    fn setting(&self, what: &'static str, source: io::Error) -> TapError {
        TapError::Setting { name: self.name.clone(), what, source }
    }
}

/// All queues or none; the inner error is that of TUNSETIFF.
fn open_queues(name: &str, count: u16, flags: i16) -> Result<io::Result<Vec<File>>, TapError> {
    let mut queues = Vec::new();
    for _ in 0..count {
        let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(DEVICE);
        let file = file.map_err(|error| match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => TapError::NoDriver(error),
            _ => TapError::Open(error),
        })?;
        if let Err(error) = tun::set_interface(&file, name, flags) {
            return Ok(Err(error));
        }
        queues.push(file);
    }
    Ok(Ok(queues))
}

fn explain(name: &str, error: io::Error) -> TapError {
    let name = name.to_owned();
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => TapError::Permission(name, error),
        Some(libc::EBUSY | libc::E2BIG) => TapError::Busy(name, error),
        Some(libc::EINVAL) => TapError::Kind(name, error),
        _ => TapError::Setting { name, what: "the interface", source: error },
    }
}

fn set_nonblocking(file: &File) -> io::Result<()> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let flags = OFlag::from_bits_retain(fcntl(file, FcntlArg::F_GETFL)?);
    fcntl(file, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

impl std::fmt::Display for Tap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "tap {}", self.name)
    }
}

/// Whether an error says that the interface is gone.
pub fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EBADF | libc::EBADFD | libc::ENODEV))
}
