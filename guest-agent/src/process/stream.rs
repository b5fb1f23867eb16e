//! Standard streams: one vsock connection to the host for each, opened with the token that the host issued for it.

use std::os::fd::{AsFd as _, OwnedFd};

use hull_protocol::{STREAM_PORT, Token, agent};
use tokio::io::unix::AsyncFd;

use crate::dial::dial;
use crate::failure::{Context, Failure};
use crate::sys;

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
        let (stdin, stdout, stderr) = tokio::try_join!(
            open("stdin", &tokens.stdin),
            open("stdout", &tokens.stdout),
            open("stderr", &tokens.stderr)
        )?;
        Ok(Self { stdin, stdout, stderr })
    }
}

async fn open(name: &str, token: &[u8]) -> Result<Option<AsyncFd<OwnedFd>>, Failure> {
    if token.is_empty() {
        return Ok(None);
    }
    let token = Token::try_from(token).map_err(|error| Failure::invalid(format!("{name}: {error}")))?;
    let failed = || format!("open the stream for {name}");
    let stream = dial(STREAM_PORT, token).await.context(failed())?;
    let own = stream.as_fd().try_clone_to_owned().context(failed())?;
    // Registered anew below: a descriptor is waited for in one way only.
    drop(stream);
    Ok(Some(sys::register(own).context(failed())?))
}
