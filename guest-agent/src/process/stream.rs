//! Standard streams: one vsock connection to the host for each, opened with the token that the host issued for it.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use hull_protocol::{HOST_CID, STREAM_PORT, Token, agent};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, VsockAddr, connect, getsockopt, socket, sockopt};
use tokio::io::unix::AsyncFd;
use tokio::time::timeout;

use crate::failure::{Context, Failure};
use crate::process::copy;
use crate::sys;

/// Longest wait for the host to accept a stream.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The host's ends of a process's standard streams; `None` where the host wants none.
pub struct Streams {
    /// Bytes for the process.
    pub stdin: Option<AsyncFd<OwnedFd>>,
    /// Bytes from the process, or from its terminal.
    pub stdout: Option<AsyncFd<OwnedFd>>,
    /// Bytes from the process; none with a terminal.
    pub stderr: Option<AsyncFd<OwnedFd>>,
}

impl Streams {
    /// Dials the host once for each stream that has a token.
    pub async fn open(tokens: &agent::Streams) -> Result<Self, Failure> {
        Ok(Self {
            stdin: open("stdin", &tokens.stdin).await?,
            stdout: open("stdout", &tokens.stdout).await?,
            stderr: open("stderr", &tokens.stderr).await?,
        })
    }
}

async fn open(name: &str, token: &[u8]) -> Result<Option<AsyncFd<OwnedFd>>, Failure> {
    if token.is_empty() {
        return Ok(None);
    }
    let token = Token::try_from(token).map_err(|error| Failure::invalid(format!("{name}: {error}")))?;
    let stream = timeout(CONNECT_TIMEOUT, dial(token))
        .await
        .context(format!("open the stream for {name}"))?
        .context(format!("open the stream for {name}"))?;
    Ok(Some(stream))
}

async fn dial(token: Token) -> io::Result<AsyncFd<OwnedFd>> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Vsock, SockType::Stream, flags, None)?;
    match connect(socket.as_raw_fd(), &VsockAddr::new(HOST_CID, STREAM_PORT)) {
        Ok(()) | Err(Errno::EINPROGRESS) => {}
        Err(error) => return Err(error.into()),
    }
    let socket = sys::register(socket)?;
    drop(socket.writable().await?);
    match getsockopt(socket.get_ref(), sockopt::SocketError)? {
        0 => {}
        error => return Err(io::Error::from_raw_os_error(error)),
    }
    copy::write_all(&socket, token.as_bytes()).await?;
    Ok(socket)
}
