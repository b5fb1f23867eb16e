//! Pseudo-terminals.
//!
//! The terminal is made inside the container (its own devpts), and its master comes back over a Unix socket, as OCI
//! runtimes do it.

use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use std::os::unix::net::UnixListener;
use tokio::io::Interest;

use crate::failure::{Context, Failure};
use crate::{layout, sys};

/// Longest wait for a terminal from the process that makes it.
const TERMINAL_TIMEOUT: Duration = Duration::from_secs(30);

/// The master side of a process's terminal.
#[derive(Clone)]
pub struct Terminal(Arc<OwnedFd>);

impl Terminal {
    /// Sets the size; sizes beyond 65535 are refused.
    pub fn resize(&self, columns: u32, rows: u32) -> Result<(), Failure> {
        let fit = |size: u32| {
            u16::try_from(size).map_err(|_| Failure::invalid("a terminal has at most 65535 columns and rows"))
        };
        sys::set_terminal_size(&*self.0, fit(columns)?, fit(rows)?).context("resize the terminal")
    }

    /// Another descriptor for the master, non-blocking.
    pub fn duplicate(&self) -> Result<OwnedFd, Failure> {
        let fd = self.0.try_clone().context("duplicate the terminal")?;
        fcntl(&fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK | OFlag::O_RDWR)).context("set up the terminal")?;
        Ok(fd)
    }
}

/// A socket that waits for one terminal.
pub struct ConsoleSocket {
    path: PathBuf,
    listener: UnixListener,
}

impl ConsoleSocket {
    /// Listens on a new path.
    pub fn new() -> Result<Self, Failure> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Self::at(Path::new(layout::CONSOLES).join(number.to_string()))
    }

    fn at(path: PathBuf) -> Result<Self, Failure> {
        let listener = UnixListener::bind(&path).context("listen for the terminal")?;
        listener.set_nonblocking(true).context("listen for the terminal")?;
        Ok(Self { path, listener })
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Waits for the terminal. Whoever sends it has connected before the process was reported; a process that was started
    /// by exec makes it only after that.
    pub async fn receive(self) -> Result<Terminal, Failure> {
        let (stream, _) = self.listener.accept().context("accept the terminal")?;
        let stream = sys::register_with_interest(stream.into(), Interest::READABLE).context("wait for the terminal")?;
        let readable = tokio::time::timeout(TERMINAL_TIMEOUT, stream.readable()).await;
        readable.context("wait for the terminal")?.context("wait for the terminal")?.retain_ready();
        let mut name = [0; 64];
        let mut parts = [IoSliceMut::new(&mut name)];
        let mut control = nix::cmsg_space!([RawFd; 1]);
        let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
        let message =
            recvmsg::<()>(stream.as_raw_fd(), &mut parts, Some(&mut control), flags).context("receive the terminal")?;
        let mut fds = message
            .cmsgs()
            .context("receive the terminal")?
            .filter_map(|part| match part {
                ControlMessageOwned::ScmRights(fds) => Some(fds),
                _ => None,
            })
            .flatten();
        let fd = fds.next().ok_or_else(|| Failure::internal("no terminal was sent"))?;
        let fd = sys::inherited_fd(fd).context("receive the terminal")?;
        fcntl(&fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).context("receive the terminal")?;
        Ok(Terminal(Arc::new(fd)))
    }
}

impl Drop for ConsoleSocket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{ControlMessage, sendmsg};
    use std::io::IoSlice;
    use std::os::unix::net::UnixStream;

    /// What a receiver gets that waits before `sender` does something with the connection.
    fn receive(sender: impl FnOnce(UnixStream)) -> Result<Terminal, Failure> {
        let directory = tempfile::tempdir().expect("directory");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        runtime.block_on(async {
            let socket = ConsoleSocket::at(directory.path().join("console")).expect("listen");
            let stream = UnixStream::connect(socket.path()).expect("connect");
            // The first is polled first.
            tokio::join!(socket.receive(), async { sender(stream) }).0
        })
    }

    #[test]
    fn a_terminal_that_comes_late_is_waited_for() {
        let pty = nix::pty::openpty(None, None).expect("pty");
        let terminal = receive(|stream| {
            let fds = [pty.master.as_raw_fd()];
            let rights = [ControlMessage::ScmRights(&fds)];
            sendmsg::<()>(stream.as_raw_fd(), &[IoSlice::new(b"/dev/ptmx")], &rights, MsgFlags::empty(), None)
                .expect("send");
        });
        terminal.expect("a terminal").resize(7, 8).expect("resize");
    }

    #[test]
    fn a_sender_that_goes_away_is_a_failure() {
        let failure = receive(drop).err().expect("a failure");
        assert_eq!(failure, Failure::internal("no terminal was sent"));
    }
}
