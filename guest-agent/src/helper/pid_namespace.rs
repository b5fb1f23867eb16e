//! The pid namespace that containers of the sandbox share, with a first process that only reaps.

use std::fs;

use libcontainer::capabilities;
use libcontainer::syscall::syscall::create_syscall;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::{ForkResult, Pid, chdir, pivot_root};

use crate::failure::{Context, Failure};
use crate::helper::workload::{chain, complete};
use crate::{layout, sys};

/// Makes the namespace and returns its first process. When that one is killed, the kernel kills all others in it.
pub fn run() -> Result<Pid, Failure> {
    // All containers in the namespace would go with it.
    fs::write("/proc/self/oom_score_adj", "-1000").context("set oom_score_adj")?;
    unshare(CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWNS).context("make a pid namespace")?;
    enter_empty_root().context("enter an empty root")?;
    capabilities::drop_privileges(&complete(None), create_syscall().as_ref())
        .map_err(|error| Failure::internal(format!("drop capabilities: {}", chain(&error))))?;
    match sys::fork().context("fork")? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => reap_for_ever(),
    }
}

/// Containers see this process: /proc/1/root must lead them nowhere.
fn enter_empty_root() -> nix::Result<()> {
    const NONE: Option<&str> = None;
    mount(NONE, "/", NONE, MsFlags::MS_PRIVATE | MsFlags::MS_REC, NONE)?;
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("tmpfs"), layout::RUN, Some("tmpfs"), flags, NONE)?;
    chdir(layout::RUN)?;
    // Onto itself: the old root comes on top of the new one, and is taken away.
    pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    chdir("/")
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
