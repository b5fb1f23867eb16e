//! A Docker of its own for a test, with its state below one directory and its bridges in one network namespace.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use tempfile::TempDir;

use crate::containerd::engine::Engine;
use crate::containerd::harness::HULL;
use crate::harness::{Run, image, prefix, processes_naming, wait_for};

/// The suite whose Docker it is.
const ENGINE: Engine = Engine::Trixie;
/// Where the namespace of the daemon is reached from this machine.
pub const ADDRESS: &str = "10.82.0.2";

pub struct Docker {
    dir: TempDir,
    namespace: String,
    daemon: Option<Child>,
}

impl Docker {
    /// Starts one that has the image `busybox`.
    pub fn start() -> Self {
        assert!(nix::unistd::geteuid().is_root(), "Docker needs root");
        // /run is a tmpfs: Docker's overlays can't be on another overlay, as a testbed's root is.
        let dir = TempDir::with_prefix_in("hd", "/run").unwrap();
        let namespace = dir.path().file_name().unwrap().to_str().unwrap().to_owned();
        let mut docker = Self { dir, namespace, daemon: None };
        docker.make_namespace();
        docker.launch();
        docker.load_image();
        docker
    }

    fn make_namespace(&self) {
        let name = &self.namespace;
        succeed("ip", &format!("netns add {name}"));
        succeed("ip", &format!("link add {name} type veth peer name outside netns {name}"));
        succeed("ip", &format!("addr add 10.82.0.1/24 dev {name}"));
        succeed("ip", &format!("link set {name} up"));
        succeed("ip", &format!("-n {name} addr add {ADDRESS}/24 dev outside"));
        succeed("ip", &format!("-n {name} link set outside up"));
        succeed("ip", &format!("-n {name} link set lo up"));
    }

    fn launch(&mut self) {
        let path = |name: &str| self.path(name);
        let config = json!({
            "data-root": path("data"), "exec-root": path("exec"), "pidfile": path("pid"),
            "hosts": [self.host()], "storage-driver": "overlay2", "debug": true,
            "userland-proxy-path": ENGINE.program("docker-proxy"),
        });
        fs::write(path("daemon.json"), config.to_string()).unwrap();
        let log = fs::File::create(path("log")).unwrap();
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net=/run/netns/{}", self.namespace))
            .arg(ENGINE.program("dockerd"))
            .arg("--config-file")
            .arg(path("daemon.json"));
        self.daemon = Some(ENGINE.spawn(command, &path("h"), log));
        wait_for("Docker to answer", || self.docker(["version"]).code == Some(0));
    }

    fn load_image(&self) {
        let archive = self.path("busybox.tar");
        let to = format!("docker-archive:{}:busybox:latest", archive.display());
        let output =
            Command::new("skopeo").args(["copy", "--insecure-policy", &image("busybox"), &to]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        self.docker(["load", "--input", archive.to_str().unwrap()]).ok();
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn host(&self) -> String {
        format!("unix://{}", self.path("sock").display())
    }

    /// `docker ARGS...`, not yet started.
    pub fn command<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(ENGINE.program("docker"));
        command.arg("--host").arg(self.host()).args(args);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs `docker ARGS...` to its end.
    pub fn docker<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Run {
        Run::from(self.command(args).output().unwrap())
    }

    /// The arguments of `docker run` with Hull.
    pub fn run_args<'a>(flags: &[&'a str], command: &[&'a str]) -> Vec<&'a str> {
        [&["run", "--runtime", HULL], flags, &["busybox"], command].concat()
    }

    /// `docker run --rm FLAGS... busybox COMMAND...`.
    pub fn run(&self, flags: &[&str], command: &[&str]) -> Run {
        self.docker(Self::run_args(&[&["--rm"], flags].concat(), command))
    }

    /// Starts the container `name`, which runs `script` in the background.
    pub fn detached(&self, name: &str, flags: &[&str], script: &str) {
        let flags = [&["--detach", "--name", name], flags].concat();
        self.docker(Self::run_args(&flags, &["sh", "-c", script])).ok();
    }

    /// What `script` prints in the container.
    pub fn exec(&self, name: &str, script: &str) -> String {
        self.docker(["exec", name, "sh", "-c", script]).ok()
    }

    /// What `docker inspect` says.
    pub fn inspect(&self, name: &str, template: &str) -> String {
        self.docker(["inspect", "--format", template, name]).ok().trim().to_owned()
    }

    /// The body of an answer to HTTP, asked in the daemon's network namespace: on this machine, for who runs Docker there.
    pub fn get(&self, url: &str) -> String {
        let args = ["netns", "exec", &self.namespace, "curl", "--silent", "--show-error", "--max-time", "60", url];
        Run::from(Command::new("ip").args(args).output().unwrap()).ok()
    }

    /// Processes of this Docker, its containerd and its containers.
    fn processes(&self) -> Vec<i32> {
        processes_naming(self.dir.path())
    }

    fn assert_nothing_left(&self) {
        let names = ["hull-vmm", "containerd-shim-kata-v2"].map(|name| prefix().join("bin").join(name));
        let left = || {
            let program = |pid: &i32| fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
            self.processes().iter().any(|pid| names.contains(&program(pid)))
        };
        wait_for("shims and VMs to end", || !left());
        let sandboxes: Vec<_> =
            fs::read_dir(self.path("h")).into_iter().flatten().map(|dir| dir.unwrap().path()).collect();
        assert_eq!(sandboxes, Vec::<PathBuf>::new(), "left in the runtime directory");
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let dir = self.path("h").to_str().unwrap().to_owned();
        assert!(!mounts.contains(&dir), "left mounted: {mounts}");
    }

    fn remove_all(&self) {
        if std::thread::panicking() {
            let log = fs::read_to_string(self.path("log")).unwrap_or_default();
            let lines: Vec<_> = log.lines().filter(|line| !line.contains("loading plugin")).collect();
            eprintln!("Docker's log:\n{}", lines[lines.len().saturating_sub(120)..].join("\n"));
        }
        let containers = self.docker(["ps", "--all", "--quiet"]).text();
        self.docker(["rm", "--force", "--volumes"].into_iter().chain(containers.lines()));
        if !std::thread::panicking() {
            self.assert_nothing_left();
        }
    }

    fn end(&mut self, signal: Signal) {
        if let Some(mut daemon) = self.daemon.take() {
            let _ = kill(Pid::from_raw(daemon.id().try_into().unwrap()), signal);
            let _ = daemon.wait();
        }
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        // It may not have come to that.
        if self.daemon.is_some() {
            self.remove_all();
        }
        self.end(Signal::SIGTERM);
        for pid in self.processes() {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        let _ = Command::new("umount").args(["--recursive", "--lazy"]).arg(self.path("exec")).output();
        let _ = Command::new("ip").args(["netns", "del", &self.namespace]).status();
    }
}

fn succeed(program: impl AsRef<Path>, arguments: &str) {
    let output = Command::new(program.as_ref()).args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
}
