//! A containerd of its own for a test, with its state below one directory; at the end nothing of it may be left.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use super::engine::Engine;
use crate::harness::{Run, image_dir, wait_for};

/// Hull's runtime.
pub const HULL: &str = "io.containerd.kata.v2";
/// The one that it is compared with.
pub const RUNC: &str = "io.containerd.runc.v2";

/// What tests mount in a containerd's directory has this name, and is unmounted at the end.
pub const SMALL_DISK: &str = "small-disk";

/// Of the image that every containerd here has.
pub const IMAGE: &str = "localhost/busybox:latest";

/// Scenarios, each a function of this name that is given a containerd: with this machine's own, each is a test of its own; with
/// Debian trixie's one after the other in one, because a start under emulation takes long.
macro_rules! scenarios {
    ($($name:ident),+ $(,)?) => {
        mod bookworm {
            use crate::containerd::harness::Containerd;
            $(#[test]
            fn $name() {
                super::$name(&Containerd::start());
            })+
        }

        #[test]
        fn trixie() {
            let containerd = Containerd::of(crate::containerd::engine::Engine::Trixie);
            $(eprintln!("{}", stringify!($name));
            $name(&containerd);
            containerd.assert_nothing_left();)+
        }
    };
}
pub(crate) use scenarios;

pub struct Containerd {
    engine: Engine,
    dir: TempDir,
    daemon: Option<Child>,
    containers: Mutex<Vec<String>>,
}

impl Containerd {
    /// Starts this machine's own without CRI and gives it the image.
    pub fn start() -> Self {
        Self::of(Engine::Bookworm)
    }

    /// As [`Containerd::start`], with the one of a suite.
    pub fn of(engine: Engine) -> Self {
        let containerd = Self::start_with(engine, |_| format!("disabled_plugins = {:?}", engine.cri_plugins()));
        containerd.import("default", "busybox", IMAGE);
        containerd
    }

    /// Starts one with `configuration` for its directory, in the engine's format, and gives it nothing.
    pub fn start_with(engine: Engine, configuration: impl FnOnce(&Path) -> String) -> Self {
        assert!(
            nix::unistd::geteuid().is_root(),
            "containerd needs root: HULL_FORCE_TESTBED=1 runs the tests where it has it"
        );
        // /run is a tmpfs: containerd's overlays can't be on another overlay, as a testbed's root is.
        let dir = TempDir::with_prefix_in("hc", "/run").unwrap();
        let config = format!(
            "version = {2}\nroot = \"{0}/root\"\nstate = \"{0}/state\"\n{1}\n\
             [grpc]\naddress = \"{0}/c.sock\"\n[debug]\nlevel = \"debug\"\n",
            dir.path().display(),
            configuration(dir.path()),
            engine.configuration_format()
        );
        fs::write(dir.path().join("config.toml"), config).unwrap();
        let mut containerd = Self { engine, dir, daemon: None, containers: Mutex::default() };
        containerd.launch();
        containerd
    }

    fn launch(&mut self) {
        let log = fs::File::options().create(true).append(true).open(self.path("log")).unwrap();
        let mut command = Command::new(self.engine.program("containerd"));
        command.arg("--config").arg(self.path("config.toml"));
        self.daemon = Some(self.engine.spawn(command, &self.path("h"), log));
        wait_for("containerd to answer", || self.ctr(["version"]).code == Some(0));
    }

    /// Gives a namespace of containerd's a test image, under a name.
    pub fn import(&self, namespace: &str, image: &str, name: &str) {
        let archive = self.path("image.tar");
        let tar = Command::new("tar").arg("-cf").arg(&archive).arg("-C").arg(image_dir(image)).arg(".").status();
        assert!(tar.unwrap().success());
        let mut args = vec!["--namespace", namespace, "images", "import"];
        args.extend_from_slice(self.engine.import_flags());
        args.extend(["--index-name", name, archive.to_str().unwrap()]);
        self.ctr(args).ok();
        fs::remove_file(archive).unwrap();
    }

