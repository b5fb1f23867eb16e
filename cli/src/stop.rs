//! `hull stop`: the owner of a sandbox forwards the stop signal to its container; after the time-out the owner is killed,
//! which ends the VM.

use std::time::{Duration, Instant};

use anyhow::anyhow;
use hull_sandbox::runtime_dir::LOCK_PATIENCE;
use hull_sandbox::spec::parse_signal;
use hull_sandbox::{RuntimeRoot, SandboxRecord};
use nix::libc;

use crate::args::StopArgs;
use crate::context::Context;
use crate::failure::{FAILED, Failure};
use crate::find::find;
use crate::output::{line, say};

/// How long a killed owner may take to be gone.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);
const STEP: Duration = Duration::from_millis(50);

pub fn stop(args: &StopArgs, context: &Context) -> Result<u8, Failure> {
    let signal = match &args.signal {
        Some(text) => Some(parse_signal(text).ok_or_else(|| anyhow!("{text:?} is not a signal"))?),
        None => None,
    };
    let root = context.runtime()?;
    let mut code = 0;
    for wanted in &args.containers {
        match stop_one(&root, wanted, signal, args.time) {
            Ok(()) => line(wanted)?,
            Err(failure) => {
                say(failure.line());
                code = FAILED;
            }
        }
    }
    Ok(code)
}

fn stop_one(root: &RuntimeRoot, wanted: &str, signal: Option<i32>, time_s: Option<u32>) -> Result<(), Failure> {
    let records = root.list()?;
    let record = find(&records, wanted)?;
    let patience = Duration::from_secs(time_s.unwrap_or(record.stop_timeout_s).into());
    send(record, signal.unwrap_or(record.stop_signal))?;
    if gone_within(root, &record.id, patience)? {
        return Ok(());
    }
    send(record, libc::SIGKILL)?;
    match gone_within(root, &record.id, KILL_TIMEOUT)? {
        true => {
            // The killed owner could not tidy up; its monitor does, and this in case it was killed too.
            root.sweep(LOCK_PATIENCE)?;
            Ok(())
        }
        false => Err(anyhow!("container {wanted} is still running after SIGKILL").into()),
    }
}

/// The list was read a moment ago under the lock that the owner holds, so its process identifier is its own still.
fn send(record: &SandboxRecord, signal: i32) -> anyhow::Result<()> {
    use nix::sys::signal::{Signal, kill};
    let pid = i32::try_from(record.owner_pid).ok().filter(|pid| *pid > 1);
    let pid = pid.ok_or_else(|| anyhow!("the record of {} has no owner", record.id))?;
    let signal = Signal::try_from(signal)
        .map_err(|_| anyhow!("signal {signal} can't be sent; choose another one with --signal"))?;
    match kill(nix::unistd::Pid::from_raw(pid), signal) {
        Ok(()) | Err(nix::errno::Errno::ESRCH) => Ok(()),
        Err(error) => Err(anyhow!("process {pid}, which owns {}: {error}", record.id)),
    }
}

fn gone_within(root: &RuntimeRoot, id: &str, patience: Duration) -> Result<bool, Failure> {
    let start = Instant::now();
    loop {
        if !root.list()?.iter().any(|record| record.id == id) {
            return Ok(true);
        }
        if start.elapsed() >= patience {
            return Ok(false);
        }
        std::thread::sleep(STEP);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::find::tests::record;

    #[test]
    fn a_record_without_owner_is_never_signalled() {
        assert!(send(&record("ab1", "web"), 9).is_err());
    }
}
