//! Memory that comes and goes: balloon and plugged memory.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::harness::wait_for;
use crate::vmm_harness::{Started, Vm};

/// Fills and empties a file in memory; `$1` is its size in MiB.
const FILE: &str = "mkdir /m; mount -t tmpfs -o size=90% tmpfs /m
fill() { dd if=/dev/zero of=/m/f bs=1M count=$1 2>/dev/null && say filled $1; }
";

fn guest_resident_mib(vm: &Started) -> u64 {
    vm.get("/stats")["memory"]["guest_resident_kib"].as_u64().unwrap() / 1024
}

fn patch(vm: &Started, path: &str, body: &Value) {
    assert_eq!(vm.request("PATCH", path, &body.to_string()), (204, Value::Null), "{path} {body}");
}

fn stop(vm: Started) {
    assert_eq!(vm.request("PUT", "/actions", r#"{"action_type": "Stop"}"#).0, 204);
    vm.finish().0.ok();
}

#[test]
fn free_pages_go_back_to_the_host_on_their_own() {
    let script = format!("{FILE} fill 200; sleep 2; rm /m/f; say deleted; sleep 1000");
    let mut vm = Vm::with_init(&script).memory_mib(384).set("/balloon", json!({})).control().start();
    vm.wait_for("filled 200");
    let filled = guest_resident_mib(&vm);
    assert!(filled >= 200, "{filled} MiB");
    vm.wait_for("deleted");
    wait_for("free pages to go back", || guest_resident_mib(&vm) + 170 < filled);
    assert!(vm.get("/balloon")["reclaim"]["reported_bytes"].as_u64().unwrap() >= 170 << 20);
    stop(vm);
}

#[test]
fn a_balloon_takes_what_it_is_told_and_gives_it_back() {
    let script = format!(
        "{FILE} fill 180; rm /m/f; say deleted
        while ! [ -e /m/go ]; do [ $(awk '/MemAvailable/ {{ print int($2 / 1024) }}' /proc/meminfo) -gt 190 ] || break; sleep 1; done
        say small; until fill 180; do sleep 1; done; sleep 1000"
    );
    let balloon = json!({ "stats_polling_interval_s": 1, "free_page_reporting": false });
    let mut vm = Vm::with_init(&script).memory_mib(256).set("/balloon", balloon).control().start();
    vm.wait_for("deleted");
    let before = guest_resident_mib(&vm);
    assert_eq!(vm.get("/balloon")["actual_mib"], 0);
    wait_for("statistics", || vm.get("/balloon/statistics")["total_memory"].is_u64());

    patch(&vm, "/balloon", &json!({ "amount_mib": 64 }));
    wait_for("the balloon to inflate", || vm.get("/balloon")["actual_mib"] == 64);
    let inflated = guest_resident_mib(&vm);
    assert!(before - inflated >= 56, "{before} MiB before, {inflated} MiB with a balloon of 64 MiB");
    vm.wait_for("small");
    let statistics: BTreeMap<String, u64> =
        serde_json::from_value(vm.get("/balloon/statistics")).expect("all are numbers");
    assert!(statistics["target_mib"] == 64 && statistics["free_memory"] < statistics["total_memory"], "{statistics:?}");

    patch(&vm, "/balloon", &json!({ "amount_mib": 0 }));
    wait_for("the balloon to deflate", || vm.get("/balloon")["actual_mib"] == 0);
    vm.wait_for("filled 180");
    assert!(guest_resident_mib(&vm) >= 180);
    assert_eq!(vm.request("PATCH", "/balloon", r#"{"amount_mib": 257}"#).0, 400);
    stop(vm);
}

#[test]
fn a_balloon_gives_way_before_the_guest_kills_a_process_if_it_may() {
    let outcome = |deflate_on_oom: bool| {
        let script = "until [ -e /tmp/x ]; do
            [ $(awk '/MemFree/ { print int($2 / 1024) }' /proc/meminfo) -lt 35 ] && break; sleep 1; done
            dd if=/dev/zero of=/dev/null bs=50M count=1; say dd says $?; poweroff -f";
        let balloon = json!({ "amount_mib": 70, "deflate_on_oom": deflate_on_oom });
        let (run, console) = Vm::with_init(script).memory_mib(128).set("/balloon", balloon).run();
        run.ok();
        console.contains("dd says 0")
    };
    assert!(outcome(true), "the balloon did not give way");
    assert!(!outcome(false), "the guest had memory enough without the balloon: this test shows nothing");
}

/// `total` prints the guest's memory in MiB.
const TOTAL: &str = "total() { awk '/MemTotal/ { print int($2 / 1024) }' /proc/meminfo; }\n";

fn plugged_mib(vm: &Started) -> u64 {
    vm.get("/hotplug/memory")["plugged_size_mib"].as_u64().unwrap()
}

fn request_mib(vm: &Started, mib: u64) {
    patch(vm, "/hotplug/memory", &json!({ "requested_size_mib": mib }));
}

#[test]
fn a_small_vm_grows_uses_its_memory_and_shrinks_again() {
    let script = format!(
        "{FILE}{TOTAL} say up; until [ $(total) -gt 900 ]; do sleep 1; done; say grown
        mount -o remount,size=90% /m; fill 700; rm /m/f; say deleted
        while [ $(total) -gt 400 ]; do sleep 1; done; say shrunk; sleep 1000"
    );
    let vm = Vm::with_init(&script).memory_mib(128).set("/memory-hotplug", json!({ "total_size_mib": 1024 }));
    let mut vm = vm.control().start();
    vm.wait_for("up");
    assert_eq!(
        vm.get("/hotplug/memory"),
        json!({ "total_size_mib": 1024, "block_size_mib": 2, "slot_size_mib": 128, "plugged_size_mib": 0,
            "requested_size_mib": 0 })
    );
    // Not a whole number of memory blocks of its kernel.
    request_mib(&vm, 900);
    vm.wait_for("grown");
    wait_for("all to be plugged", || plugged_mib(&vm) == 900);
    vm.wait_for("filled 700");
    assert!(guest_resident_mib(&vm) >= 700);
    vm.wait_for("deleted");
    request_mib(&vm, 0);
    vm.wait_for("shrunk");
    wait_for("memory to go back", || guest_resident_mib(&vm) < 300);
    assert!(plugged_mib(&vm) <= 270, "{} MiB are still plugged", plugged_mib(&vm));
    for (body, problem) in
        [(r#"{"requested_size_mib": 1}"#, "multiple of 2"), (r#"{"requested_size_mib": 1026}"#, "at most")]
    {
        let (status, answer) = vm.request("PATCH", "/hotplug/memory", body);
        assert!(status == 400 && answer.to_string().contains(problem), "{body}: {answer}");
    }
    stop(vm);
}

#[test]
fn memory_in_use_stays_plugged_and_its_user_unharmed() {
    let script = format!(
        "{FILE}{TOTAL} say up; until [ $(total) -gt 500 ]; do sleep 1; done
        mount -o remount,size=90% /m; fill 400; sum=$(md5sum /m/f)
        while [ $(total) -gt 590 ]; do sleep 1; done; sleep 10
        [ \"$(md5sum /m/f)\" = \"$sum\" ] && say unharmed; rm /m/f; say deleted; sleep 1000"
    );
    let vm = Vm::with_init(&script).memory_mib(128).set("/memory-hotplug", json!({ "total_size_mib": 512 }));
    let mut vm = vm.control().start();
    vm.wait_for("up");
    request_mib(&vm, 512);
    vm.wait_for("filled 400");
    request_mib(&vm, 0);
    vm.wait_for("unharmed");
    let status = vm.get("/hotplug/memory");
    assert!(status["requested_size_mib"] == 0 && plugged_mib(&vm) >= 300, "{status}");
    vm.wait_for("deleted");
    request_mib(&vm, 2);
    request_mib(&vm, 0);
    wait_for("memory to be unplugged", || plugged_mib(&vm) < 200);
    stop(vm);
}
