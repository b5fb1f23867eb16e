//! Cgroup v2: one directory for each container, and what its files say.

pub mod freeze;
pub mod limits;
mod watch;

use std::collections::HashMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hull_protocol::agent::{ContainerStatsResponse, DeviceIo};
use nix::unistd::Pid;

use crate::failure::{Context, Failure};
use crate::layout;

/// Most cgroups of one container that are walked; a container may make its own below its own.
const MAX_CGROUPS: usize = 1024;

/// Most walks that the removal of a cgroup takes.
const MAX_WALKS: usize = 1024;

/// Most processes that a list names.
const MAX_PIDS: usize = 8192;

/// Most lines of a file that are passed on.
const MAX_LINES: usize = 512;

/// Largest cgroup file that is read, in bytes.
const MAX_FILE_BYTES: u64 = 256 << 10;

/// The cgroup of container `id`.
pub fn path(id: &str) -> PathBuf {
    Path::new(layout::CGROUP).join(id)
}

/// Makes the parent of all containers' cgroups, with every controller delegated.
pub fn set_up() -> std::io::Result<()> {
    let root = Path::new("/sys/fs/cgroup");
    fs::create_dir_all(layout::CGROUP)?;
    let controllers = fs::read_to_string(root.join("cgroup.controllers"))?;
    for directory in [root, Path::new(layout::CGROUP)] {
        for controller in controllers.split_ascii_whitespace() {
            fs::write(directory.join("cgroup.subtree_control"), format!("+{controller}"))?;
        }
    }
    Ok(())
}

/// How often the kernel killed a process of this cgroup for want of memory.
pub fn oom_kills(cgroup: &Path) -> u64 {
    value(&read(cgroup, "memory.events"), "oom_kill")
}

/// Waits until the kernel has killed processes of this cgroup for want of memory more often than `seen` times; how often by now.
pub async fn more_oom_kills(cgroup: &Path, seen: u64) -> Result<u64, Failure> {
    let more = |events: &str| Some(value(events, "oom_kill")).filter(|kills| *kills > seen);
    watch::until(cgroup, "memory.events", more).await
}

/// Processes of this cgroup and those below it.
pub fn pids(cgroup: &Path) -> Vec<Pid> {
    walk(cgroup)
        .iter()
        .flat_map(|directory| {
            let list = read(directory, "cgroup.procs");
            list.lines().filter_map(|line| line.parse().ok()).collect::<Vec<i32>>()
        })
        .take(MAX_PIDS)
        // 0 stands for a process that is not visible from here, and means "my own group" to kill(2).
        .filter(|&pid| pid > 0)
        .map(Pid::from_raw)
        .collect()
}

/// Kills everything in the cgroup without waiting.
pub fn kill(cgroup: &Path) -> std::io::Result<()> {
    fs::write(cgroup.join("cgroup.kill"), "1")
}

/// Kills everything in the cgroup and waits until it is empty.
pub async fn kill_all(cgroup: &Path, timeout: Duration) -> Result<(), Failure> {
    if !cgroup.exists() {
        return Ok(());
    }
    kill(cgroup).context("kill the container's processes")?;
    let deadline = tokio::time::Instant::now() + timeout;
    let mut pause = Duration::from_millis(1);
    while value(&read(cgroup, "cgroup.events"), "populated") != 0 {
        if tokio::time::Instant::now() > deadline {
            return Err(Failure::internal("killed processes do not go away"));
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(50));
    }
    Ok(())
}

/// Removes an empty cgroup with those below it. A walk sees a part of very many; what it doesn't see keeps its parents, and
/// the next one gets further.
pub fn remove(cgroup: &Path) -> std::io::Result<()> {
    for _ in 0..MAX_WALKS {
        let (mut removed, mut failed) = (false, None);
        for directory in walk(cgroup).iter().rev() {
            match fs::remove_dir(directory) {
                Ok(()) => removed = true,
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => failed = Some(error),
            }
        }
        match failed {
            None => return Ok(()),
            Some(error) if !removed => return Err(error),
            Some(_) => {}
        }
    }
    Err(std::io::Error::other("too many cgroups"))
}

/// What the controllers have counted.
pub fn stats(cgroup: &Path) -> ContainerStatsResponse {
    let cpu = read(cgroup, "cpu.stat");
    let io = devices(&read(cgroup, "io.stat"));
    let sum = |bytes: fn(&DeviceIo) -> u64| io.iter().map(bytes).fold(0, u64::saturating_add);
    ContainerStatsResponse {
        memory_usage_bytes: number(&read(cgroup, "memory.current")),
        memory_limit_bytes: number(&read(cgroup, "memory.max")),
        memory_peak_bytes: number(&read(cgroup, "memory.peak")),
        memory_oom_kills: oom_kills(cgroup),
        cpu_usage_us: value(&cpu, "usage_usec"),
        cpu_user_us: value(&cpu, "user_usec"),
        cpu_system_us: value(&cpu, "system_usec"),
        cpu_periods: value(&cpu, "nr_periods"),
        cpu_throttled_periods: value(&cpu, "nr_throttled"),
        cpu_throttled_us: value(&cpu, "throttled_usec"),
        pids_current: number(&read(cgroup, "pids.current")),
        pids_limit: number(&read(cgroup, "pids.max")),
        io_read_bytes: sum(|device| device.read_bytes),
        io_write_bytes: sum(|device| device.write_bytes),
        memory_stat: lines(&read(cgroup, "memory.stat")),
        memory_events: lines(&read(cgroup, "memory.events")),
        cpu_stat: lines(&cpu),
        io,
        ..Default::default()
    }
}

