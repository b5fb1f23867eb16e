//! Starts the daemon: this program again, without an action.
//!
//! The daemon gets its listening socket as standard input and says on standard output that it serves, or why it can't.
//! Both are replaced before anything else happens there.

use std::fs;
use std::io::{self, BufRead as _, BufReader, PipeReader, Read as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixListener;
use std::os::unix::process::parent_id;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::Address;
use crate::args::Args;
use crate::bundle::{Bundle, ShimRecord};

/// What the daemon says when it serves.
pub const READY: &str = "ready";

/// How long the daemon may take to say it.
const READY_TIMEOUT: Duration = Duration::from_secs(20);
const MAX_REASON_BYTES: u64 = 4096;

/// Starts the daemon and returns when it serves. It outlives this process.
pub fn spawn(args: &Args, bundle: &Bundle, address: &Address, listener: UnixListener) -> anyhow::Result<()> {
    let program = std::env::current_exe().context("finding this program")?;
    let (said, say) = io::pipe().context("making a pipe")?;
    let mut command = Command::new(&program);
    command
        .args(["-namespace", &args.namespace, "-id", &args.id, "-address", &args.address])
        .arg("-publish-binary")
        .arg(&args.publish_binary)
        .args(["-socket", &address.to_string()])
        .args(args.debug.then_some("-debug"))
        .current_dir(bundle.path())
        .stdin(OwnedFd::from(listener))
        .stdout(say)
        .stderr(Stdio::null());
    let mut daemon = command.spawn().with_context(|| program.display().to_string())?;
    // Closes this process's copy of the pipe, so that the daemon's death can be seen.
    drop(command);
    let started = settle(&daemon, bundle).and_then(|()| wait_until_ready(said));
    if started.is_err() {
        let _ = daemon.kill();
        let _ = daemon.wait();
    }
    started
}

fn settle(daemon: &Child, bundle: &Bundle) -> anyhow::Result<()> {
    let record = ShimRecord { shim_pid: daemon.id(), ..ShimRecord::default() };
    bundle.write_record(&record)?;
    protect(daemon.id());
    Ok(())
}

/// When memory is short, containerd's shims go after containerd itself, and before nothing else of its rank. Without the
/// right to do so the daemon is treated like any process.
fn protect(pid: u32) {
    let score = |pid: u32| fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).ok()?.trim().parse::<i32>().ok();
    if let Some(score) = score(parent_id()) {
        let _ = fs::write(format!("/proc/{pid}/oom_score_adj"), score.saturating_add(1).min(1000).to_string());
    }
}

fn wait_until_ready(said: PipeReader) -> anyhow::Result<()> {
    let timeout = PollTimeout::try_from(READY_TIMEOUT).unwrap_or(PollTimeout::MAX);
    let readable =
        poll(&mut [PollFd::new(said.as_fd(), PollFlags::POLLIN)], timeout).context("waiting for the shim")?;
    if readable == 0 {
        bail!("The shim did not start within {} seconds", READY_TIMEOUT.as_secs());
    }
    let mut line = String::new();
    BufReader::new(said.take(MAX_REASON_BYTES)).read_line(&mut line).context("waiting for the shim")?;
    match line.trim_end() {
        READY => Ok(()),
        "" => bail!("The shim died while it started"),
        reason => bail!("{reason}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[test]
    fn the_daemon_s_reason_is_passed_on_and_its_death_seen() {
        let say = |line: &str| {
            let (said, mut say) = io::pipe().unwrap();
            say.write_all(line.as_bytes()).unwrap();
            drop(say);
            wait_until_ready(said)
        };
        say("ready\n").unwrap();
        assert_eq!(say("no room\n").unwrap_err().to_string(), "no room");
        assert!(say("").unwrap_err().to_string().contains("died"));
    }
}
