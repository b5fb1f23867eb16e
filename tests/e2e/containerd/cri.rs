//! Pods through containerd's CRI, as a kubelet makes them, with the configuration of `deploy/containerd`.
//!
//! Kubernetes' `runtime.v1.RuntimeService` is gRPC; `curl` speaks HTTP/2, and the few messages are written by hand
//! (`k8s.io/cri-api/pkg/apis/runtime/v1/api.proto`).

use std::fs;
use std::process::Command;

use super::harness::Containerd;

/// The image's name, for all that CRI does.
const IMAGE: &str = "docker.io/library/busybox:latest";
const RUNTIME: &str = "hull";

struct Cri(Containerd);

/// What CRI says of a call.
type Answer = Result<Vec<u8>, String>;

struct Pod {
    id: String,
    config: Vec<u8>,
}

impl Cri {
    fn start() -> Self {
        let example = include_str!("../../../deploy/containerd/config-v2.toml");
        // With the lines that are there to be uncommented.
        let uncommented = |line: &'static str| {
            line.strip_prefix('#').filter(|line| line.starts_with('[') || line.starts_with("  ")).unwrap_or(line)
        };
        let example =
            example.lines().filter(|line| *line != "version = 2").map(uncommented).collect::<Vec<_>>().join("\n");
        let cri = Self(Containerd::start_with(|dir| {
            let dir = dir.display();
            let runtimes = example.replace("/etc/hull/other.toml", &format!("{dir}/hull.toml"));
            format!(
                "[plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = \"{IMAGE}\"\ndisable_apparmor = true\n\
                 [plugins.\"io.containerd.grpc.v1.cri\".cni]\nbin_dir = \"/usr/lib/cni\"\nconf_dir = \"{dir}/cni\"\n{runtimes}"
            )
        }));
        let network = format!(
            r#"{{"cniVersion":"0.4.0","name":"pods","plugins":[{{"type":"ptp","ipam":{{"type":"host-local",
            "subnet":"10.99.0.0/24","dataDir":"{}/addresses"}}}}]}}"#,
            cri.0.path("").display()
        );
        fs::create_dir_all(cri.0.path("cni")).unwrap();
        fs::write(cri.0.path("cni/10-pods.conflist"), network).unwrap();
        fs::write(cri.0.path("hull.toml"), "enable_annotations = [\"default_memory_mib\"]\n").unwrap();
        cri.import();
        cri
    }

    fn import(&self) {
        let ctr = |args: &[&str]| self.0.ctr(["--namespace", "k8s.io", "images"].iter().chain(args)).ok();
        ctr(&["import", "--index-name", IMAGE, super::harness::archive().to_str().unwrap()]);
        // The archive's other name, a date, is none that CRI finds the image by.
        for name in ctr(&["ls", "-q"]).lines().filter(|name| name.starts_with("import-")) {
            ctr(&["rm", name]);
        }
    }

    fn call(&self, method: &str, request: &[u8]) -> Answer {
        let (body, answer, headers) = (self.0.path("request"), self.0.path("answer"), self.0.path("headers"));
        let mut framed = vec![0];
        framed.extend(u32::try_from(request.len()).unwrap().to_be_bytes());
        framed.extend(request);
        fs::write(&body, framed).unwrap();
        fs::write(&answer, "").unwrap();
        let run = Command::new("curl")
            .args(["--silent", "--show-error", "--http2-prior-knowledge", "--max-time", "300", "--unix-socket"])
            .arg(self.0.path("c.sock"))
            .args(["--header", "content-type: application/grpc", "--header", "te: trailers", "--data-binary"])
            .arg(format!("@{}", body.display()))
            .arg("--dump-header")
            .arg(&headers)
            .arg("--output")
            .arg(&answer)
            .arg(format!("http://localhost/runtime.v1.RuntimeService/{method}"))
            .output()
            .unwrap();
        let headers = fs::read_to_string(headers).unwrap();
        let header = |name: &str| headers.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        match header("grpc-status:") {
            Some("0") => Ok(fs::read(answer).unwrap().split_off(5)),
            Some(_) => Err(header("grpc-message:").unwrap_or_default().to_owned()),
            None => panic!("{method}: {headers} {run:?}"),
        }
    }

    /// `security` are fields of a `LinuxSandboxSecurityContext`.
    fn pod(&self, name: &str, annotation: Option<(&str, &str)>, security: &[u8]) -> Result<Pod, String> {
        let metadata = message(&[text(1, name), text(2, name), text(3, "default")]);
        let annotations = annotation.map(|(key, value)| bytes(7, &message(&[text(1, key), text(2, value)])));
        let linux = bytes(8, &bytes(2, security));
        let logs = text(3, self.0.path("logs").to_str().unwrap());
        let config = message(&[bytes(1, &metadata), text(2, name), logs, annotations.unwrap_or_default(), linux]);
        let answer = self.call("RunPodSandbox", &message(&[bytes(1, &config), text(2, RUNTIME)]))?;
        Ok(Pod { id: String::from_utf8(first(&answer, 1)).unwrap(), config })
    }

    /// Starts a container that sleeps, with 64 MiB and a directory of the host at `/volume`; returns its identifier.
    fn container(&self, pod: &Pod, privileged: bool) -> String {
        let mount = message(&[text(1, "/volume"), text(2, self.0.path("volume").to_str().unwrap()), number(3, 1)]);
        let linux = message(&[bytes(1, &number(4, 64 << 20)), bytes(2, &number(2, privileged.into()))]);
        let image = bytes(2, &text(1, IMAGE));
        let command = message(&[text(3, "sleep"), text(3, "1000")]);
        let config = message(&[bytes(1, &text(1, "c")), image, command, bytes(7, &mount), bytes(15, &linux)]);
        let request = message(&[text(1, &pod.id), bytes(2, &config), bytes(3, &pod.config)]);
        let id = String::from_utf8(first(&self.call("CreateContainer", &request).unwrap(), 1)).unwrap();
        self.call("StartContainer", &text(1, &id)).unwrap();
        id
    }

    fn exec(&self, container: &str, script: &str) -> String {
        let command = message(&[text(2, "sh"), text(2, "-c"), text(2, script)]);
        let answer = self.call("ExecSync", &message(&[text(1, container), command, number(3, 120)])).unwrap();
        String::from_utf8(first(&answer, 1)).unwrap()
    }

    fn remove(&self, pod: &Pod) {
        for method in ["StopPodSandbox", "RemovePodSandbox"] {
            self.call(method, &text(1, &pod.id)).unwrap();
        }
    }
}

