//! `hull stop`: the owner of a sandbox forwards the stop signal to its container; after the time-out the owner is killed,
//! which ends the VM.

use std::time::{Duration, Instant};

use anyhow::anyhow;
use hull_sandbox::spec::parse_signal;
use hull_sandbox::{RuntimeRoot, SandboxRecord};
use nix::libc;

use crate::args::StopArgs;
use crate::context::Context;
use crate::failure::{FAILED, Failure};
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
            root.sweep()?;
            Ok(())
        }
        false => Err(anyhow!("container {wanted} is still running after SIGKILL").into()),
    }
}

/// By name, by identifier, or by the beginning of one if that is unambiguous.
fn find<'a>(records: &'a [SandboxRecord], wanted: &str) -> anyhow::Result<&'a SandboxRecord> {
    if let Some(record) = records.iter().find(|record| record.name == wanted || record.id == wanted) {
        return Ok(record);
    }
    let mut candidates = records.iter().filter(|record| record.id.starts_with(wanted));
    match (candidates.next(), candidates.next()) {
        (Some(record), None) => Ok(record),
        (Some(_), Some(_)) => Err(anyhow!("{wanted:?} is the beginning of several containers' identifiers")),
        (None, _) => Err(anyhow!("no running container is called {wanted:?}; `hull ps` lists them")),
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
    use hull_sandbox::runtime_dir::SandboxStatus;

    fn record(id: &str, name: &str) -> SandboxRecord {
        SandboxRecord {
            id: id.into(),
            name: name.into(),
            image: String::new(),
            command: Vec::new(),
            created_s: 0,
            status: SandboxStatus::Running,
            owner_pid: 0,
            monitor_pid: 0,
            vcpus: 1,
            memory_mib: 1,
            stop_signal: 15,
            stop_timeout_s: 1,
        }
    }

    #[test]
    fn containers_are_found_by_name_or_unambiguous_beginning() {
        let records = [record("ab1", "web"), record("ab2", "ab1x")];
        assert_eq!(find(&records, "web").unwrap().id, "ab1");
        assert_eq!(find(&records, "ab2").unwrap().id, "ab2");
        assert!(find(&records, "ab").is_err());
        assert!(find(&records, "zz").is_err());
    }

    #[test]
    fn a_record_without_owner_is_never_signalled() {
        assert!(send(&record("ab1", "web"), 9).is_err());
    }
}
