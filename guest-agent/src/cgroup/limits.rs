//! Limits of a container that change while it runs.

use std::fs;
use std::path::Path;

use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxHugepageLimit, LinuxMemory, LinuxResources};

use crate::failure::{Context, Failure};

/// Period of the processor time limit where none is set: Docker's and the kernel's default.
const CPU_PERIOD_US: u64 = 100_000;
/// The kernel refuses less (`min_cfs_quota_period`) and more (`max_cfs_quota_period`).
const CPU_PERIODS_US: std::ops::RangeInclusive<u64> = 1000..=1_000_000;
/// Least quota.
const MIN_CPU_QUOTA_US: i64 = 1000;
/// Range of shares (cgroup v1), which are mapped to weights from 1 to 10,000.
const CPU_SHARES: (u64, u64) = (2, 262_144);
/// Range of block I/O weights (cgroup v1), likewise.
const IO_WEIGHTS: (u64, u64) = (10, 1000);
const MAX_WEIGHT: u64 = 10_000;
/// Most files that `unified` names, and most page sizes.
const MAX_FILES: usize = 64;

/// New content of a file.
#[derive(Debug, PartialEq, Eq)]
struct Change {
    file: String,
    value: String,
    /// Without the file there is nothing to limit.
    optional: bool,
}

