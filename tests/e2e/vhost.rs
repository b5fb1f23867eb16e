//! A network interface whose frames the host's kernel moves.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use crate::harness::wait_for;
use crate::network::{Background, Tap, iperf_server};
use crate::vmm_harness::{Started, Vm};

/// What the guest does: data each way, the driver taken away and given back, and data again.
const GUEST: &str = r#"
up() { ip addr add $guest/24 dev eth0; ip link set eth0 up; }
run() { iperf3 --client $host --time 2 --interval 0 "$@" >/tmp/out 2>&1 && say $(grep -o '[0-9.]* [MGK]bits/sec' /tmp/out) && say $what done || { cat /tmp/out; say $what failed; }; }
fetch() { wget -q -O /tmp/file http://$host:8078/file; say sum $(sha256sum </tmp/file); }
exec >/dev/console 2>&1; ip link set lo up; up
say queues $(ls -d /sys/class/net/eth0/queues/rx-* | wc -l)
ping -c 2 $host && say pinged
httpd -p 8079 -h /tmp; fetch
what=tx run; what=rx run --reverse; what=both run --bidir --parallel 2
say moved
device=$(basename $(readlink -f /sys/class/net/eth0/device)); driver=/sys/bus/virtio/drivers/virtio_net
for i in 1 2 3; do
  echo $device >$driver/unbind; [ -e /sys/class/net/eth0 ] || say unbound; echo $device >$driver/bind
  up; ping -c 1 $host && say back
done
fetch
i=0; while :; do i=$((i + 1)); say tick $i; sleep 1; done
"#;

fn vm(tap: &Tap) -> Vm {
    let script = format!("host={}; guest={}; {GUEST}", tap.host, tap.guest);
    let interface = json!([{ "iface_id": "eth0", "host_dev_name": tap.name, "vhost": true }]);
    let vm = Vm::with_programs(&["iperf3"], &script).memory_mib(192).set("/network-interfaces", interface);
    vm.set("/machine-config/vcpu_count", json!(2)).control()
}

fn serve(directory: &Path) -> Background {
    let mut server = Command::new("busybox");
    server.args(["httpd", "-f", "-p", "8078", "-h"]).arg(directory);
    Background::start(&mut server)
}

/// What the guest has fetched, fetched from it.
fn fetch_back(tap: &Tap, to: &Path) {
    let url = format!("http://{}:8079/file", tap.guest);
    let output = Command::new("busybox").args(["wget", "-q", "-O"]).arg(to).arg(url).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn device(vm: &Started) -> Value {
    let devices = vm.get("/stats")["devices"].clone();
    let device = devices.as_array().unwrap().iter().find(|device| device["id"] == "eth0");
    device.unwrap_or_else(|| panic!("{devices}")).clone()
}

fn ping(tap: &Tap) -> bool {
    let mut ping = Command::new("busybox");
    ping.args(["ping", "-c", "1", "-W", "3", &tap.guest]).output().unwrap().status.success()
}

#[test]
fn the_kernel_moves_frames_both_ways_also_behind_a_new_driver_and_a_pause() {
    let tap = Tap::new("hull-e2e-4", 4, 1500);
    let dir = TempDir::new().unwrap();
    let content: Vec<u8> = (0..=250u8).cycle().take(4_000_000).collect();
    let sum = hex::encode(Sha256::digest(&content));
    fs::write(dir.path().join("file"), &content).unwrap();
    let received = dir.path().join("received");
    let (_web, _iperf) = (serve(dir.path()), iperf_server(&tap));
    let mut vm = vm(&tap).start();
    vm.wait_for("queues 2");
    vm.wait_for("pinged");
    vm.wait_for(&format!("sum {sum}"));
    fetch_back(&tap, &received);
    assert!(fs::read(&received).unwrap() == content, "changed on its way back");
    for what in ["tx", "rx", "both"] {
        vm.wait_for(&format!("{what} done"));
        eprintln!("after {what}: {}", device(&vm));
    }
    for _ in 0..3 {
        vm.wait_for("unbound");
        vm.wait_for("back");
    }
    vm.wait_for(&format!("sum {sum}"));
    vm.wait_for("tick 1");
    let device = device(&vm);
    assert_eq!(device["engine"], "Vhost", "{device}");
    assert_eq!(device["counters"]["errors"], 0, "{device}");
    assert!(device["counters"]["interrupts"].as_u64().unwrap() > 0, "{device}");

    assert!(ping(&tap));
    assert_eq!(vm.request("PATCH", "/vm", r#"{"state": "Paused"}"#).0, 204);
    assert!(!ping(&tap), "answered while paused");
    assert_eq!(vm.request("PATCH", "/vm", r#"{"state": "Resumed"}"#).0, 204);
    wait_for("an answer after the pause", || ping(&tap));

    let limits = r#"{"iface_id": "eth0", "rx_rate_limiter": {"ops": {"size": 10, "refill_time": 100}}}"#;
    let (status, answer) = vm.request("PATCH", "/network-interfaces/eth0", limits);
    assert_eq!(status, 400, "{answer}");
    assert!(answer["fault_message"].as_str().unwrap().starts_with("Field vhost: "), "{answer}");
    assert_eq!(vm.request("DELETE", "/network-interfaces/eth0?force=true", "").0, 204);
    wait_for("the tap to be free", || !ping(&tap));
    assert_eq!(vm.request("PUT", "/actions", r#"{"action_type": "Stop"}"#).0, 204);
    let (run, console) = vm.finish();
    run.ok();
    assert!(!console.contains("failed"), "{console}");
}
