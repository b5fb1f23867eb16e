use proptest::prelude::*;
use serde_json::{Value, json};
use ttrpc::Code;

use super::*;

fn cgroup() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (file, text) in [
        ("memory.max", "max\n"),
        ("memory.low", "0\n"),
        ("cpu.max", "max 100000\n"),
        ("cpu.weight", "100\n"),
        ("cpuset.cpus", "\n"),
        ("memory.stat", "anon 1000\nfile 5000\nshmem 24\n"),
    ] {
        fs::write(dir.path().join(file), text).unwrap();
    }
    dir
}

fn set(dir: &tempfile::TempDir, resources: Value) -> Result<(), Failure> {
    update(dir.path(), &serde_json::from_value(resources).unwrap())
}

fn read(dir: &tempfile::TempDir, file: &str) -> String {
    fs::read_to_string(dir.path().join(file)).unwrap()
}

fn code(result: Result<(), Failure>) -> Code {
    result.unwrap_err().code
}

#[test]
fn named_limits_are_set_and_the_others_stay() {
    let dir = cgroup();
    set(&dir, json!({ "memory": { "limit": 4096, "reservation": 2048 } })).unwrap();
    assert_eq!((read(&dir, "memory.max"), read(&dir, "memory.low")), ("4096".into(), "2048".into()));
    assert_eq!(read(&dir, "cpu.max"), "max 100000\n");
    set(&dir, json!({ "memory": { "limit": -1 }, "cpu": { "quota": 50_000, "cpus": "0-1" } })).unwrap();
    assert_eq!((read(&dir, "memory.max"), read(&dir, "cpu.max")), ("max".into(), "50000 100000".into()));
    assert_eq!(read(&dir, "cpuset.cpus"), "0-1");
    // Each half of it alone.
    set(&dir, json!({ "cpu": { "period": 20_000, "quota": 0 } })).unwrap();
    assert_eq!(read(&dir, "cpu.max"), "50000 20000");
    set(&dir, json!({ "cpu": { "quota": -1 } })).unwrap();
    assert_eq!(read(&dir, "cpu.max"), "max 20000");
}

#[test]
fn ranges_of_the_first_version_are_mapped_to_the_second() {
    let dir = cgroup();
    for (shares, weight) in [(2, "1"), (1024, "39"), (262_144, "10000")] {
        set(&dir, json!({ "cpu": { "shares": shares } })).unwrap();
        assert_eq!(read(&dir, "cpu.weight"), weight);
    }
    assert_eq!(weight("x", Some(1000), IO_WEIGHTS), Ok(Some("10000".into())));
    let swap = |swap, limit| {
        let mut memory = LinuxMemory::default();
        memory.set_swap(Some(swap)).set_limit(Some(limit));
        super::swap(&memory)
    };
    assert_eq!((swap(30, 10), swap(-1, 10)), (Ok(Some("20".into())), Ok(Some("max".into()))));
    assert!(swap(5, 10).is_err() && swap(5, -1).is_err());
}

#[test]
fn what_the_kernel_has_no_file_for_is_an_error_unless_nothing_is_lost() {
    let dir = cgroup();
    set(&dir, json!({ "memory": { "limit": 4096, "swap": 4096 }, "blockIO": { "weight": 500 } })).unwrap();
    assert!(set(&dir, json!({ "hugepageLimits": [{ "pageSize": "1GB", "limit": 1 }] })).is_err());
}

#[test]
fn a_failure_leaves_all_as_it_was() {
    let dir = cgroup();
    // There is no pids.max.
    assert!(
        set(&dir, json!({ "memory": { "limit": 4096 }, "cpu": { "quota": 50_000 }, "pids": { "limit": 7 } })).is_err()
    );
    assert_eq!((read(&dir, "memory.max"), read(&dir, "cpu.max")), ("max".into(), "max 100000".into()));
}

#[test]
fn what_would_end_in_a_kill_is_refused() {
    let dir = cgroup();
    assert_eq!(code(set(&dir, json!({ "memory": { "limit": 1023 } }))), Code::FAILED_PRECONDITION);
    set(&dir, json!({ "memory": { "limit": 1024 } })).unwrap();
}

#[test]
fn nonsense_is_refused() {
    let dir = cgroup();
    for resources in [
        json!({ "memory": { "limit": -2 } }),
        json!({ "cpu": { "quota": 999 } }),
        json!({ "cpu": { "period": 999 } }),
        json!({ "cpu": { "shares": 1 } }),
        json!({ "cpu": { "cpus": "all\n" } }),
        json!({ "hugepageLimits": [{ "pageSize": "../x", "limit": 1 }] }),
        json!({ "unified": { "../memory.max": "1" } }),
        json!({ "unified": { "cgroup.procs": "1" } }),
        json!({ "unified": { ".x": "1" } }),
    ] {
        assert_eq!(code(set(&dir, resources.clone())), Code::INVALID_ARGUMENT, "{resources}");
    }
}

proptest! {
    #[test]
    fn no_numbers_panic(quota: i64, period: u64, shares: u64, limit: i64, swap: i64, weight: u16) {
        let resources = json!({
            "cpu": { "quota": quota, "period": period, "shares": shares },
            "memory": { "limit": limit, "swap": swap },
            "blockIO": { "weight": weight },
        });
        let _ = changes(&serde_json::from_value(resources).unwrap(), "x y z");
    }
}
