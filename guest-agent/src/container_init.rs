//! PID 1 of a container that asked for one: starts the command, hands on signals, reaps what is orphaned.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::sys::signal::SigSet;
use nix::unistd::Pid;

use crate::sys;

/// Flag that starts this role.
pub const FLAG: &str = "--init";

/// Runs `-- COMMAND ARGUMENTS...` and returns its exit status.
pub fn main(arguments: impl Iterator<Item = OsString>) -> u8 {
    let mut arguments = arguments.skip_while(|argument| argument == "--");
    let Some(command) = arguments.next() else {
        eprintln!("hull-init: no command");
        return 127;
    };
    // Blocked from the start, so that none is lost before the first wait.
    let signals = SigSet::all();
    if let Err(error) = signals.thread_set_mask() {
        eprintln!("hull-init: block signals: {error}");
        return 126;
    }
    // A process group of its own, so that Ctrl-C reaches the command once and not through us again.
    let mut program = Command::new(&command);
    program.args(arguments).process_group(0);
    sys::begin_in_foreground(&mut program);
    let child = match program.spawn() {
        Ok(child) => child,
        Err(error) => {
            eprintln!("hull-init: {}: {error}", command.display());
            let missing = error.kind() == std::io::ErrorKind::NotFound;
            return if missing { 127 } else { 126 };
        }
    };
    let Ok(pid) = i32::try_from(child.id()).map(Pid::from_raw) else {
        return 126;
    };
    loop {
        match sys::wait_for_signal(&signals) {
            Ok(libc::SIGCHLD) => {
                if let Some(status) = reap(pid) {
                    return status;
                }
            }
            // One that has just ended is reaped next.
            Ok(signal) => drop(sys::kill(pid, signal)),
            // Only a wrong set of signals fails.
            Err(_) => return 126,
        }
    }
}

/// Reaps all that have ended; the command's exit status if it is among them.
fn reap(command: Pid) -> Option<u8> {
    let mut ended = None;
    while let Some((pid, end)) = sys::reap() {
        if pid == command {
            ended = Some(end.status());
        }
    }
    ended
}
