//! A sandbox through the library, with bundles of the host.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hull_sandbox::runtime_dir::{SandboxStatus, new_id};
use hull_sandbox::timeline::Timeline;
use hull_sandbox::{
    BundleContainer, BundleRoot, Container, NetworkNamespace, ProcessIo, ProcessStreams, RuntimeRoot, Sandbox,
    SandboxConfig, SandboxError, SandboxRecord,
};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::AsyncReadExt;
use tokio::time::timeout;

use crate::harness::{Hull, PATIENCE, binary, prefix};

/// Runs a test that waits for much at once.
pub fn block_on<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { timeout(PATIENCE * 2, test).await.expect("the test to come to an end") })
}

/// A running sandbox and a tmpfs of the host with an image. Nothing may be left of either at the end.
pub struct Pod {
    pub sandbox: Sandbox,
    host: TempDir,
    /// Checks the runtime directory when it is dropped.
    hull: Hull,
}

impl Pod {
    pub async fn start() -> Self {
        let hull = Hull::new();
        let host = TempDir::with_prefix_in("hull-bundle-", "/tmp").unwrap();
        mount(Some("host"), host.path(), Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        mount(None::<&str>, host.path(), None::<&str>, MsFlags::MS_SHARED, None::<&str>).unwrap();
        make_image(&host.path().join("image"));
        let config = SandboxConfig {
            record: SandboxRecord {
                id: new_id().unwrap(),
                name: "pod".into(),
                image: String::new(),
                command: Vec::new(),
                created_s: 0,
                status: SandboxStatus::Starting,
                owner_pid: std::process::id(),
                monitor_pid: 0,
                vcpus: 1,
                memory_mib: 192,
                max_memory_mib: 192,
                stop_signal: 15,
                stop_timeout_s: 10,
            },
            max_vcpus: 1,
            root: RuntimeRoot::open(hull.runtime()).unwrap(),
            monitor: binary("hull-vmm"),
            kernel: prefix().join("lib/hull/vmlinux"),
            initramfs: prefix().join("lib/hull/initramfs.cpio"),
            drives: Vec::new(),
            shared_directory: true,
            watchdog: false,
            network: NetworkNamespace::Host,
            cgroup: None,
            ready_timeout: PATIENCE,
        };
        let sandbox = Sandbox::create(config, Arc::new(Timeline::default())).await.unwrap();
        Self { sandbox, host, hull }
    }

    /// A file of the host.
    pub fn host(&self, path: &str) -> PathBuf {
        self.host.path().join(path)
    }

    /// A new directory of the host.
    pub fn directory(&self, path: &str) -> PathBuf {
        fs::create_dir_all(self.host(path)).unwrap();
        self.host(path)
    }

    /// Makes a container that runs a script in the image, with changes of its specification.
    pub async fn create(
        &self,
        id: &str,
        script: &str,
        change: impl FnOnce(&mut Value),
    ) -> Result<(Container, ProcessStreams), SandboxError> {
        self.create_from(id, BundleRoot::Directory(self.host("image")), script, change).await
    }

    pub async fn create_from(
        &self,
        id: &str,
        root: BundleRoot,
        script: &str,
        change: impl FnOnce(&mut Value),
    ) -> Result<(Container, ProcessStreams), SandboxError> {
        let mut spec = spec(script);
        change(&mut spec);
        let spec = serde_json::from_value(spec).unwrap();
        let io = ProcessIo { stdin: false, terminal: None };
        self.sandbox.create_bundle(BundleContainer { id: id.into(), spec, root, io }).await
    }

    /// Runs a script to its end and returns what it printed. It must have succeeded.
    pub async fn run(&self, id: &str, script: &str, change: impl FnOnce(&mut Value)) -> String {
        let (container, streams) = self.create(id, script, change).await.unwrap();
        finish(&container, streams).await
    }

    /// Ends the sandbox. Nothing is left mounted, and nothing of the host is in use.
    pub async fn end(self) {
        self.sandbox.shutdown().await;
        umount2(self.host.path(), MntFlags::empty()).expect("the host's file system is not in use");
        drop(self.hull);
    }
}

/// Starts a container, waits for its end and deletes it.
pub async fn finish(container: &Container, mut streams: ProcessStreams) -> String {
    container.start().await.unwrap();
    let (mut out, mut err) = (String::new(), String::new());
    streams.stdout.take().unwrap().read_to_string(&mut out).await.unwrap();
    streams.stderr.take().unwrap().read_to_string(&mut err).await.unwrap();
    let exit = container.process().wait().await.unwrap();
    assert_eq!((exit.status, err.as_str()), (0, ""), "{out}");
    container.delete(false).await.unwrap();
    out
}

/// Reads one line.
pub async fn line(streams: &mut ProcessStreams) -> String {
    let mut line = Vec::new();
    let stdout = streams.stdout.as_mut().unwrap();
    loop {
        match stdout.read_u8().await {
            Ok(b'\n') | Err(_) => return String::from_utf8(line).unwrap(),
            Ok(byte) => line.push(byte),
        }
    }
}

/// A bind mount for a specification.
pub fn bind(source: &Path, destination: &str, options: &[&str]) -> Value {
    json!({ "destination": destination, "type": "bind", "source": source, "options": options })
}

pub fn add_mounts(mounts: Vec<Value>) -> impl FnOnce(&mut Value) {
    move |spec| spec["mounts"].as_array_mut().unwrap().extend(mounts)
}

/// Busybox with its applets.
fn make_image(image: &Path) {
    let bin = image.join("bin");
    fs::create_dir_all(&bin).unwrap();
    for directory in ["etc", "tmp", "proc", "sys", "dev"] {
        fs::create_dir(image.join(directory)).unwrap();
    }
    fs::copy("/bin/busybox", bin.join("busybox")).unwrap();
    for applet in [
        "sh", "cat", "dd", "echo", "hostname", "id", "ip", "ls", "mkdir", "mv", "ps", "rm", "sleep", "stat", "touch",
        "usleep", "wc",
    ] {
        symlink("busybox", bin.join(applet)).unwrap();
    }
}

/// As containerd writes it for a container of a pod: the namespaces of the pod have paths.
fn spec(script: &str) -> Value {
    let safe = ["nosuid", "noexec", "nodev"];
    json!({
        "ociVersion": "1.1.0",
        "root": { "path": "rootfs" },
        "process": {
            "user": { "uid": 0, "gid": 0 }, "args": ["sh", "-c", script], "cwd": "/",
            "env": ["PATH=/bin"],
            "capabilities": { "bounding": ["CAP_KILL", "CAP_DAC_OVERRIDE"], "effective": ["CAP_KILL", "CAP_DAC_OVERRIDE"], "permitted": ["CAP_KILL", "CAP_DAC_OVERRIDE"] },
        },
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc", "options": safe },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"] },
            { "destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"] },
            { "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["nosuid", "noexec", "nodev", "ro"] },
        ],
        "linux": {
            "cgroupsPath": "/kubepods/x",
            "namespaces": [
                { "type": "pid" }, { "type": "mount" }, { "type": "cgroup" },
                { "type": "ipc", "path": "/proc/1/ns/ipc" }, { "type": "uts", "path": "/proc/1/ns/uts" },
                { "type": "network", "path": "/proc/1/ns/net" },
            ],
        },
    })
}
