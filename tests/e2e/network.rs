//! Network interfaces of `hull-vmm`: traffic between a guest and this machine, over a tap and over passt.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::wait_for;
use crate::vmm_harness::{Started, Vm};

/// A tap of this machine with an address for each test, so that they may run at the same time.
pub struct Tap {
    pub name: &'static str,
    pub host: String,
    pub guest: String,
}

impl Tap {
    pub fn new(name: &'static str, net: u8, mtu: u16) -> Self {
        assert!(Path::new("/dev/net/tun").exists(), "no tun driver");
        ip(&format!("tuntap add {name} mode tap multi_queue"));
        let tap = Self { name, host: format!("10.77.{net}.1"), guest: format!("10.77.{net}.2") };
        ip(&format!("link set {name} mtu {mtu} up"));
        ip(&format!("addr add {}/24 dev {name}", tap.host));
        tap
    }

    /// A guest whose interface has this tap. `script` runs when it has its address.
    fn vm(&self, script: &str) -> Vm {
        let Self { host, guest, .. } = self;
        let script = format!(
            "host={host}; ip link set lo up; ip addr add {guest}/24 dev eth0; ip link set eth0 up
            exec >/dev/console 2>&1; {script}"
        );
        let interface = json!([{ "iface_id": "eth0", "host_dev_name": self.name, "guest_mac": "02:00:00:00:00:07" }]);
        Vm::with_programs(&["iperf3", "ethtool"], &script).memory_mib(192).set("/network-interfaces", interface)
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["link", "del", self.name]).status();
    }
}

fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A process that ends with the test.
pub struct Background(Child);

