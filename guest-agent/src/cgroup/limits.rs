//! Limits of a container that change while it runs.

use std::fs;
use std::path::Path;

use hull_protocol::agent::UpdateContainerRequest;

use crate::failure::{Context, Failure};

/// Period of the processor time limit: Docker's and the kernel's default.
const CPU_PERIOD_US: u64 = 100_000;
/// The kernel refuses less (`min_cfs_quota_period`).
const MIN_CPU_QUOTA_US: i64 = 1000;

/// Sets the limits that the request names; all of them or none.
pub fn update(cgroup: &Path, request: &UpdateContainerRequest) -> Result<(), Failure> {
    if request.memory_limit_bytes > 0 {
        fits(cgroup, request.memory_limit_bytes.unsigned_abs())?;
    }
    let changes = changes(request)?;
    let mut before = Vec::new();
    for (file, value) in &changes {
        let path = cgroup.join(file);
        let set = fs::read_to_string(&path).and_then(|old| {
            fs::write(&path, value)?;
            before.push((path.clone(), old));
            Ok(())
        });
        if let Err(error) = set {
            for (path, old) in before.iter().rev() {
                let _ = fs::write(path, old.trim_end());
            }
            return Err(error).context(format!("set {file} to {value}"));
        }
    }
    Ok(())
}

/// Files of the cgroup and their new contents.
fn changes(request: &UpdateContainerRequest) -> Result<Vec<(&'static str, String)>, Failure> {
    let limits = [
        ("memory.max", request.memory_limit_bytes, 1),
        ("cpu.max", request.cpu_quota_us, MIN_CPU_QUOTA_US),
        ("pids.max", request.pids_limit, 1),
    ];
    let mut changes = Vec::new();
    for (file, limit, least) in limits {
        let value = match limit {
            0 => continue,
            -1 => "max".to_owned(),
            limit if limit >= least => limit.to_string(),
            limit => return Err(Failure::invalid(format!("{file} can't be {limit}"))),
        };
        let value = if file == "cpu.max" { format!("{value} {CPU_PERIOD_US}") } else { value };
        changes.push((file, value));
    }
    Ok(changes)
}

/// What the container holds and can't give back (there is no swap) has to fit: the kernel would make it fit by killing.
fn fits(cgroup: &Path, limit_bytes: u64) -> Result<(), Failure> {
    let stat = super::read(cgroup, "memory.stat");
    let held: u64 = ["anon", "shmem", "kernel_stack", "pagetables"]
        .iter()
        .fold(0, |sum, key| super::value(&stat, key).saturating_add(sum));
    if held > limit_bytes {
        let text =
            format!("the container uses {held} bytes of memory that it can't give back, more than {limit_bytes}");
        return Err(Failure::precondition(text));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use ttrpc::Code;

    fn cgroup() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (file, text) in
            [("memory.max", "max\n"), ("cpu.max", "max 100000\n"), ("memory.stat", "anon 1000\nfile 5000\nshmem 24\n")]
        {
            fs::write(dir.path().join(file), text).unwrap();
        }
        dir
    }

    fn request(memory_limit_bytes: i64, cpu_quota_us: i64, pids_limit: i64) -> UpdateContainerRequest {
        UpdateContainerRequest { memory_limit_bytes, cpu_quota_us, pids_limit, ..Default::default() }
    }

    fn read(dir: &tempfile::TempDir, file: &str) -> String {
        fs::read_to_string(dir.path().join(file)).unwrap()
    }

    #[test]
    fn named_limits_are_set_and_the_others_stay() {
        let dir = cgroup();
        update(dir.path(), &request(4096, 0, 0)).unwrap();
        assert_eq!((read(&dir, "memory.max"), read(&dir, "cpu.max")), ("4096".into(), "max 100000\n".into()));
        update(dir.path(), &request(-1, 50_000, 0)).unwrap();
        assert_eq!((read(&dir, "memory.max"), read(&dir, "cpu.max")), ("max".into(), "50000 100000".into()));
    }

    #[test]
    fn a_failure_leaves_all_as_it_was() {
        let dir = cgroup();
        // There is no pids.max.
        assert!(update(dir.path(), &request(4096, 50_000, 7)).is_err());
        assert_eq!((read(&dir, "memory.max"), read(&dir, "cpu.max")), ("max".into(), "max 100000".into()));
    }

    #[test]
    fn what_would_end_in_a_kill_is_refused() {
        let dir = cgroup();
        let failure = update(dir.path(), &request(1023, 0, 0)).unwrap_err();
        assert_eq!(failure.code, Code::FAILED_PRECONDITION);
        update(dir.path(), &request(1024, 0, 0)).unwrap();
        assert_eq!(update(dir.path(), &request(-2, 0, 0)).unwrap_err().code, Code::INVALID_ARGUMENT);
    }
}