/// The cgroup and those below it, parents first.
fn walk(cgroup: &Path) -> Vec<PathBuf> {
    let mut found = vec![cgroup.to_path_buf()];
    let mut next = 0;
    while let Some(directory) = found.get(next) {
        next += 1;
        let Ok(entries) = fs::read_dir(directory) else {
            continue;
        };
        let below: Vec<PathBuf> = entries
            .flatten()
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .map(|entry| entry.path())
            .take(MAX_CGROUPS - found.len().min(MAX_CGROUPS))
            .collect();
        found.extend(below);
    }
    found
}

/// A file of the cgroup; a controller that is not there counts as an empty file.
fn read(cgroup: &Path, file: &str) -> String {
    use std::io::Read;
    let mut text = String::new();
    if let Ok(file) = fs::File::open(cgroup.join(file)) {
        let _ = file.take(MAX_FILE_BYTES).read_to_string(&mut text);
    }
    text
}

/// A file with one number; "max" and what is no number are 0.
fn number(text: &str) -> u64 {
    text.trim().parse().unwrap_or(0)
}

/// The number after `key` in a file of "key number" lines.
fn value(text: &str, key: &str) -> u64 {
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .find(|(name, _)| *name == key)
        .map_or(0, |(_, text)| number(text))
}

/// All lines of a file of "key number" lines.
fn lines(text: &str) -> HashMap<String, u64> {
    let pairs = text.lines().filter_map(|line| line.split_once(' '));
    pairs.take(MAX_LINES).map(|(name, text)| (name.to_owned(), number(text))).collect()
}

/// The lines of io.stat.
fn devices(text: &str) -> Vec<DeviceIo> {
    text.lines().filter_map(device).take(MAX_LINES).collect()
}

/// "254:0 rbytes=4096 wbytes=0 rios=1 wios=0".
fn device(line: &str) -> Option<DeviceIo> {
    let mut words = line.split_ascii_whitespace();
    let (major, minor) = words.next()?.split_once(':')?;
    let (major, minor) = (major.parse().ok()?, minor.parse().ok()?);
    let mut io = DeviceIo { major, minor, ..Default::default() };
    for (name, count) in words.filter_map(|word| word.split_once('=')) {
        match name {
            "rbytes" => io.read_bytes = number(count),
            "wbytes" => io.write_bytes = number(count),
            "rios" => io.read_operations = number(count),
            "wios" => io.write_operations = number(count),
            _ => (),
        }
    }
    Some(io)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn numbers_are_read_as_the_kernel_writes_them() {
        assert_eq!(number("52428800\n"), 52_428_800);
        assert_eq!(number("max\n"), 0);
        let events = "low 0\nhigh 0\nmax 5\noom 2\noom_kill 1\noom_group_kill 0\n";
        assert_eq!(value(events, "oom_kill"), 1);
        assert_eq!(value(events, "oom"), 2);
        assert_eq!(value(events, "missing"), 0);
    }

    #[test]
    fn more_cgroups_than_one_walk_sees_are_removed() {
        let parent = tempfile::tempdir().expect("directory");
        let cgroup = parent.path().join("cgroup");
        for number in 0..2 * MAX_CGROUPS {
            fs::create_dir_all(cgroup.join(format!("{}/{number}", number % 3))).expect("make");
        }
        remove(&cgroup).expect("remove");
        assert!(!cgroup.exists());
        remove(&cgroup).expect("one that is gone");
        // What can't be removed ends it.
        fs::create_dir_all(cgroup.join("below")).expect("make");
        fs::write(cgroup.join("below/file"), "").expect("write");
        assert_eq!(remove(&cgroup).map_err(|error| error.kind()), Err(ErrorKind::DirectoryNotEmpty));
    }

    #[test]
    fn io_is_counted_for_each_device() {
        let text = "254:0 rbytes=4096 wbytes=0 rios=1 wios=2 dbytes=0\n254:16\nnonsense\n";
        let found = devices(text);
        assert_eq!(found.len(), 2);
        let first = &found[0];
        assert_eq!((first.major, first.minor, first.read_bytes, first.write_operations), (254, 0, 4096, 2));
        assert_eq!(lines("anon 5\nfile 7\n").get("file"), Some(&7));
    }

    proptest! {
        #[test]
        fn no_file_content_panics(text in "\\PC{0,200}") {
            number(&text);
            value(&text, "oom_kill");
            devices(&text);
            lines(&text);
        }
    }
}
