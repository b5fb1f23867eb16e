//! The pid namespace that containers of the sandbox share, with a first process that only reaps.

use std::fs;

use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::{ForkResult, Pid};

use crate::failure::{Context, Failure};
use crate::sys;

/// Makes the namespace and returns its first process. When that one is killed, the kernel kills all others in it.
pub fn run() -> Result<Pid, Failure> {
    unshare(CloneFlags::CLONE_NEWPID).context("make a pid namespace")?;
    match sys::fork().context("fork")? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => {
            // All containers in the namespace would go with it.
            let _ = fs::write("/proc/self/oom_score_adj", "-1000");
            reap_for_ever()
        }
    }
}

/// Nobody in the namespace can signal its first process as long as that one handles no signals: the kernel drops all but
/// SIGCHLD, which waits until it is taken.
fn reap_for_ever() -> ! {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGCHLD);
    let _ = signals.thread_set_mask();
    loop {
        if sys::wait_for_signal(&signals).is_ok() {
            while sys::reap().is_some() {}
        }
    }
}
