//! The caller's terminal.

use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use anyhow::{Context as _, bail};
use hull_sandbox::container::TerminalSize;
use nix::pty::Winsize;
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};

/// `-it` needs somebody to type.
pub fn require_input() -> anyhow::Result<()> {
    if !io::stdin().is_terminal() {
        bail!("the input device is not a TTY; leave -t out to pipe data in");
    }
    Ok(())
}

/// Size of the terminal behind the first standard stream that is one; 80 x 24 without any.
pub fn size() -> TerminalSize {
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    [stdout.as_fd(), stdin.as_fd(), stderr.as_fd()]
        .into_iter()
        .find_map(size_of)
        .unwrap_or(TerminalSize { columns: 80, rows: 24 })
}

fn size_of(fd: BorrowedFd<'_>) -> Option<TerminalSize> {
    let mut size = Winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    read_size(fd, &mut size)?;
    (size.ws_col > 0 && size.ws_row > 0).then_some(TerminalSize { columns: size.ws_col, rows: size.ws_row })
}

nix::ioctl_read_bad!(tiocgwinsz, libc::TIOCGWINSZ, Winsize);

#[allow(unsafe_code, reason = "there is no safe wrapper for TIOCGWINSZ")]
fn read_size(fd: BorrowedFd<'_>, size: &mut Winsize) -> Option<i32> {
    // SAFETY: the descriptor is borrowed, so open, and the call writes no more than a `Winsize`.
    unsafe { tiocgwinsz(fd.as_raw_fd(), size) }.ok()
}

/// The terminal passes every key on while this lives. Dropping restores it, also when a panic unwinds.
pub struct RawMode {
    before: Termios,
}

impl RawMode {
    pub fn enter() -> anyhow::Result<Self> {
        let stdin = io::stdin();
        let before = tcgetattr(stdin.as_fd()).context("reading the mode of the terminal")?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(stdin.as_fd(), SetArg::TCSADRAIN, &raw).context("setting the mode of the terminal")?;
        Ok(Self { before })
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        let _ = tcsetattr(io::stdin().as_fd(), SetArg::TCSADRAIN, &self.before);
    }
}
