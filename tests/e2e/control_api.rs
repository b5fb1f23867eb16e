//! A VM that is configured, started and changed through the control API only, with curl.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::harness::wait_for;
use crate::vmm_harness::{Started, Vm};

/// A guest that does what the console's other side can see: counts its disks each time the host changes a file on one of them.
const HOTPLUG: &str = r#"
disks() { echo $(ls /sys/block | grep -c ^vd) disks; }
say ready $(disks)
until [ -e /sys/block/vda ]; do echo 1 >/sys/bus/pci/rescan; usleep 100000; done
say plugged $(disks) $(cat /sys/block/vda/serial) $(head -c 5 /dev/vda) at $(basename $(readlink -f /sys/block/vda/device/..))
device=/sys/bus/pci/devices/$(basename $(readlink -f /sys/block/vda/device/..))
until [ "$(dd if=/dev/vda bs=512 skip=1 count=1 iflag=direct 2>/dev/null | head -c 2)" = go ]; do usleep 100000; done
echo 1 >$device/remove
say removed $(disks)
while :; do usleep 100000; done
"#;

/// Sends a request with curl; returns the status and the body.
fn curl(socket: &Path, method: &str, path: &str, body: &str) -> (u16, String) {
    let output = Command::new("curl")
        .args(["--silent", "--show-error", "--max-time", "60", "--unix-socket"])
        .arg(socket)
        .args(["--request", method, "--write-out", "\n%{http_code}"])
        .args(if body.is_empty() { vec![] } else { vec!["--header", "Expect: 100-continue", "--data", body] })
        .arg(format!("http://localhost{path}"))
        .output()
        .expect("curl is there (Debian package curl)");
    assert!(output.status.success(), "{method} {path}: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let (body, status) = text.rsplit_once('\n').unwrap();
    (status.parse().unwrap(), body.to_owned())
}

struct Api<'a>(&'a Started);

impl Api<'_> {
    fn ask(&self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let (status, answer) = curl(&self.0.path("control"), method, path, &body);
        (status, if answer.is_empty() { Value::Null } else { serde_json::from_str(&answer).unwrap() })
    }

    fn done(&self, method: &str, path: &str, body: Value) {
        assert_eq!(self.ask(method, path, &body), (204, Value::Null), "{method} {path} {body}");
    }

    fn refused(&self, status: u16, method: &str, path: &str, body: Value) -> String {
        let (got, answer) = self.ask(method, path, &body);
        assert_eq!(got, status, "{method} {path} {body}: {answer}");
        answer["fault_message"].as_str().unwrap().to_owned()
    }

    /// Sends the parts of a configuration, without starting.
    fn configure(&self, config: &Value) {
        for part in ["boot-source", "machine-config", "console"] {
            self.done("PUT", &format!("/{part}"), config[part].clone());
        }
    }

    fn start(&self) {
        self.done("PUT", "/actions", json!({ "action_type": "InstanceStart" }));
    }
}