/// Sets the limits that are named; all of them or none.
pub fn update(cgroup: &Path, resources: &LinuxResources) -> Result<(), Failure> {
    if let Some(limit) = resources.memory().and_then(|memory| memory.limit()).filter(|limit| *limit > 0) {
        fits(cgroup, limit.unsigned_abs())?;
    }
    let changes = changes(resources, &super::read(cgroup, "cpu.max"))?;
    let mut before = Vec::new();
    for Change { file, value, optional } in &changes {
        let path = cgroup.join(file);
        if *optional && !path.exists() {
            continue;
        }
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
fn changes(resources: &LinuxResources, cpu_max: &str) -> Result<Vec<Change>, Failure> {
    let mut changes = Vec::new();
    let mut set = |file: &str, value: Option<String>, optional: bool| {
        changes.extend(value.map(|value| Change { file: file.to_owned(), value, optional }));
    };
    if let Some(memory) = resources.memory() {
        set("memory.max", limit("memory.limit", memory.limit())?, false);
        set("memory.low", limit("memory.reservation", memory.reservation())?, false);
        set("memory.swap.max", swap(memory)?, true);
    }
    if let Some(cpu) = resources.cpu() {
        set("cpu.max", bandwidth(cpu, cpu_max)?, false);
        set("cpu.weight", weight("cpu.shares", cpu.shares(), CPU_SHARES)?, false);
        set("cpu.max.burst", cpu.burst().map(|burst| burst.to_string()), false);
        set("cpu.idle", cpu.idle().map(|idle| idle.to_string()), false);
        set("cpuset.cpus", list("cpu.cpus", cpu.cpus().as_deref())?, false);
        set("cpuset.mems", list("cpu.mems", cpu.mems().as_deref())?, false);
    }
    if let Some(pids) = resources.pids() {
        set("pids.max", limit("pids.limit", Some(pids.limit()))?, false);
    }
    if let Some(weight) = resources.block_io().as_ref().and_then(LinuxBlockIo::weight) {
        set("io.weight", self::weight("blockIO.weight", Some(weight.into()), IO_WEIGHTS)?, true);
    }
    for hugepages in resources.hugepage_limits().iter().flatten().take(MAX_FILES) {
        set(&hugepage_file(hugepages)?, Some(hugepages.limit().to_string()), false);
    }
    for (file, value) in resources.unified().iter().flatten().take(MAX_FILES) {
        set(unified_file(file)?, Some(value.clone()), false);
    }
    Ok(changes)
}

/// 0 leaves what is, -1 means no limit.
fn limit(field: &str, value: Option<i64>) -> Result<Option<String>, Failure> {
    match value {
        None | Some(0) => Ok(None),
        Some(-1) => Ok(Some("max".into())),
        Some(limit @ 1..) => Ok(Some(limit.to_string())),
        Some(limit) => Err(Failure::invalid(format!("{field} can't be {limit}"))),
    }
}

/// In a specification swap counts together with memory, in cgroup v2 alone.
fn swap(memory: &LinuxMemory) -> Result<Option<String>, Failure> {
    match (memory.swap(), memory.limit()) {
        (Some(both @ 1..), Some(memory @ 1..)) => match both.checked_sub(memory).filter(|swap| *swap >= 0) {
            Some(swap) => Ok(Some(swap.to_string())),
            None => Err(Failure::invalid(format!("memory.swap {both} is less than memory.limit {memory}"))),
        },
        (Some(both @ 1..), _) => Err(Failure::invalid(format!("memory.swap {both} needs memory.limit"))),
        (swap, _) => limit("memory.swap", swap),
    }
}

/// Quota and period are one file: the one that isn't given stays.
fn bandwidth(cpu: &LinuxCpu, cpu_max: &str) -> Result<Option<String>, Failure> {
    let (quota, period) = (cpu.quota().filter(|quota| *quota != 0), cpu.period().filter(|period| *period != 0));
    if quota.is_none() && period.is_none() {
        return Ok(None);
    }
    let mut now = cpu_max.split_ascii_whitespace();
    let now_quota = now.next().unwrap_or("max");
    let period = period.or_else(|| now.next().and_then(|text| text.parse().ok())).unwrap_or(CPU_PERIOD_US);
    if !CPU_PERIODS_US.contains(&period) {
        return Err(Failure::invalid(format!("cpu.period can't be {period}")));
    }
    let quota = match quota {
        None => now_quota.to_owned(),
        Some(-1) => "max".to_owned(),
        Some(quota) if quota >= MIN_CPU_QUOTA_US => quota.to_string(),
        Some(quota) => return Err(Failure::invalid(format!("cpu.quota can't be {quota}"))),
    };
    Ok(Some(format!("{quota} {period}")))
}

/// Maps a range of cgroup v1 to that of cgroup v2, as every runtime does. 0 leaves what is.
fn weight(field: &str, value: Option<u64>, (least, most): (u64, u64)) -> Result<Option<String>, Failure> {
    let Some(value) = value.filter(|value| *value != 0) else { return Ok(None) };
    if !(least..=most).contains(&value) {
        return Err(Failure::invalid(format!("{field} can't be {value}")));
    }
    Ok(Some((1 + (value - least) * (MAX_WEIGHT - 1) / (most - least)).to_string()))
}

/// A list of numbers and ranges; the kernel checks the rest. An empty one leaves what is.
fn list<'a>(field: &str, text: Option<&'a str>) -> Result<Option<String>, Failure> {
    let Some(text) = text.filter(|text: &&'a str| !text.is_empty()) else { return Ok(None) };
    if !text.chars().all(|c| c.is_ascii_digit() || matches!(c, ',' | '-')) {
        return Err(Failure::invalid(format!("{field} {text:?} is no list")));
    }
    Ok(Some(text.to_owned()))
}

fn hugepage_file(limit: &LinuxHugepageLimit) -> Result<String, Failure> {
    let size = limit.page_size();
    if size.is_empty() || !size.chars().all(|c| c.is_ascii_alphanumeric()) {
        return Err(Failure::invalid(format!("hugepageLimits: {size:?} is no page size")));
    }
    Ok(format!("hugetlb.{size}.max"))
}

/// A file of a controller, not one of the cgroup itself.
fn unified_file(file: &str) -> Result<&str, Failure> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_');
    let controllers = !file.starts_with("cgroup.") && file.find('.').is_some_and(|dot| dot > 0);
    if controllers && file.chars().all(plain) {
        return Ok(file);
    }
    Err(Failure::invalid(format!("unified: {file:?} is no file of a controller")))
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
#[path = "limits_test.rs"]
mod tests;
