//! A VM that changes while its container runs: drives, processors, memory.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use serde_json::Value;

use crate::harness::{Hull, Running, soak, wait_for};

/// Of the disks that are plugged in these tests.
const DISK_BYTES: u64 = 4 << 20;

fn disk() -> tempfile::NamedTempFile {
    let disk = tempfile::NamedTempFile::new().unwrap();
    disk.as_file().set_len(DISK_BYTES).unwrap();
    disk
}

/// A container that reports its processors each time that a file changes.
fn start(hull: &Hull, flags: &[&str], script: &str) -> Running {
    let running = hull.start(&[&["--init", "--name", "web"], flags].concat(), script, "up");
    // It is listed as running a moment after its first output.
    wait_for("the container to be listed as running", || hull.hull(["ps"]).ok().contains("running"));
    running
}

const IDLE: &str = "echo up; exec sleep 600";

/// Identifiers and names in the guest.
fn devices(hull: &Hull) -> Vec<(String, String)> {
    let list: Value = serde_json::from_str(&hull.hull(["device", "ls", "--json", "web"]).ok()).unwrap();
    let text = |device: &Value, key: &str| device[key].as_str().unwrap().to_owned();
    list.as_array().unwrap().iter().map(|device| (text(device, "name"), text(device, "guest_name"))).collect()
}

fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    expected.iter().map(|(id, name)| ((*id).into(), (*name).into())).collect()
}

/// The control socket of the only VM.
fn control(hull: &Hull) -> PathBuf {
    let dir = fs::read_dir(hull.runtime()).unwrap().next().unwrap().unwrap().path();
    dir.join("api")
}