#[test]
fn a_machine_is_configured_started_held_and_stopped_with_curl() {
    let guest = "i=0; while :; do i=$((i + 1)); say tick $i; usleep 100000; done";
    let (mut vm, config) = Vm::with_init(guest).start_with_api();
    let api = Api(&vm);
    assert_eq!(api.ask("GET", "/", &Value::Null).1["state"], "Not started");
    assert!(api.refused(400, "PATCH", "/vm", json!({ "state": "Paused" })).contains("before starting"));

    // A start that fails, then one that doesn't.
    api.configure(&config);
    api.done("PUT", "/boot-source", json!({ "kernel_image_path": "/nowhere/vmlinux" }));
    let message = api.refused(400, "PUT", "/actions", json!({ "action_type": "InstanceStart" }));
    assert!(message.contains("/nowhere/vmlinux"), "{message}");
    api.done("PUT", "/boot-source", config["boot-source"].clone());
    api.done("PUT", "/entropy", json!({}));
    api.start();
    vm.wait_for("tick 3\r\n");

    let api = Api(&vm);
    assert!(api.refused(400, "PUT", "/entropy", json!({})).contains("after starting"));
    let saved = api.ask("GET", "/vm/config", &Value::Null).1;
    assert_eq!(saved["boot-source"]["kernel_image_path"], config["boot-source"]["kernel_image_path"]);
    api.done("PATCH", "/vm", json!({ "state": "Paused" }));
    let (status, metrics) = curl(&vm.path("control"), "GET", "/metrics", "");
    assert_eq!(status, 200);
    for sample in [
        "hull_vm_state{hull_vm_state=\"Paused\"} 1\n",
        "hull_vcpus 1\n",
        "hull_device_requests_total{kind=\"console\",id=\"console\"} ",
        "hull_device_interrupts_total{kind=\"entropy\",id=\"entropy\"} ",
        "hull_vcpu_monitor_exits_total{vcpu=\"0\",reason=\"mmio\"} ",
        "hull_vcpu_kvm{vcpu=\"0\",stat=\"exits\"} ",
        "hull_boot_phase_seconds{phase=\"guest_entered\"} ",
    ] {
        assert!(metrics.contains(sample), "{sample} is not in {metrics}");
    }
    assert!(metrics.ends_with("# EOF\n"), "{metrics}");
    api.done("PATCH", "/vm", json!({ "state": "Resumed" }));
    let seen = vm.console().matches("tick").count();
    wait_for("the guest to go on", || vm.console().matches("tick").count() > seen + 2);

    api.done("PUT", "/actions", json!({ "action_type": "Stop" }));
    let (run, _) = vm.finish();
    run.ok();
}

#[test]
fn a_drive_is_plugged_into_a_running_guest_and_taken_out_again() {
    let (mut vm, config) = Vm::with_init(HOTPLUG).start_with_api();
    let image = vm.path("image");
    let mut bytes = vec![0; 1 << 20];
    bytes[..5].copy_from_slice(b"hello");
    fs::write(&image, &bytes).unwrap();
    let api = Api(&vm);
    api.configure(&config);
    api.start();
    vm.wait_for("ready 0 disks\r\n");

    let drive = json!({ "drive_id": "late", "path_on_host": image, "is_read_only": true });
    let (status, plugged) = Api(&vm).ask("PUT", "/drives/late", &drive);
    assert_eq!(status, 200, "{plugged}");
    let address = plugged["pci_address"].as_str().unwrap().to_owned();
    vm.wait_for(&format!("plugged 1 disks late hello at {address}\r\n"));

    let api = Api(&vm);
    assert!(api.refused(409, "PUT", "/drives/late", drive.clone()).contains("already"));
    let message = api.refused(409, "DELETE", "/drives/late", Value::Null);
    assert!(message.contains(&format!("/sys/bus/pci/devices/{address}/remove")), "{message}");
    // The guest reads this and lets go.
    bytes[512..514].copy_from_slice(b"go");
    fs::write(&image, &bytes).unwrap();
    vm.wait_for("removed 0 disks\r\n");
    let api = Api(&vm);
    api.done("DELETE", "/drives/late", Value::Null);
    assert!(api.refused(404, "DELETE", "/drives/late", Value::Null).contains("late"));
    assert!(api.ask("GET", "/vm/config", &Value::Null).1.get("drives").is_none());
    api.done("PUT", "/actions", json!({ "action_type": "Stop" }));
    vm.finish().0.ok();
}

#[test]
fn a_process_that_never_got_a_configuration_stops_cleanly() {
    let (vm, _) = Vm::with_init("").start_with_api();
    vm.signal(nix::sys::signal::Signal::SIGTERM);
    vm.finish().0.ok();

    let (vm, _) = Vm::with_init("").start_with_api();
    Api(&vm).done("PUT", "/actions", json!({ "action_type": "Stop" }));
    vm.finish().0.ok();
}