    /// Which one it is.
    pub fn engine(&self) -> Engine {
        self.engine
    }

    /// Ends the daemon, as a crash would, and starts it again on the same state.
    pub fn restart(&mut self) {
        self.kill_daemon();
        self.launch();
    }

    fn kill_daemon(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            daemon.kill().unwrap();
            daemon.wait().unwrap();
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// containerd's log, in which the shims' messages are too.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.path("log")).unwrap()).into_owned()
    }

    /// `ctr ARGS...`, not yet started.
    pub fn command<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(self.engine.program("ctr"));
        command
            .arg("--address")
            .arg(self.path("c.sock"))
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Runs `ctr ARGS...` to its end.
    pub fn ctr<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Run {
        Run::from(self.command(args).output().unwrap())
    }

    /// An identifier that no other container of these tests has: runc keeps those of all containerds in one place.
    pub fn id(&self) -> String {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let id = format!("c{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        self.containers.lock().unwrap().push(id.clone());
        id
    }

    /// The arguments of `ctr run` for a new container.
    pub fn run_args(&self, runtime: &str, flags: &[&str], command: &[&str]) -> Vec<String> {
        let mut args: Vec<String> = ["run", "--runtime", runtime].map(str::to_owned).into();
        args.extend(flags.iter().map(|flag| (*flag).to_owned()));
        args.extend([IMAGE.to_owned(), self.id()]);
        args.extend(command.iter().map(|word| (*word).to_owned()));
        args
    }

    /// `ctr run --rm FLAGS... COMMAND...`.
    pub fn run(&self, runtime: &str, flags: &[&str], command: &[&str]) -> Run {
        let flags: Vec<_> = ["--rm"].iter().chain(flags).copied().collect();
        self.ctr(self.run_args(runtime, &flags, command))
    }

    /// Starts a container that runs `script` in the background; returns its identifier.
    pub fn detached(&self, runtime: &str, flags: &[&str], script: &str) -> String {
        let flags: Vec<_> = ["--detach", "--null-io"].iter().chain(flags).copied().collect();
        let args = self.run_args(runtime, &flags, &["sh", "-c", script]);
        self.ctr(&args).ok();
        let image = args.iter().position(|arg| arg == IMAGE).unwrap();
        args[image + 1].clone()
    }

    /// What `ctr task ls` says of a container: process identifier and status.
    pub fn task(&self, id: &str) -> Option<(i32, String)> {
        let list = self.ctr(["task", "ls"]).ok();
        let mut words = list.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let row = words.find(|row| row.first() == Some(&id))?;
        Some((row[1].parse().unwrap(), row[2].to_owned()))
    }

    /// The processes that `ctr task ps` lists of a container.
    pub fn listed(&self, id: &str) -> Vec<i32> {
        let list = self.ctr(["task", "ps", id]).ok();
        let rows = list.lines().skip(1).filter_map(|row| row.split_whitespace().next());
        rows.map(|pid| pid.parse().unwrap()).collect()
    }

    pub fn wait_for_status(&self, id: &str, status: &str) {
        wait_for(&format!("{id} to be {status}"), || self.task(id).is_some_and(|(_, is)| is == status));
    }

    /// Deletes a task that has ended; returns its status, of which `ctr` says something if it is not 0.
    pub fn delete_task(&self, id: &str) -> Option<i32> {
        let run = self.ctr(["task", "rm", id]);
        run.ok();
        let status = run.stderr.split("exit code ").nth(1)?;
        status.trim_end().trim_end_matches('"').parse().ok()
    }

    /// Kills a container and deletes it with its task.
    pub fn remove(&self, id: &str) {
        self.end(id);
        self.ctr(["container", "rm", id]).ok();
    }

    /// As [`Containerd::remove`], of a container that may not have come into being, or does so just now.
    pub fn forget(&self, id: &str) {
        wait_for(&format!("{id} to be deleted"), || {
            self.end(id);
            let exists = self.ctr(["container", "ls", "--quiet"]).ok().lines().any(|line| line == id);
            !exists || self.ctr(["container", "rm", id]).code == Some(0)
        });
    }

    fn end(&self, id: &str) {
        self.ctr(["task", "kill", "--signal", "KILL", id]);
        wait_for(&format!("{id} to end"), || self.task(id).is_none_or(|(_, status)| status == "STOPPED"));
        self.ctr(["task", "rm", id]);
    }

    /// Processes named `name` that belong to this containerd.
    pub fn processes(&self, name: &str) -> Vec<i32> {
        let needle = self.dir.path().as_os_str().as_encoded_bytes();
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").unwrap().filter_map(Result::ok) {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let program = line.split(|byte| *byte == 0).next().unwrap_or_default();
            if program.ends_with(name.as_bytes()) && line.windows(needle.len()).any(|part| part == needle) {
                found.push(pid);
            }
        }
        found
    }

