//! The network of a container: a namespace that is there before it, CNI's, one that a hook furnishes.

use std::fs;
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use serde_json::{Value, json};

use super::harness::{Containerd, HULL, RUNC, scenarios};
use crate::harness::image_dir;

scenarios! {
    a_container_has_the_interfaces_of_its_network_namespace,
    without_a_network_there_is_loopback_and_the_hosts_network_is_refused,
    cni_gives_a_container_an_address_between_create_and_start,
    hooks_run_on_the_host_and_what_they_add_to_the_network_reaches_the_guest,
}

/// What a container sees of its network, for a comparison with another runtime's.
const LOOK: &str = "ip -4 -o addr show dev eth0 | awk '{print $4}'; ip -6 -o addr show dev eth0 scope global | awk '{print $4}'; \
    ip route; cat /sys/class/net/eth0/address /sys/class/net/eth0/mtu";

/// Taken by who changes this machine's network: tests run at the same time where there is more than one processor.
pub static NETWORK: Mutex<()> = Mutex::new(());

/// A network namespace of this machine with one end of a veth pair in it, eth0; the other end is here.
struct Namespace {
    name: String,
    number: u8,
}

impl Namespace {
    fn new(number: u8) -> Self {
        let this = Self { name: format!("hull-e2e-{number}"), number };
        ip(&format!("netns add {}", this.name));
        this.add_interface("eth0", number);
        this.ip(&format!("route add default via 10.80.{number}.1"));
        this.ip(&format!("route add 198.51.100.0/24 via 10.80.{number}.9 metric 50"));
        this
    }

    /// The end in the namespace has address 10.80.NET.2, the other one 10.80.NET.1.
    fn add_interface(&self, name: &str, net: u8) {
        let Self { name: namespace, .. } = self;
        ip(&format!("link add hull-v{net} type veth peer name {name} netns {namespace} mtu 1400"));
        ip(&format!("addr add 10.80.{net}.1/24 dev hull-v{net}"));
        ip(&format!("link set hull-v{net} up"));
        self.ip(&format!("addr add 10.80.{net}.2/24 dev {name}"));
        self.ip(&format!("addr add fd00:80:{net}::2/64 dev {name} nodad"));
        self.ip(&format!("link set {name} up"));
    }

    fn ip(&self, arguments: &str) {
        ip(&format!("-n {} {arguments}", self.name));
    }

    fn flag(&self) -> String {
        format!("network:/run/netns/{}", self.name)
    }