fn request(hull: &Hull, method: &str, path: &str, body: &str) -> String {
    let mut stream = UnixStream::connect(control(hull)).unwrap();
    let head = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    stream.write_all(head.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn a_drive_is_plugged_into_a_running_vm_and_unplugged_again_and_again() {
    let hull = Hull::new();
    let running = start(&hull, &[], IDLE);
    let disk = disk();
    let path = disk.path().to_str().unwrap();
    let rounds = if soak() > 1 { 100 } else { 3 };
    for _ in 0..rounds {
        assert_eq!(hull.hull(["device", "add", "--drive", path, "web"]).ok(), "drive1\n");
        assert_eq!(devices(&hull), pairs(&[("image", "vda"), ("drive1", "vdb")]));
        assert_eq!(hull.hull(["device", "rm", "web", "drive1"]).ok(), "drive1\n");
        assert_eq!(devices(&hull), pairs(&[("image", "vda")]));
    }
    running.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(running.finish().code, Some(143));
}

#[test]
fn several_drives_have_names_of_their_own_and_go_in_any_order() {
    let hull = Hull::new();
    let running = start(&hull, &[], IDLE);
    let (one, two) = (disk(), disk());
    let add = |args: &[&str]| hull.hull([&["device", "add"], args, &["web"]].concat());
    let one = one.path().to_str().unwrap();
    assert_eq!(add(&["--drive", one, "--id", "data"]).ok(), "data\n");
    assert_eq!(add(&["--drive", &format!("{}:ro", two.path().display())]).ok(), "drive1\n");
    assert_eq!(devices(&hull), pairs(&[("image", "vda"), ("data", "vdb"), ("drive1", "vdc")]));
    add(&["--drive", one, "--id", "data"]).fails(125, &["there is a drive data already"]);
    add(&["--drive", "/no/such"]).fails(125, &["/no/such", "no such file"]);
    assert_eq!(hull.hull(["device", "rm", "web", "data", "drive1"]).ok(), "data\ndrive1\n");
    assert_eq!(devices(&hull), pairs(&[("image", "vda")]));
    hull.hull(["device", "rm", "web", "data"]).fails(125, &["no drive data"]);
    running.signal(nix::sys::signal::Signal::SIGTERM);
    running.finish();
}

#[test]
fn a_drive_in_use_stays() {
    let hull = Hull::new();
    let running = start(&hull, &[], IDLE);
    // The container's own root file system.
    hull.hull(["device", "rm", "web", "image"]).fails(125, &["image", "in use", "mounted"]);
    assert_eq!(devices(&hull), pairs(&[("image", "vda")]));
    running.signal(nix::sys::signal::Signal::SIGTERM);
    running.finish();
}

#[test]
fn a_guest_that_is_held_is_not_given_a_drive() {
    let hull = Hull::new();
    let running = start(&hull, &[], IDLE);
    let disk = disk();
    let paused = request(&hull, "PATCH", "/vm", "{\"state\":\"Paused\"}");
    assert!(paused.starts_with("HTTP/1.1 204"), "{paused}");
    let add = ["device", "add", "--drive", disk.path().to_str().unwrap(), "web"];
    hull.hull(add).fails(125, &["paused"]);
    hull.hull(["update", "--vcpus", "1", "web"]).fails(125, &["paused"]);
    assert!(!request(&hull, "GET", "/vm/config", "").contains("drive1"));
    request(&hull, "PATCH", "/vm", "{\"state\":\"Resumed\"}");
    assert_eq!(hull.hull(add).ok(), "drive1\n");
    running.signal(nix::sys::signal::Signal::SIGTERM);
    running.finish();
}

/// Prints how many processors it has when that changes.
const WATCH_CPUS: &str =
    "echo up; while :; do n=$(nproc); [ \"$n\" = \"$m\" ] || echo \"cpus $n\"; m=$n; sleep 0.2; done";

#[test]
fn processors_come_and_go() {
    let hull = Hull::new();
    let running = start(&hull, &["--max-vcpus", "4"], WATCH_CPUS);
    wait_for("one processor", || running.stdout().ends_with("cpus 1\n"));
    for (count, seen) in [("4", "cpus 4\n"), ("2", "cpus 2\n"), ("3", "cpus 3\n"), ("1", "cpus 1\n")] {
        hull.hull(["update", "--vcpus", count, "web"]).ok();
        wait_for(seen, || running.stdout().ends_with(seen));
        let listed: Value = serde_json::from_str(&hull.hull(["ps", "--json"]).ok()).unwrap();
        assert_eq!(listed[0]["vcpus"].to_string(), count);
    }
    hull.hull(["update", "--vcpus", "5", "web"]).fails(125, &["at most 4 processors", "--max-vcpus 5"]);
    running.signal(nix::sys::signal::Signal::SIGTERM);
    running.finish();
}

#[test]
fn limits_change_and_the_vm_follows_them() {
    let hull = Hull::new();
    let watch = "echo up; cd /sys/fs/cgroup; while :; do \
        n=\"$(cat memory.max) $(cat cpu.max) $(cat pids.max)\"; [ \"$n\" = \"$m\" ] || echo \"limits $n\"; m=$n; sleep 0.2; done";
    let running = start(&hull, &["--max-vcpus", "2", "--memory", "64m"], watch);
    wait_for("the first limits", || running.stdout().contains("limits 67108864 max 100000"));
    hull.hull(["update", "--memory", "48m", "--cpus", "0.5", "--vcpus", "2", "--pids-limit", "77", "web"]).ok();
    wait_for("the new limits", || running.stdout().ends_with("limits 50331648 50000 100000 77\n"));
    let listed: Value = serde_json::from_str(&hull.hull(["ps", "--json"]).ok()).unwrap();
    assert_eq!(listed[0]["vcpus"], 2);
    // All or nothing: this VM has no third processor.
    let both = hull.hull(["update", "--memory", "40m", "--vcpus", "3", "web"]);
    both.fails(125, &["at most 2 processors"]);
    hull.hull(["update", "web"]).fails(125, &["nothing to update"]);
    assert!(running.stdout().ends_with("limits 50331648 50000 100000 77\n"));
    running.signal(nix::sys::signal::Signal::SIGTERM);
    running.finish();
}

/// `total` prints the VM's memory in MiB.
const TOTAL: &str = "total() { awk '/MemTotal/ { print int($2 / 1024) }' /proc/meminfo; }; ";

/// Resident memory of the only monitor in MiB.
fn resident_mib(hull: &Hull) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", hull.monitors()[0])).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
}

/// The record's view of the VM's memory.
fn listed_mib(hull: &Hull) -> u64 {
    let listed: Value = serde_json::from_str(&hull.hull(["ps", "--json"]).ok()).unwrap();
    listed[0]["memory_mib"].as_u64().unwrap()
}

#[test]
fn a_small_vm_grows_for_its_container_and_gives_memory_back() {
    let hull = Hull::new();
    let script = format!(
        "{TOTAL} echo up; until [ $(total) -gt 900 ]; do sleep 0.5; done
        dd if=/dev/zero of=/big/f bs=1M count=700 2>/dev/null && echo filled
        rm /big/f; echo deleted; until [ $(total) -lt 400 ]; do sleep 0.5; done; echo shrunk; exec sleep 600"
    );
    let flags = ["--vm-memory", "96m", "--max-memory", "1g", "--tmpfs", "/big:size=800m"];
    let running = start(&hull, &flags, &script);
    assert!(resident_mib(&hull) < 110, "{} MiB at the start", resident_mib(&hull));
    hull.hull(["update", "--vm-memory", "1025m", "web"]).fails(125, &["at most 1024 MiB", "--max-memory 1025m"]);
    hull.hull(["update", "--vm-memory", "64m", "web"]).fails(125, &["96 to 1024 MiB"]);
    assert_eq!(listed_mib(&hull), 96);

    assert_eq!(hull.hull(["update", "--vm-memory", "1g", "web"]).ok(), "web\n");
    assert_eq!(listed_mib(&hull), 1024);
    wait_for("the container to use its memory", || running.stdout().contains("deleted"));
    assert!(running.stdout().contains("filled"), "{}", running.stdout());
    let full = resident_mib(&hull);
    assert!(full >= 700, "{full} MiB with 700 MiB in use");

    assert_eq!(hull.hull(["update", "--vm-memory", "256m", "web"]).ok(), "web\n");
    wait_for("the container to see it", || running.stdout().contains("shrunk"));
    assert_eq!(listed_mib(&hull), 256);
    let shrunk = resident_mib(&hull);
    assert!(shrunk <= 270, "{shrunk} MiB of {full} MiB in a VM of 256 MiB");
    running.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(running.finish().code, Some(143));
}

#[test]
fn memory_in_use_is_not_taken_and_the_command_says_so() {
    let hull = Hull::new();
    let script = "echo up; until [ $(cat /sys/fs/cgroup/memory.max) -gt 600000000 ]; do sleep 0.5; done
        dd if=/dev/zero of=/big/f bs=1M count=400 2>/dev/null
        md5sum /big/f >/sum; echo filled; while :; do md5sum -c -s /sum || echo harmed; sleep 0.5; done";
    let flags = ["--vm-memory", "128m", "--memory", "100m", "--max-memory", "1g", "--tmpfs", "/big:size=500m"];
    let running = start(&hull, &flags, script);
    // The VM follows its container's limit.
    hull.hull(["update", "--memory", "600m", "web"]).ok();
    assert_eq!(listed_mib(&hull), 600 + 9 + 64 + 1);
    wait_for("the container to use its memory", || running.stdout().contains("filled"));
    hull.hull(["update", "--vm-memory", "128m", "web"]).fails(125, &["gave back", "not to 128 MiB", "in use"]);
    let left = listed_mib(&hull);
    assert!((500..674).contains(&left), "{left} MiB left");
    assert!(!running.stdout().contains("harmed"), "{}", running.stdout());
    hull.hull(["update", "--memory", "2g", "web"]).fails(125, &["at most 1024 MiB", "--max-memory"]);
    running.signal(nix::sys::signal::Signal::SIGTERM);
    running.finish();
}

#[test]
fn memory_comes_and_goes_again_and_again() {
    let hull = Hull::new();
    let running = start(&hull, &["--vm-memory", "96m", "--max-memory", "608m"], IDLE);
    let rounds = if soak() > 1 { 100 } else { 3 };
    for round in 0..rounds {
        hull.hull(["update", "--vm-memory", "608m", "web"]).ok();
        assert_eq!(listed_mib(&hull), 608, "round {round}");
        // Some of what was plugged may hold what its kernel can't move.
        hull.hull(["update", "--vm-memory", "224m", "web"]).ok();
        assert_eq!(listed_mib(&hull), 224, "round {round}");
    }
    assert!(resident_mib(&hull) < 120, "{} MiB after {rounds} rounds", resident_mib(&hull));
    running.signal(nix::sys::signal::Signal::SIGTERM);
    running.finish();
}
