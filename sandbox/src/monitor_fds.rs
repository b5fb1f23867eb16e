//! What a child does between fork and exec: it keeps descriptors, and enters a network namespace.
#![allow(unsafe_code, reason = "`pre_exec` is the only way to let one child, and no other, do it")]

use std::os::fd::OwnedFd;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sched::{CloneFlags, setns, unshare};
use tokio::process::Command;

/// Lets the child that `command` starts inherit `fds` under their present numbers. They stay close-on-exec in this process,
/// so that a child that another thread starts at the same time does not get them: a second holder of the event stream
/// would hide that its first is gone. This process's copies are closed when `command` is dropped.
pub(crate) fn inherit(command: &mut Command, fds: Vec<OwnedFd>) {
    let clear = move || {
        fds.iter().try_for_each(|fd| fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty())).map(drop).map_err(Into::into))
    };
    // SAFETY: between fork and exec the closure only calls fcntl, which is async-signal-safe, and allocates nothing.
    unsafe { command.pre_exec(clear) };
}

/// Has the child that `command` starts enter the network namespace behind the descriptor, or a new one.
pub(crate) fn enter_network(command: &mut Command, namespace: Option<OwnedFd>) {
    let enter = move || {
        let entered = match &namespace {
            Some(namespace) => setns(namespace, CloneFlags::CLONE_NEWNET),
            None => unshare(CloneFlags::CLONE_NEWNET),
        };
        entered.map_err(Into::into)
    };
    // SAFETY: between fork and exec the closure only makes a system call, and allocates nothing.
    unsafe { command.pre_exec(enter) };
}
