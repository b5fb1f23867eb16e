//! Pods through containerd's CRI, as a kubelet makes them, with the configuration of `deploy/containerd`.
//!
//! The messages are those of Kubernetes' `runtime.v1.RuntimeService` (`k8s.io/cri-api/pkg/apis/runtime/v1/api.proto`).

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::sync::PoisonError;

use super::engine::Engine;
use super::grpc::{self, Answer};
use super::harness::Containerd;
use super::message::{Message, bytes, message, number, text};
use super::network::NETWORK;
use crate::harness::{Run, wait_for};

/// The image's name, for all that CRI does.
pub const IMAGE: &str = "docker.io/library/busybox:latest";
const RUNTIME: &str = "hull";
/// A ConfigMap, by its place.
const VOLUME: &str = "volumes/kubernetes.io~configmap/volume";
/// What a kubelet makes for each pod.
const POD_CGROUP: &str = "/hulltest-kubepods/pod1";
/// Of every pod, published on this machine.
const CONTAINER_PORT: u64 = 8080;
const HOST_PORT: u64 = 18_080;

#[test]
fn bookworm() {
    pods_run_with_the_configuration_that_is_deployed(Engine::Bookworm);
}

#[test]
fn trixie() {
    pods_run_with_the_configuration_that_is_deployed(Engine::Trixie);
}

#[test]
fn sid() {
    pods_run_with_the_configuration_that_is_deployed(Engine::Sid);
}

pub struct Cri(pub Containerd);

pub struct Pod {
    pub id: String,
    pub config: Vec<u8>,
}

impl Cri {
    pub fn start(engine: Engine) -> Self {
        let cri = Self(Containerd::start_with(engine, |dir| configuration(engine, dir)));
        let network = format!(
            r#"{{"cniVersion":"0.4.0","name":"pods","plugins":[{{"type":"ptp","ipam":{{"type":"host-local",
            "subnet":"10.99.0.0/24","dataDir":"{}/addresses"}}}},
            {{"type":"portmap","snat":true,"capabilities":{{"portMappings":true}}}}]}}"#,
            cri.0.path("").display()
        );
        fs::create_dir_all(cri.0.path("cni")).unwrap();
        fs::write(cri.0.path("cni/10-pods.conflist"), network).unwrap();
        fs::write(cri.0.path("hull.toml"), "enable_annotations = [\"default_memory_mib\"]\n").unwrap();
        cri.import();
        cri
    }

    fn import(&self) {
        self.0.import("k8s.io", "busybox", IMAGE);
        let ctr = |args: &[&str]| self.0.ctr(["--namespace", "k8s.io", "images"].iter().chain(args)).ok();
        // The archive's other name, a date, is none that CRI finds the image by.
        for name in ctr(&["ls", "-q"]).lines().filter(|name| name.starts_with("import-")) {
            ctr(&["rm", name]);
        }
    }

    pub fn call(&self, method: &str, request: &[u8]) -> Answer {
        grpc::call(&self.0, "k8s.io", &format!("runtime.v1.RuntimeService/{method}"), request)
    }

    /// Calls a method that must not fail.
    pub fn ask(&self, method: &str, request: &[u8]) -> Message {
        Message::parse(&self.call(method, request).unwrap_or_else(|error| panic!("{method}: {error}")))
    }

    /// `security` are fields of a `LinuxSandboxSecurityContext`.
    pub fn pod(&self, name: &str, annotation: Option<(&str, &str)>, security: &[u8]) -> Result<Pod, String> {
        let metadata = message(&[text(1, name), text(2, name), text(3, "default")]);
        let annotations = annotation.map(|(key, value)| bytes(7, &message(&[text(1, key), text(2, value)])));
        let linux = bytes(8, &message(&[text(1, POD_CGROUP), bytes(2, security)]));
        let logs = text(3, self.0.path("logs").to_str().unwrap());
        // TCP is what it is when nothing is said.
        let port = bytes(5, &message(&[number(2, CONTAINER_PORT), number(3, HOST_PORT)]));
        let config = message(&[bytes(1, &metadata), text(2, name), logs, port, annotations.unwrap_or_default(), linux]);
        let answer = self.call("RunPodSandbox", &message(&[bytes(1, &config), text(2, RUNTIME)]))?;
        Ok(Pod { id: Message::parse(&answer).text(1), config })
    }

    /// Starts a container that sleeps, with 64 MiB and a directory of the host at `/volume`; returns its identifier.
    fn container(&self, pod: &Pod, privileged: bool) -> String {
        let mount = message(&[text(1, "/volume"), text(2, self.0.path(VOLUME).to_str().unwrap()), number(3, 1)]);
        let linux = message(&[bytes(1, &number(4, 64 << 20)), bytes(2, &number(2, privileged.into()))]);
        let image = bytes(2, &text(1, IMAGE));
        let command = message(&[text(3, "sleep"), text(3, "1000")]);
        let config = message(&[bytes(1, &text(1, "c")), image, command, bytes(7, &mount), bytes(15, &linux)]);
        self.start_container(pod, &config)
    }

    /// Makes and starts a container; returns its identifier.
    pub fn start_container(&self, pod: &Pod, config: &[u8]) -> String {
        let request = message(&[text(1, &pod.id), bytes(2, config), bytes(3, &pod.config)]);
        let id = self.ask("CreateContainer", &request).text(1);
        self.ask("StartContainer", &text(1, &id));
        id
    }

    /// Replaces the volume's content in the steps of a kubelet.
    fn write_volume(&self, data: &str, value: &str) {
        let volume = self.0.path(VOLUME);
        fs::create_dir_all(volume.join(data)).unwrap();
        fs::write(volume.join(data).join("key"), value).unwrap();
        symlink(data, volume.join("..data_tmp")).unwrap();
        fs::rename(volume.join("..data_tmp"), volume.join("..data")).unwrap();
    }

    pub fn exec(&self, container: &str, script: &str) -> String {
        let command = message(&[text(2, "sh"), text(2, "-c"), text(2, script)]);
        self.ask("ExecSync", &message(&[text(1, container), command, number(3, 120)])).text(1)
    }

    pub fn remove(&self, pod: &Pod) {
        for method in ["StopPodSandbox", "RemovePodSandbox"] {
            self.call(method, &text(1, &pod.id)).unwrap();
        }
    }
}