    fn host(&self) -> String {
        format!("10.80.{}.1", self.number)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

fn answers_ping(address: &str) -> bool {
    Command::new("busybox").args(["ping", "-c", "1", "-W", "5", address]).output().unwrap().status.success()
}

fn a_container_has_the_interfaces_of_its_network_namespace(containerd: &Containerd) {
    let _network = NETWORK.lock().unwrap_or_else(PoisonError::into_inner);
    let namespace = Namespace::new(1);
    let flags = ["--with-ns", &namespace.flag()];
    let look = |runtime| containerd.run(runtime, &flags, &["sh", "-c", LOOK]).ok();
    let seen = look(RUNC);
    assert!(seen.starts_with("10.80.1.2/24\nfd00:80:1::2/64\ndefault via 10.80.1.1"), "{seen}");
    assert_eq!(look(HULL), seen);

    let reach = format!("ping -c 1 -W 5 {} && echo reached", namespace.host());
    assert!(containerd.run(HULL, &flags, &["sh", "-c", &reach]).ok().contains("reached"));
    let id = containerd.detached(HULL, &flags, "sleep 600");
    assert!(answers_ping("10.80.1.2"));
    // What passes is the guest's alone: nobody answers once it is gone.
    containerd.remove(&id);
    assert!(!answers_ping("10.80.1.2"));
    assert_eq!(look(HULL), seen, "a namespace serves again");
}

fn without_a_network_there_is_loopback_and_the_hosts_network_is_refused(containerd: &Containerd) {
    let list = "ls /sys/class/net; ping -c 1 127.0.0.1 >/dev/null && echo alive";
    assert_eq!(containerd.run(HULL, &[], &["sh", "-c", list]).ok(), "lo\nalive\n");
    let refused = containerd.run(HULL, &["--net-host"], &["true"]);
    assert_ne!(refused.code, Some(0));
    assert!(refused.stderr.contains("can't be in the host's network"), "{refused:?}");
    containerd.assert_nothing_left();
}

/// Makes a bridge the network of `ctr run --cni`, with `ports` of this machine that lead to each of its containers.
pub fn configure_cni(containerd: &Containerd, ports: Value) {
    let configuration = json!({
        "cniVersion": "0.4.0", "name": "hull-e2e",
        "plugins": [
            { "type": "bridge", "bridge": "hull-cni", "isGateway": true, "ipMasq": false,
              "ipam": { "type": "host-local", "ranges": [[{ "subnet": "10.81.0.0/24" }]], "routes": [{ "dst": "0.0.0.0/0" }],
                        "dataDir": containerd.path("cni") } },
            { "type": "portmap", "snat": true, "runtimeConfig": { "portMappings": ports } },
        ],
    });
    fs::create_dir_all("/etc/cni/net.d").unwrap();
    fs::write("/etc/cni/net.d/10-hull.conflist", configuration.to_string()).unwrap();
    fs::create_dir_all("/opt/cni").unwrap();
    if !fs::exists("/opt/cni/bin").unwrap() {
        std::os::unix::fs::symlink("/usr/lib/cni", "/opt/cni/bin").unwrap();
    }
}

fn cni_gives_a_container_an_address_between_create_and_start(containerd: &Containerd) {
    let _network = NETWORK.lock().unwrap_or_else(PoisonError::into_inner);
    configure_cni(containerd, json!([]));
    for runtime in [RUNC, HULL] {
        let id = containerd.detached(runtime, &["--cni"], "sleep 600");
        let exec = [
            "task",
            "exec",
            "--exec-id",
            "e",
            &id,
            "sh",
            "-c",
            "ip -4 -o addr show dev eth0 | awk '{print $4}'; ip route | head -1",
        ];
        let seen = containerd.ctr(exec).ok();
        let address = seen.split('/').next().unwrap().to_owned();
        assert!(address.starts_with("10.81.0."), "{runtime}: {seen}");
        assert!(seen.contains("default via 10.81.0.1 dev eth0"), "{runtime}: {seen}");
        assert!(answers_ping(&address), "{runtime}: {address}");
        containerd.remove(&id);
    }
}

fn hooks_run_on_the_host_and_what_they_add_to_the_network_reaches_the_guest(containerd: &Containerd) {
    let _network = NETWORK.lock().unwrap_or_else(PoisonError::into_inner);
    let namespace = Namespace::new(3);
    // A hook that puts another interface into the namespace of the process that it is told.
    let said = containerd.path("said");
    let script = format!(
        "state=$(cat); echo \"$0 $state\" >>{}; pid=$(echo \"$state\" | sed 's/.*\"pid\":\\([0-9]*\\).*/\\1/'); \
         [ $0 != createRuntime ] || {{ ip link add hull-v4 type veth peer name eth1 netns $pid && \
         nsenter --net=/proc/$pid/ns/net ip addr add 10.80.4.2/24 dev eth1 && \
         nsenter --net=/proc/$pid/ns/net ip link set eth1 up && ip addr add 10.80.4.1/24 dev hull-v4 && ip link set hull-v4 up; }}",
        said.display()
    );
    let hook = |kind: &str| json!([{ "path": "/bin/sh", "args": ["sh", "-c", script, kind], "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"] }]);
    let kinds = ["createRuntime", "poststart", "poststop"];
    let hooks: Value =
        kinds.iter().map(|kind| ((*kind).to_owned(), hook(kind))).collect::<serde_json::Map<_, _>>().into();

    let root = containerd.path("root-directory");
    fs::create_dir(&root).unwrap();
    let layer = image_dir("busybox");
    let untar = format!(
        "cd {} && for blob in {}/blobs/sha256/*; do tar -xzf $blob 2>/dev/null || true; done",
        root.display(),
        layer.display()
    );
    assert!(Command::new("sh").args(["-c", &untar]).status().unwrap().success());
    let mut spec: Value = serde_json::from_str(&containerd.ctr(["oci", "spec"]).ok()).unwrap();
    spec["root"] = json!({ "path": root, "readonly": true });
    spec["process"]["args"] = json!(["sleep", "600"]);
    spec["process"]["terminal"] = json!(false);
    spec["hooks"] = hooks;
    for entry in spec["linux"]["namespaces"].as_array_mut().unwrap() {
        if entry["type"] == "network" {
            entry["path"] = json!(format!("/run/netns/{}", namespace.name));
        }
    }
    let config = containerd.path("spec.json");
    fs::write(&config, spec.to_string()).unwrap();
    let id = containerd.id();
    containerd.ctr(["run", "--detach", "--null-io", "--runtime", HULL, "--config", config.to_str().unwrap(), &id]).ok();
    assert!(answers_ping("10.80.4.2"), "the hook's interface");
    assert!(answers_ping("10.80.3.2"), "the namespace's own");
    let monitor = containerd.monitors()[0];
    containerd.remove(&id);
    let said = fs::read_to_string(said).unwrap();
    let lines: Vec<_> = said.lines().collect();
    for (line, (kind, status)) in lines.iter().zip(kinds.iter().zip(["creating", "running", "stopped"])) {
        assert!(line.starts_with(kind) && line.contains(&format!("\"status\":\"{status}\"")), "{said}");
        assert!(line.contains(&format!("\"id\":\"{id}\"")), "{said}");
    }
    assert_eq!(lines.len(), 3, "{said}");
    assert!(lines[0].contains(&format!("\"pid\":{monitor}")), "{said}");
}
