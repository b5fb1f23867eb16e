//! The two ends of a stream, whatever it runs over.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};

use anyhow::{Context, Result, bail};
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, VsockAddr, accept, bind, connect, listen, socket};

/// A place where streams arrive.
pub enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
    Vsock(OwnedFd),
}

/// A stream of bytes both ways.
pub enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
    Vsock(File),
}

impl Listener {
    pub fn bind(endpoint: &str) -> Result<Self> {
        Ok(match endpoint.split_once(':').context("An endpoint has a colon")? {
            ("tcp", address) => Self::Tcp(TcpListener::bind(address).context(address.to_owned())?),
            ("unix", path) => Self::Unix(UnixListener::bind(path).context(path.to_owned())?),
            ("vsock", address) => {
                let fd = socket(AddressFamily::Vsock, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
                bind(fd.as_raw_fd(), &vsock(address)?)?;
                listen(&fd, Backlog::new(16)?)?;
                Self::Vsock(fd)
            }
            (other, _) => bail!("{other} is no kind of endpoint"),
        })
    }

    pub fn accept(&self) -> Result<Stream> {
        Ok(match self {
            Self::Tcp(listener) => Stream::tcp(listener.accept()?.0)?,
            Self::Unix(listener) => Stream::Unix(listener.accept()?.0),
            Self::Vsock(fd) => Stream::Vsock(accepted(accept(fd.as_raw_fd())?)),
        })
    }
}

#[allow(unsafe_code, reason = "nix gives a plain number")]
fn accepted(fd: i32) -> File {
    // SAFETY: the descriptor is new and nobody else has it.
    File::from(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn vsock(address: &str) -> Result<VsockAddr> {
    let (cid, port) = address.split_once(':').context("A vsock endpoint is vsock:CID:PORT")?;
    Ok(VsockAddr::new(cid.parse()?, port.parse()?))
}

impl Stream {
    pub fn connect(endpoint: &str) -> Result<Self> {
        Ok(match endpoint.split_once(':').context("An endpoint has a colon")? {
            ("tcp", address) => Self::tcp(TcpStream::connect(address).context(address.to_owned())?)?,
            ("unix", path) => Self::Unix(UnixStream::connect(path).context(path.to_owned())?),
            ("vsock", address) => {
                let fd = socket(AddressFamily::Vsock, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
                connect(fd.as_raw_fd(), &vsock(address)?)?;
                Self::Vsock(File::from(fd))
            }
            (other, _) => bail!("{other} is no kind of endpoint"),
        })
    }

    fn tcp(stream: TcpStream) -> Result<Self> {
        stream.set_nodelay(true)?;
        Ok(Self::Tcp(stream))
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(buffer),
            Self::Unix(stream) => stream.read(buffer),
            Self::Vsock(stream) => stream.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write(buffer),
            Self::Unix(stream) => stream.write(buffer),
            Self::Vsock(stream) => stream.write(buffer),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