impl Background {
    pub fn start(command: &mut Command) -> Self {
        Self(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub fn iperf_server(tap: &Tap) -> Background {
    let server = Background::start(Command::new("iperf3").args(["--server", "--bind", &tap.host]));
    wait_for("iperf3 to listen", || {
        let list = Command::new("ss").args(["-Hltn", "src", &tap.host]).output().unwrap();
        !list.stdout.is_empty()
    });
    server
}

fn counters(vm: &Started) -> Value {
    let devices = vm.get("/stats")["devices"].clone();
    let device = devices.as_array().unwrap().iter().find(|device| device["id"] == "eth0");
    device.unwrap_or_else(|| panic!("{devices}"))["counters"].clone()
}

#[test]
fn guest_and_host_reach_each_other_with_the_mtu_of_the_tap() {
    let tap = Tap::new("hull-e2e-1", 1, 1400);
    let vm = tap.vm("say mtu $(cat /sys/class/net/eth0/mtu) $(cat /sys/class/net/eth0/address)
        ping -c 2 -s 1300 $host && say pinged
        ip link set eth0 mtu 1500 || say refused
        until [ -e /tmp/end ]; do sleep 1; done");
    let mut vm = vm.control().start();
    vm.wait_for("mtu 1400 02:00:00:00:00:07");
    vm.wait_for("pinged");
    vm.wait_for("refused");
    let ping = Command::new("busybox").args(["ping", "-c", "2", "-s", "1300", &tap.guest]).output().unwrap();
    assert!(ping.status.success(), "{}", String::from_utf8_lossy(&ping.stdout));
    ip("link del hull-e2e-1");
    assert_eq!(vm.request("PUT", "/actions", r#"{"action_type": "Stop"}"#).0, 204);
    vm.finish().0.ok();
}

#[test]
fn a_tap_that_is_deleted_takes_the_guests_link_down_and_nothing_else() {
    let tap = Tap::new("hull-e2e-2", 2, 1500);
    let mut vm = tap.vm(
        "say carrier $(cat /sys/class/net/eth0/carrier); while [ $(cat /sys/class/net/eth0/carrier) = 1 ]; do sleep 0.2; done
        say down; ping -c 1 -W 1 $host; poweroff -f",
    );
    vm = vm.control();
    let mut vm = vm.start();
    vm.wait_for("carrier 1");
    drop(tap);
    vm.wait_for("down");
    let (run, _) = vm.finish();
    run.ok();
    assert_eq!(run.stderr.matches("link is down").count(), 1, "{}", run.stderr);
}

/// Moves data for some seconds each way, with and without large segments.
#[test]
fn streams_run_both_ways_on_two_queues_with_and_without_offloads() {
    let tap = Tap::new("hull-e2e-3", 3, 1500);
    let _server = iperf_server(&tap);
    let vm = tap.vm(
        "say queues $(ls -d /sys/class/net/eth0/queues/rx-* | wc -l)
        run() { iperf3 --client $host --time 2 --interval 0 \"$@\" >/tmp/out 2>&1 && say $(grep -o '[0-9.]* [MGK]bits/sec' /tmp/out) && say $what done || { cat /tmp/out; say $what failed; }; }
        what=tx run; what=rx run --reverse; what=both run --bidir --parallel 2
        ethtool -K eth0 tso off gso off tx off; what=tx-plain run
        ethtool -K eth0 rx off; what=rx-plain run --reverse
        ethtool -K eth0 tso on gso on tx on rx on; ethtool -L eth0 combined 1; what=one run --bidir
        what=udp run --udp --bitrate 20M; dmesg | grep -i 'rx error' && say bad frames
        poweroff -f",
    );
    let mut vm = vm.set("/machine-config/vcpu_count", json!(2)).control().start();
    vm.wait_for("queues 2");
    for what in ["tx", "rx", "both", "tx-plain", "rx-plain", "one"] {
        vm.wait_for(&format!("{what} done"));
        eprintln!("after {what}: {}", counters(&vm));
    }
    let counters = counters(&vm);
    vm.wait_for("udp done");
    let (run, console) = vm.finish();
    run.ok();
    assert!(!console.contains("bad frames") && !console.contains("failed"), "{console}");
    let number = |name: &str| counters[name].as_u64().unwrap();
    assert_eq!(number("errors"), 0, "{counters}");
    assert!(number("bytes_to_guest") > 1 << 20 && number("bytes_from_guest") > 1 << 20, "{counters}");
    // Far fewer than frames: they come and go in batches.
    assert!(number("interrupts") < number("requests") / 2, "{counters}");
}

/// passt makes its socket, and serves DHCP and this machine's address behind it.
fn passt(dir: &Path) -> (Background, PathBuf) {
    // Started by root, it becomes nobody.
    fs::set_permissions(dir, fs::Permissions::from_mode(0o777)).unwrap();
    let socket = dir.join("passt");
    let log = fs::File::create(dir.join("passt.log")).unwrap();
    let mut command = Command::new("passt");
    command.args(["--foreground", "--one-off", "--socket"]).arg(&socket).stderr(log);
    let passt = Background::start(&mut command);
    wait_for("passt's socket", || socket.exists());
    (passt, socket)
}

/// passt takes addresses from an interface with a default route.
fn outside(name: &str) {
    ip(&format!("tuntap add {name} mode tap"));
    ip(&format!("addr add 192.0.2.7/24 dev {name}"));
    ip(&format!("link set {name} up"));
    ip(&format!("route add default via 192.0.2.1 dev {name}"));
}

#[test]
fn a_guest_behind_passt_gets_an_address_and_fetches_a_file() {
    let dir = TempDir::with_prefix_in("p", "/tmp").unwrap();
    let has_route = Command::new("ip").args(["-4", "route", "show", "default"]).output().unwrap();
    if has_route.stdout.is_empty() {
        outside("hull-outside");
    }
    let content: Vec<u8> = (0..=250u8).cycle().take(4_000_000).collect();
    fs::write(dir.path().join("file"), &content).unwrap();
    let mut server = Command::new("busybox");
    server.args(["httpd", "-f", "-p", "8077", "-h"]).arg(dir.path());
    let _server = Background::start(&mut server);
    let (mut passt, socket) = passt(dir.path());
    let script = "exec >/dev/console 2>&1; ip link set lo up; ip link set eth0 up
        cat >/tmp/lease <<'END'
#!/bin/sh
[ \"$1\" = bound ] || exit 0
ip addr add $ip/$mask dev $interface; ip route add default via ${router%% *} dev $interface onlink
echo $router >/tmp/router
END
        chmod +x /tmp/lease; udhcpc -i eth0 -n -q -s /tmp/lease && say leased
        wget -O /tmp/file http://$(cut -d ' ' -f 1 /tmp/router):8077/file; say sum $(sha256sum </tmp/file)
        while [ $(cat /sys/class/net/eth0/carrier) = 1 ]; do sleep 0.2; done; say down; poweroff -f";
    let interface =
        json!([{ "iface_id": "eth0", "socket_path": socket, "guest_mac": "02:00:00:00:00:07", "mtu": 65520 }]);
    let mut vm = Vm::with_init(script).memory_mib(128).set("/network-interfaces", interface).start();
    vm.wait_for("leased");
    vm.wait_for(&format!("sum {}", hex::encode(<sha2::Sha256 as sha2::Digest>::digest(&content))));
    // The peer goes: the link is down, the VM lives.
    passt.0.kill().unwrap();
    vm.wait_for("down");
    let (run, _) = vm.finish();
    run.ok();
    assert_eq!(run.stderr.matches("link is down").count(), 1, "{}", run.stderr);
}
