//! Starts `hull-vmm` by itself: a configuration file, a small guest of busybox, and the control socket.

use std::cell::Cell;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::{PATIENCE, Run, binary, prefix, wait_for, wait_within};

/// What each guest's `/init` does first. `say` writes a line to the console.
const INIT_BEGIN: &str = "#!/bin/sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
say() { echo \"$*\" >/dev/console; }
";

/// A VM of a test, not yet started: Hull's kernel, 64 MiB, a console log, nothing else.
pub struct Vm {
    dir: TempDir,
    config: Value,
    with_events: bool,
}

impl Vm {
    /// `init` is the rest of the guest's `/init`, a shell script. The guest panics when it ends without powering off.
    pub fn with_init(init: &str) -> Self {
        Self::with_programs(&[], init)
    }

    /// As [`Vm::with_init`], with programs of the host and their libraries in `/bin`.
    pub fn with_programs(programs: &[&str], init: &str) -> Self {
        let vm = Self::with_kernel(&prefix().join("lib/hull/vmlinux"));
        let archive = vm.path("initramfs");
        fs::write(&archive, initramfs(&format!("{INIT_BEGIN}{init}\n"), programs)).unwrap();
        vm.set("/boot-source/initrd_path", json!(archive))
    }

    /// Puts a program into the guest: the kernel unpacks one archive after the other.
    pub fn add_file(self, name: &str, program: &Path) -> Self {
        let mut archive = Archive::default();
        archive.add(name, 0o100_755, (0, 0), &fs::read(program).unwrap());
        let mut file = fs::OpenOptions::new().append(true).open(self.path("initramfs")).unwrap();
        file.write_all(&archive.end()).unwrap();
        self
    }

    /// With another kernel and without an initramfs.
    pub fn with_kernel(kernel: &Path) -> Self {
        // Short, because socket paths live below it.
        let dir = TempDir::with_prefix_in("v", "/tmp").unwrap();
        let config = json!({
            "boot-source": { "kernel_image_path": kernel, "boot_args": "" },
            "machine-config": { "vcpu_count": 1, "mem_size_mib": 64 },
            "console": { "log_path": dir.path().join("console") },
        });
        Self { dir, config, with_events: false }
    }

    /// Another kernel for the same guest.
    pub fn kernel(self, path: &Path) -> Self {
        self.set("/boot-source/kernel_image_path", json!(path))
    }

    /// More words for the kernel's command line.
    pub fn boot_args(self, words: &str) -> Self {
        self.set("/boot-source/boot_args", json!(words))
    }

    pub fn memory_mib(self, mib: u64) -> Self {
        self.set("/machine-config/mem_size_mib", json!(mib))
    }

    /// Sets a value by its JSON pointer; the parent must be there.
    pub fn set(mut self, pointer: &str, value: Value) -> Self {
        let (parent, name) = pointer.rsplit_once('/').unwrap();
        self.config.pointer_mut(parent).unwrap()[name] = value;
        self
    }

    /// With a control socket.
    pub fn control(self) -> Self {
        let path = self.path("control");
        self.set("/control_socket", json!(path))
    }

    /// With an event stream, which is then the standard output of the run.
    pub fn events(mut self) -> Self {
        self.with_events = true;
        self
    }

    /// A path in the directory of this VM.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Starts the monitor.
    pub fn start(self) -> Started {
        let file = self.path("vm.json");
        fs::write(&file, self.config.to_string()).unwrap();
        let mut command = if self.with_events {
            // Only descriptors 0 to 2 can be given by name here; the shell moves one of them.
            let mut shell = Command::new("sh");
            shell.args(["-c", r#"exec "$0" "$@" --events-fd 3 3>&1 >/dev/null"#]).arg(binary("hull-vmm"));
            shell
        } else {
            Command::new(binary("hull-vmm"))
        };
        command.args(["run", "--id", "tested", "--config"]).arg(file);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Started { child: Some(command.spawn().unwrap()), dir: self.dir, seen: Cell::new(0) }
    }

    /// Starts the monitor with nothing but a control socket; the configuration is for the test to send.
    pub fn start_with_api(self) -> (Started, Value) {
        let mut command = Command::new(binary("hull-vmm"));
        command.arg("--api-sock").arg(self.path("control")).args(["--id", "tested"]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let started = Started { child: Some(command.spawn().unwrap()), dir: self.dir, seen: Cell::new(0) };
        wait_for("the control socket", || UnixStream::connect(started.path("control")).is_ok());
        (started, self.config)
    }

    /// Starts the monitor and waits for its end. Returns the guest's console too.
    pub fn run(self) -> (Run, String) {
        self.start().finish()
    }
}

/// A started monitor. Dropping it ends it.
pub struct Started {
    child: Option<Child>,
    dir: TempDir,
    /// Bytes of the console that [`Started::wait_for`] has looked at.
    seen: Cell<usize>,
}

impl Started {
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// What the guest wrote to its console so far.
    pub fn console(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.path("console")).unwrap_or_default()).into_owned()
    }

    /// Waits until the guest writes `words`, after what an earlier call waited for.
    pub fn wait_for(&mut self, words: &str) {
        self.wait_for_within(PATIENCE, words);
    }

    /// [`Started::wait_for`] a guest that takes long.
    pub fn wait_for_within(&mut self, patience: Duration, words: &str) {
        let start = Instant::now();
        while !self.saw(words) {
            let ended = self.child.as_mut().unwrap().try_wait().unwrap();
            assert!(ended.is_none(), "hull-vmm ended ({ended:?}) before {words:?}: {}", self.console());
            assert!(start.elapsed() < patience, "still waiting for {words:?} on the console: {}", self.console());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn saw(&self, words: &str) -> bool {
        let console = self.console();
        let found = console.get(self.seen.get()..).unwrap_or_default().find(words);
        if let Some(at) = found {
            self.seen.set(self.seen.get() + at + words.len());
        }
        found.is_some()
    }

    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(self.child.as_ref().unwrap().id().try_into().unwrap());
        nix::sys::signal::kill(pid, signal).unwrap();
    }

    /// Sends a request to the control socket; returns the status and the body.
    pub fn request(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        let mut stream = UnixStream::connect(self.path("control")).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no HTTP answer: {answer:?}"));
        let status = head.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)?.parse().ok());
        let status = status.unwrap_or_else(|| panic!("no HTTP status: {answer:?}"));
        let body = if body.is_empty() { Value::Null } else { serde_json::from_str(body).unwrap() };
        (status, body)
    }

    /// `GET path`, which must succeed.
    pub fn get(&self, path: &str) -> Value {
        let (status, body) = self.request("GET", path, "");
        assert_eq!(status, 200, "{path}: {body}");
        body
    }

    /// Waits for the end and checks that no socket is left. Returns the guest's console too.
    pub fn finish(self) -> (Run, String) {
        self.finish_within(PATIENCE)
    }

    /// [`Started::finish`] of a guest that takes long.
    pub fn finish_within(mut self, patience: Duration) -> (Run, String) {
        wait_within(patience, "hull-vmm to end", || self.child.as_mut().unwrap().try_wait().unwrap().is_some());
        let run = Run::from(self.child.take().unwrap().wait_with_output().unwrap());
        let sockets: Vec<_> = fs::read_dir(self.dir.path())
            .unwrap()
            .map(Result::unwrap)
            .filter(|entry| entry.file_type().unwrap().is_socket())
            .map(|entry| entry.path())
            .collect();
        assert_eq!(sockets, Vec::<PathBuf>::new(), "left behind: {run:?}");
        (run, self.console())
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The program of this name and the libraries that its loader would load.
pub fn program_files(program: &str) -> Vec<PathBuf> {
    let path = ["/usr/bin", "/usr/sbin"].map(|directory| Path::new(directory).join(program));
    let path = path.into_iter().find(|path| path.exists()).unwrap_or_else(|| panic!("{program} is not installed"));
    let list = Command::new("ldd").arg(&path).output().unwrap();
    let list = String::from_utf8(list.stdout).unwrap();
    let libraries = list.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from);
    std::iter::once(path).chain(libraries).collect()
}

/// An archive with static busybox, `init` and programs of the host.
fn initramfs(init: &str, programs: &[&str]) -> Vec<u8> {
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].iter().find_map(|path| fs::read(path).ok());
    let busybox = busybox.expect("busybox is there (Debian package busybox-static)");
    let mut archive = Archive::default();
    let directories = ["bin", "dev", "proc", "sys", "tmp", "lib", "lib64", "lib/x86_64-linux-gnu"];
    for directory in directories {
        archive.add(directory, 0o040_755, (0, 0), b"");
    }
    for file in programs.iter().flat_map(|program| program_files(program)) {
        let name = file.file_name().unwrap().to_str().unwrap();
        let parent = file.parent().unwrap().to_str().unwrap().trim_start_matches("/usr").trim_start_matches('/');
        let parent = if parent.ends_with("bin") { "bin" } else { parent };
        archive.add(&format!("{parent}/{name}"), 0o100_755, (0, 0), &fs::read(&file).unwrap());
    }
    // The kernel opens it for init before anything is mounted.
    archive.add("dev/console", 0o020_600, (5, 1), b"");
    archive.add("bin/busybox", 0o100_755, (0, 0), &busybox);
    archive.add("bin/sh", 0o120_777, (0, 0), b"busybox");
    archive.add("init", 0o100_755, (0, 0), init.as_bytes());
    archive.end()
}

/// A cpio archive in the "newc" form (kernel: Documentation/driver-api/early-userspace/buffer-format.rst).
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    fn add(&mut self, name: &str, mode: u32, (major, minor): (u32, u32), content: &[u8]) {
        self.entries += 1;
        let content_bytes = u32::try_from(content.len()).unwrap();
        let name_bytes = u32::try_from(name.len() + 1).unwrap();
        self.bytes.extend(b"070701");
        // inode, mode, uid, gid, links, time, size, device, device of the node, length of the name, check sum
        for field in [self.entries, mode, 0, 0, 1, 0, content_bytes, 0, 0, major, minor, name_bytes, 0] {
            write!(self.bytes, "{field:08x}").unwrap();
        }
        self.bytes.extend(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn end(mut self) -> Vec<u8> {
        self.add("TRAILER!!!", 0, (0, 0), b"");
        self.bytes
    }
}
