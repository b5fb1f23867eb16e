//! Block devices as a guest uses them.

use std::fs;
use std::io::Write;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::vmm_harness::{Started, Vm};

const DISK_MIB: u64 = 16;

/// A disk of random bytes at `name` in the directory of the VM.
fn add_disk(vm: Vm, name: &str, more: &Value) -> Vm {
    let path = vm.path(name);
    let mut content = vec![0; usize::try_from(DISK_MIB << 20).unwrap()];
    std::io::Read::read_exact(&mut fs::File::open("/dev/urandom").unwrap(), &mut content).unwrap();
    fs::File::create(&path).unwrap().write_all(&content).unwrap();
    let mut drive = json!({ "drive_id": name, "path_on_host": path });
    drive.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    vm.set("/drives", json!([drive]))
}

fn drive(vm: &Started) -> Value {
    let stats = vm.get("/stats");
    stats["devices"].as_array().unwrap().iter().find(|device| device["kind"] == "drive").unwrap().clone()
}

fn stop(vm: Started) {
    assert_eq!(vm.request("PUT", "/actions", r#"{"action_type": "Stop"}"#).0, 204);
    vm.finish().0.ok();
}

/// Copies one half of the disk over the other, past the guest's page cache, and compares.
const COPY: &str = "D=/dev/vda; cd /tmp 2>/dev/null || mkdir /tmp
    dd if=$D of=$D bs=256k count=32 seek=32 iflag=direct oflag=direct conv=notrunc 2>/dev/null || say copy failed
    dd if=$D bs=4k count=2048 iflag=direct 2>/dev/null | sha256sum >/tmp/a
    dd if=$D bs=64k count=128 skip=128 iflag=direct 2>/dev/null | sha256sum >/tmp/b
    sync; cmp /tmp/a /tmp/b && say halves are the same; sleep 1000";

#[test]
fn data_is_right_with_each_engine_and_queue() {
    for (engine, vcpus) in [("Sync", 1), ("Async", 1), ("Sync", 2), ("Async", 2)] {
        let vm = add_disk(Vm::with_init(COPY).control(), "disk", &json!({ "io_engine": engine }));
        let mut vm = vm.set("/machine-config/vcpu_count", json!(vcpus)).start();
        vm.wait_for("halves are the same");
        let drive = drive(&vm);
        assert_eq!(drive["engine"], engine, "the testbed has io_uring");
        let count = |name: &str| drive["counters"][name].as_u64().unwrap();
        let (requests, doorbells, interrupts) = (count("requests"), count("notifications"), count("interrupts"));
        println!("{engine}, {vcpus} vCPUs: {requests} requests, {doorbells} doorbells, {interrupts} interrupts");
        assert!(doorbells <= requests && interrupts <= requests && count("errors") == 0, "{drive}");
        let content = fs::read(vm.path("disk")).unwrap();
        let (first, second) = content.split_at(content.len() / 2);
        assert!(first == second, "{engine}: the image is not what the guest sees");
        stop(vm);
    }
}

#[test]
fn what_was_synced_outlives_the_monitor() {
    let script =
        "dd if=/dev/zero bs=1M count=8 2>/dev/null | tr '\\0' z | dd of=/dev/vda bs=1M conv=notrunc,fsync 2>/dev/null
        say synced; while :; do dd if=/dev/zero of=/dev/vda bs=64k seek=128 count=64 conv=notrunc 2>/dev/null; done";
    for engine in ["Sync", "Async"] {
        let mut vm = add_disk(Vm::with_init(script), "disk", &json!({ "io_engine": engine })).start();
        vm.wait_for("synced");
        vm.signal(Signal::SIGKILL);
        let path = vm.path("disk");
        let content = fs::read(path).unwrap();
        assert!(content[..8 << 20].iter().all(|&byte| byte == b'z'), "{engine}");
    }
}
