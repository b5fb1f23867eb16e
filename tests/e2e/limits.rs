//! cgroup limits: they bind, and what they do is reported.

use std::collections::HashMap;

use crate::harness::Hull;

#[test]
fn allocating_beyond_the_memory_limit_is_killed_and_reported() {
    let run = Hull::new().sh(&["--memory", "50m"], "exec dd if=/dev/zero of=/dev/null bs=100M count=1");
    assert_eq!(run.code, Some(137), "{run:?}");
    assert!(run.stderr.to_lowercase().contains("memory") && run.stderr.contains("50"), "{run:?}");
}

#[test]
fn allocating_within_the_memory_limit_works() {
    let run = Hull::new().sh(
        &["--memory", "50m"],
        "dd if=/dev/zero of=/dev/null bs=30M count=1 2>/dev/null && cat /sys/fs/cgroup/memory.max",
    );
    assert_eq!(run.ok(), "52428800\n");
}

#[test]
fn half_a_processor_is_half_a_processor() {
    let run = Hull::new().sh(
        &["--cpus", "0.5"],
        "timeout 5 sh -c 'while :; do :; done'; cat /sys/fs/cgroup/cpu.max /sys/fs/cgroup/cpu.stat",
    );
    let text = run.ok();
    let (max, stat) = text.split_once('\n').unwrap();
    let (quota, period) = max.split_once(' ').unwrap();
    let (quota, period): (u64, u64) = (quota.parse().unwrap(), period.parse().unwrap());
    assert_eq!(quota * 2, period);
    let stat: HashMap<_, u64> = stat
        .lines()
        .map(|line| line.split_once(' ').unwrap())
        .map(|(key, value)| (key, value.parse().unwrap()))
        .collect();
    assert!(stat["nr_throttled"] > 0, "{stat:?}");
    let allowed = stat["nr_periods"] * quota;
    assert!(stat["usage_usec"] * 10 <= allowed * 11, "{stat:?}, allowed {allowed}");
}

#[test]
fn the_pids_limit_stops_a_fork_bomb() {
    let run = Hull::new().sh(
        &["--pids-limit", "10"],
        "cat /sys/fs/cgroup/pids.max; i=0; while [ $i -lt 30 ]; do sleep 60 & i=$((i+1)); done; echo all",
    );
    assert!(run.text().starts_with("10\n"), "{run:?}");
    assert!(!run.text().contains("all"), "{run:?}");
    assert!(run.stderr.contains("fork"), "{run:?}");
}

#[test]
fn resource_limits_sysctls_and_tmpfs_are_as_asked() {
    let run = Hull::new().sh(
        &["--ulimit", "nofile=123:456", "--sysctl", "net.ipv4.ip_forward=1", "--tmpfs", "/scratch:size=1m,mode=700"],
        "ulimit -n; ulimit -Hn; cat /proc/sys/net/ipv4/ip_forward; stat -c %a /scratch; \
         dd if=/dev/zero of=/scratch/f bs=64k count=100 2>/dev/null || stat -c %s /scratch/f",
    );
    assert_eq!(run.ok(), "123\n456\n1\n700\n1048576\n");
}

#[test]
fn a_read_only_container_cannot_write_its_root_but_its_tmpfs() {
    let run = Hull::new().sh(
        &["--read-only", "--tmpfs", "/tmp"],
        "touch /tmp/ok && echo tmp; touch /no 2>&1 | grep -o 'Read-only file system'",
    );
    assert_eq!(run.ok(), "tmp\nRead-only file system\n");
}

#[test]
fn capabilities_are_dockers_defaults_and_change_by_flag() {
    let hull = Hull::new();
    let capabilities = |flags: &[&str]| {
        let text = hull.sh(flags, "grep CapEff /proc/self/status").ok();
        u64::from_str_radix(text.split_whitespace().last().unwrap(), 16).unwrap()
    };
    assert_eq!(capabilities(&[]), 0xa804_25fb);
    assert_eq!(capabilities(&["--cap-drop", "ALL"]), 0);
    assert_eq!(capabilities(&["--cap-drop", "ALL", "--cap-add", "NET_ADMIN"]), 1 << 12);
}
