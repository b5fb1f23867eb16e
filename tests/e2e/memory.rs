//! Memory that comes and goes: the balloon.

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