/// What is deployed, with the lines that are there to be uncommented, and what this machine needs beside it.
fn configuration(engine: Engine, dir: &Path) -> String {
    let (deployed, own) = match engine.configuration_format() {
        2 => (
            include_str!("../../../deploy/containerd/config-v2.toml"),
            format!(
                "[plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = \"{IMAGE}\"\ndisable_apparmor = true\n\
                 [plugins.\"io.containerd.grpc.v1.cri\".cni]\n"
            ),
        ),
        _ => (
            include_str!("../../../deploy/containerd/config-v3.toml"),
            format!(
                "[plugins.\"io.containerd.cri.v1.images\".pinned_images]\nsandbox = \"{IMAGE}\"\n\
                 [plugins.\"io.containerd.cri.v1.runtime\"]\ndisable_apparmor = true\n\
                 [plugins.\"io.containerd.cri.v1.runtime\".cni]\n"
            ),
        ),
    };
    let uncommented = |line: &'static str| {
        line.strip_prefix('#').filter(|line| line.starts_with('[') || line.starts_with("  ")).unwrap_or(line)
    };
    let deployed: Vec<_> = deployed.lines().filter(|line| !line.starts_with("version = ")).map(uncommented).collect();
    let deployed = deployed.join("\n").replace("/etc/hull/other.toml", &format!("{}/hull.toml", dir.display()));
    format!("{own}bin_dir = \"/usr/lib/cni\"\nconf_dir = \"{}/cni\"\n{deployed}", dir.display())
}

fn pods_run_with_the_configuration_that_is_deployed(engine: Engine) {
    // The pods' port and cgroup are the machine's.
    let _machine = NETWORK.lock().unwrap_or_else(PoisonError::into_inner);
    let cri = Cri::start(engine);
    cri.write_volume("..1", "value\n");
    symlink("..data/key", cri.0.path(VOLUME).join("key")).unwrap();

    let pod = cri.pod("pod-one", Some(("io.hull.default_memory_mib", "300")), &[]).unwrap();
    let counted = fs::read_to_string(format!("/proc/{}/cgroup", cri.0.monitors()[0])).unwrap();
    assert_eq!(counted, format!("0::{POD_CGROUP}/{}\n", pod.id), "the pod's cgroup has the VM");
    let container = cri.container(&pod, false);
    let seen = cri.exec(&container, "cat /volume/key; hostname; cat /sys/fs/cgroup/memory.max");
    assert_eq!(seen, format!("value\npod-one\n{}\n", 64 << 20));
    let memory = cri.exec(&container, "awk '/^MemTotal/ {print int($2 / 1024)}' /proc/meminfo");
    assert!((220..300).contains(&memory.trim().parse::<u32>().unwrap()), "{memory}");
    assert!(cri.exec(&container, "ip -4 addr show eth0").contains("inet 10.99.0."), "the address of the pod's network");
    cri.exec(
        &container,
        &format!("mkdir /www; echo published >/www/index.html; httpd -p {CONTAINER_PORT} -h /www; echo serves"),
    );
    assert_eq!(http_get(&format!("127.0.0.1:{HOST_PORT}")), "published\n");
    cri.write_volume("..2", "another\n");
    fs::remove_dir_all(cri.0.path(VOLUME).join("..1")).unwrap();
    wait_for("the container to have the volume's new content", || {
        cri.exec(&container, "cat /volume/key") == "another\n"
    });
    assert_eq!(cri.exec(&container, "mkdir /m; mount -t tmpfs none /m 2>/dev/null || echo refused"), "refused\n");
    cri.remove(&pod);

    let refused = cri.pod("pod-two", Some(("io.hull.watchdog", "true")), &[]).err().unwrap();
    assert!(refused.contains("Annotation io.hull.watchdog") && refused.contains("enable_annotations"), "{refused}");

    const NETWORK_OF_THE_NODE: u64 = 2;
    let in_host_network = bytes(1, &number(1, NETWORK_OF_THE_NODE));
    let refused = cri.pod("pod-host", None, &in_host_network).err().unwrap();
    assert!(refused.contains("hostNetwork"), "{refused}");

    // Privileged.
    let pod = cri.pod("pod-three", None, &number(6, 1)).unwrap();
    let container = cri.container(&pod, true);
    let seen = cri
        .exec(&container, "mkdir /m; mount -t tmpfs none /m && echo mounted; ls /dev/kvm 2>/dev/null; ls -d /dev/null");
    assert_eq!(seen, "mounted\n/dev/null\n", "rights in the guest, and none of the host's devices");
    cri.remove(&pod);
    // A kubelet can remove what it made.
    for directory in Path::new(POD_CGROUP).ancestors().filter(|directory| directory.parent().is_some()) {
        fs::remove_dir(format!("/sys/fs/cgroup{}", directory.display())).unwrap();
    }
}

fn http_get(address: &str) -> String {
    let url = format!("http://{address}/");
    Run::from(Command::new("curl").args(["--silent", "--show-error", "--max-time", "60", &url]).output().unwrap()).ok()
}
