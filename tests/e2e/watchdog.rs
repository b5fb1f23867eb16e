//! A guest that hangs is noticed, and one that doesn't is left alone.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use serde_json::{Value, json};

use crate::harness::{Hull, wait_for};
use crate::monitor::exited;
use crate::vmm_harness::Vm;

/// A machine with a watchdog whose time is short.
fn vm(seconds: u32, script: &str, watchdog: Value) -> Vm {
    let script = format!("exec >/dev/console 2>&1; {script}");
    Vm::with_init(&script).boot_args(&format!("i6300esb.heartbeat={seconds}")).set("/watchdog", watchdog)
}

#[test]
fn a_guest_that_falls_silent_is_ended_with_status_7_and_the_end_of_its_console() {
    let guest = "exec 3>/dev/watchdog; for i in 1 2 3; do echo >&3; sleep 1; done; say last words; while :; do :; done";
    let (run, _) = vm(4, guest, json!({})).events().run();
    run.fails(7, &["watchdog", "nothing was heard of the guest for"]);
    let end = exited(&run);
    assert_eq!(end["cause"], "watchdog");
    assert!(end["console_tail"].as_str().unwrap().contains("last words"), "{end}");
}

#[test]
fn a_guest_that_resets_its_watchdog_and_then_closes_it_in_order_lives() {
    let guest = "exec 3>/dev/watchdog; i=0; while [ $i -lt 40 ]; do echo >&3; sleep 0.5; i=$((i + 1)); done
        echo -n V >&3; exec 3>&-; say closed; sleep 15; say still here; poweroff -f";
    let (run, console) = vm(12, guest, json!({})).run();
    run.ok();
    assert!(console.contains("still here"), "{console}");
}

#[test]
fn silence_can_be_counted_only_and_a_pause_is_no_silence() {
    let guest = "exec 3>/dev/watchdog; echo >&3; say silent; while :; do sleep 1; done";
    let mut vm = vm(6, guest, json!({ "action": "Report" })).control().start();
    vm.wait_for("silent");
    assert_eq!(vm.request("PATCH", "/vm", r#"{"state": "Paused"}"#).0, 204);
    let before = vm.get("/stats")["watchdog"].clone();
    std::thread::sleep(std::time::Duration::from_secs(8));
    assert_eq!(vm.get("/stats")["watchdog"], before);
    assert_eq!(vm.request("PATCH", "/vm", r#"{"state": "Resumed"}"#).0, 204);
    wait_for("the silence to be counted", || vm.get("/stats")["watchdog"]["expirations"] == 1);
    assert_eq!(vm.get("/vm")["state"], "Running");
    assert_eq!(vm.request("PUT", "/actions", r#"{"action_type": "Stop"}"#).0, 204);
    let (run, _) = vm.finish();
    run.ok();
    assert_eq!(run.stderr.matches("nothing was heard").count(), 1, "{}", run.stderr);
}

#[test]
fn the_agent_resets_the_watchdog_and_lets_go_of_it_at_the_end() {
    let hull = Hull::new();
    let running = hull.start(&["--watchdog"], "echo up; sleep 600", "up");
    let stats = || -> Value {
        let dir = fs::read_dir(hull.runtime()).unwrap().next().unwrap().unwrap().path();
        let mut stream = UnixStream::connect(dir.join("api")).unwrap();
        stream.write_all(b"GET /stats HTTP/1.1\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap()
    };
    let reloads = || stats()["watchdog"]["reloads"].as_u64().unwrap();
    let first = reloads();
    wait_for("two more resets", || reloads() >= first + 2);
    assert_eq!(stats()["watchdog"]["expirations"], 0);
    running.signal(nix::sys::signal::Signal::SIGKILL);
    running.finish();
    hull.sh(&["--watchdog"], "true").ok();
    assert!(hull.sh(&[], "ls /dev/watchdog").stderr.contains("No such file"));
}