#[test]
fn pods_of_kubernetes_run_with_the_configuration_that_is_deployed() {
    let cri = Cri::start();
    fs::create_dir_all(cri.0.path("volume/..1")).unwrap();
    fs::write(cri.0.path("volume/..1/key"), "value\n").unwrap();
    std::os::unix::fs::symlink("..1", cri.0.path("volume/..data")).unwrap();
    std::os::unix::fs::symlink("..data/key", cri.0.path("volume/key")).unwrap();

    let pod = cri.pod("pod-one", Some(("io.hull.default_memory_mib", "300")), &[]).unwrap();
    let container = cri.container(&pod, false);
    let seen = cri.exec(&container, "cat /volume/key; hostname; cat /sys/fs/cgroup/memory.max");
    assert_eq!(seen, format!("value\npod-one\n{}\n", 64 << 20));
    let memory = cri.exec(&container, "awk '/^MemTotal/ {print int($2 / 1024)}' /proc/meminfo");
    assert!((220..300).contains(&memory.trim().parse::<u32>().unwrap()), "{memory}");
    assert!(cri.exec(&container, "ip -4 addr show eth0").contains("inet 10.99.0."), "the address of the pod's network");
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
}

fn message(fields: &[Vec<u8>]) -> Vec<u8> {
    fields.concat()
}

fn text(field: u8, value: &str) -> Vec<u8> {
    bytes(field, value.as_bytes())
}

fn bytes(field: u8, value: &[u8]) -> Vec<u8> {
    [varint(u64::from(field) << 3 | 2), varint(value.len().try_into().unwrap()), value.to_vec()].concat()
}

fn number(field: u8, value: u64) -> Vec<u8> {
    [varint(u64::from(field) << 3), varint(value)].concat()
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut encoded = Vec::new();
    while value >= 0x80 {
        encoded.push(u8::try_from(value & 0x7f).unwrap() | 0x80);
        value >>= 7;
    }
    encoded.push(u8::try_from(value).unwrap());
    encoded
}

/// The first field of that number, which has a length in front.
fn first(mut message: &[u8], wanted: u64) -> Vec<u8> {
    let mut take = || {
        let (mut value, mut shift) = (0, 0);
        loop {
            let byte = message[0];
            message = &message[1..];
            value |= u64::from(byte & 0x7f) << shift;
            shift += 7;
            if byte < 0x80 {
                return value;
            }
        }
    };
    let (tag, length) = (take(), take());
    assert_eq!(tag, wanted << 3 | 2, "the first field is another one");
    message[..usize::try_from(length).unwrap()].to_vec()
}