    pub fn shims(&self) -> Vec<i32> {
        self.processes("containerd-shim-kata-v2")
    }

    /// Shims without those that only start or delete another one.
    pub fn serving_shims(&self) -> Vec<i32> {
        let serves = |pid: &i32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.split(|byte| *byte == 0).any(|word| word == b"-socket")
        };
        self.shims().into_iter().filter(serves).collect()
    }

    pub fn monitors(&self) -> Vec<i32> {
        self.processes("hull-vmm")
    }

    /// No shim, no VM, no socket, no mount, no cgroup and no directory of a container is left.
    pub fn assert_nothing_left(&self) {
        wait_for("shims and VMs to end", || self.shims().is_empty() && self.monitors().is_empty());
        let sandboxes: Vec<_> =
            fs::read_dir(self.path("h")).into_iter().flatten().map(|dir| dir.unwrap().path()).collect();
        assert_eq!(sandboxes, Vec::<PathBuf>::new(), "left in the runtime directory");
        let mounts: Vec<_> = self.mounts().into_iter().filter(|mount| !mount.starts_with(SMALL_DISK)).collect();
        assert_eq!(mounts, Vec::<String>::new(), "left mounted");
        // containerd removes the bundle of a shim that has ended by itself a moment later.
        let bundles = self.path("state/io.containerd.runtime.v2.task/default");
        let is_empty = || fs::read_dir(&bundles).into_iter().flatten().next().is_none();
        wait_for(&format!("the bundles in {} to go", bundles.display()), is_empty);
        for id in self.containers.lock().unwrap().iter() {
            let socket = self.socket(id);
            wait_for(&format!("the socket of {id} to go: {}", socket.display()), || !socket.exists());
            let cgroup = Path::new("/sys/fs/cgroup/default").join(id);
            wait_for(&format!("the cgroup of {id} to go"), || !cgroup.exists());
        }
    }

    /// What is mounted below its directory.
    fn mounts(&self) -> Vec<String> {
        let all = fs::read_to_string("/proc/self/mounts").unwrap();
        all.lines().filter(|mount| mount.contains(self.dir.path().to_str().unwrap())).map(str::to_owned).collect()
    }

    /// Where the shim of a container serves.
    fn socket(&self, id: &str) -> PathBuf {
        let name = self.path("c.sock").join("default").join(id);
        let name = hex::encode(Sha256::digest(name.as_os_str().as_encoded_bytes()));
        Path::new("/run/containerd/s").join(name)
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("containerd's log:\n{}", tail(&self.log(), 120));
            for pid in self.shims().into_iter().chain(self.monitors()) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        } else {
            self.assert_nothing_left();
        }
        self.kill_daemon();
        for disk in self.mounts().iter().filter(|mount| mount.starts_with(SMALL_DISK)) {
            let place = disk.split(' ').nth(1).unwrap_or_default();
            let _ = umount2(place, MntFlags::MNT_DETACH);
        }
    }
}

fn tail(text: &str, count: usize) -> String {
    let lines: Vec<_> = text.lines().filter(|line| !line.contains("loading plugin")).collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}
