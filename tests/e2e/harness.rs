//! Runs `hull` with a runtime directory of its own for each test and checks that nothing is left behind.

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// The longest that anything in these tests may take, under emulation too.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// A `hull` with its own runtime directory and the image store that all tests share.
pub struct Hull {
    runtime: TempDir,
    store: PathBuf,
}

/// What one command printed and how it ended.
#[derive(Debug)]
pub struct Run {
    pub code: Option<i32>,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

impl Hull {
    pub fn new() -> Self {
        Self::with_store(shared_store())
    }

    /// With an image store of its own, at `store`.
    pub fn with_store(store: &Path) -> Self {
        Self {
            // Short, because socket paths live below it.
            runtime: TempDir::with_prefix_in("h", "/tmp").unwrap(),
            store: store.to_owned(),
        }
    }

    /// `hull ARGS...`, not yet started.
    pub fn command<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(binary("hull"));
        command
            .args(args)
            .env("HULL_RUNTIME_DIR", self.runtime.path())
            .env("HULL_ROOT", &self.store)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Runs `hull ARGS...` to its end.
    pub fn hull<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Run {
        Run::from(self.command(args).output().unwrap())
    }

    /// Runs `hull run FLAGS... IMAGE sh -c SCRIPT` with the busybox image.
    pub fn sh(&self, flags: &[&str], script: &str) -> Run {
        let image = image("busybox");
        let mut args = vec!["run"];
        args.extend_from_slice(flags);
        args.extend([image.as_str(), "sh", "-c", script]);
        self.hull(args)
    }

    /// Runs `hull run FLAGS... IMAGE COMMAND...` with `input` as standard input.
    pub fn feed(&self, args: &[&str], input: Vec<u8>) -> Run {
        let mut child = self.command(args).stdin(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let writer = std::thread::spawn(move || stdin.write_all(&input));
        let run = Run::from(child.wait_with_output().unwrap());
        // The command may end before it has read all.
        let _ = writer.join().unwrap();
        run
    }

    /// Starts `hull run FLAGS... IMAGE sh -c SCRIPT` and returns when `marker` has appeared on its standard output.
    pub fn start(&self, flags: &[&str], script: &str, marker: &str) -> Running {
        let image = image("busybox");
        let mut args = vec!["run"];
        args.extend_from_slice(flags);
        args.extend([image.as_str(), "sh", "-c", script]);
        let log = self.runtime.path().with_extension("out");
        let child = self.command(args).stdout(fs::File::create(&log).unwrap()).spawn().unwrap();
        let mut running = Running { child, log };
        wait_for(&format!("{marker:?} on stdout"), || {
            assert!(
                running.child.try_wait().unwrap().is_none() || running.stdout().contains(marker),
                "hull ended before {marker:?}"
            );
            running.stdout().contains(marker)
        });
        running
    }

    /// Where its running sandboxes are.
    pub fn runtime(&self) -> &Path {
        self.runtime.path()
    }

    /// Process identifiers of this test's monitors.
    pub fn monitors(&self) -> Vec<i32> {
        processes_naming(self.runtime.path()).into_iter().filter(|pid| command_name(*pid) == "hull-vmm").collect()
    }

    /// No process, directory, socket or mount of this test exists any more.
    pub fn assert_nothing_left(&self) {
        wait_for("all processes of the test to end", || processes_naming(self.runtime.path()).is_empty());
        let files: Vec<_> = sandbox_entries(self.runtime.path());
        assert_eq!(files, Vec::<PathBuf>::new(), "left in the runtime directory");
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let dir = self.runtime.path().to_str().unwrap();
        assert!(!mounts.contains(dir), "left mounted: {mounts}");
    }
}

impl Drop for Hull {
    fn drop(&mut self) {
        let _ = fs::remove_file(self.runtime.path().with_extension("out"));
        if !std::thread::panicking() {
            self.assert_nothing_left();
        }
    }
}

/// A started `hull run`.
pub struct Running {
    pub child: Child,
    log: PathBuf,
}

impl Running {
    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap()).into_owned()
    }

    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(self.child.id().try_into().unwrap());
        nix::sys::signal::kill(pid, signal).unwrap();
    }

    /// Waits for the end.
    pub fn finish(self) -> Run {
        let log = self.log.clone();
        let output = self.child.wait_with_output().unwrap();
        Run { stdout: fs::read(log).unwrap(), ..Run::from(output) }
    }
}

impl From<Output> for Run {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: output.stdout,
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Run {
    /// Standard output as text; the command must have succeeded.
    #[track_caller]
    pub fn ok(&self) -> String {
        assert_eq!(self.code, Some(0), "{self:?}");
        self.text()
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// The command failed with `code`, and said why in one line that contains each of `words`.
    #[track_caller]
    pub fn fails(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, Some(code), "{self:?}");
        let lines: Vec<_> = self.stderr.lines().filter(|line| !line.is_empty()).collect();
        assert_eq!(lines.len(), 1, "one line of explanation: {self:?}");
        for word in words {
            assert!(lines[0].to_lowercase().contains(&word.to_lowercase()), "{word:?} in {self:?}");
        }
        assert!(!self.stderr.contains("panicked at"), "{self:?}");
    }
}

/// Reference to a test image.
pub fn image(name: &str) -> String {
    format!("oci:{}", image_dir(name).display())
}

pub fn image_dir(name: &str) -> PathBuf {
    let images = std::env::var_os("HULL_TEST_IMAGES").expect("HULL_TEST_IMAGES is set");
    Path::new(&images).join(name)
}

pub fn prefix() -> PathBuf {
    std::env::var_os("HULL_PREFIX").expect("HULL_PREFIX is set").into()
}

pub fn binary(name: &str) -> PathBuf {
    prefix().join("bin").join(name)
}

/// Polls until `condition` holds. Only for things that these tests can't wait for in another way.
pub fn wait_for(what: &str, condition: impl FnMut() -> bool) {
    wait_within(PATIENCE, what, condition);
}

/// [`wait_for`] with another limit, for what is known to take long under emulation.
pub fn wait_within(patience: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < patience, "still waiting for {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// By how much `make soak` multiplies the counts of `make test`.
pub fn soak() -> usize {
    std::env::var("HULL_SOAK").map_or(1, |factor| factor.parse().expect("HULL_SOAK is a number"))
}

/// Deterministic bytes without a period that buffers could hide.
pub fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

fn shared_store() -> &'static Path {
    static STORE: OnceLock<PathBuf> = OnceLock::new();
    STORE.get_or_init(|| {
        let path = std::env::temp_dir().join(format!("hull-e2e-store-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        path
    })
}

pub fn processes_naming(path: &Path) -> Vec<i32> {
    let needle = path.as_os_str().as_encoded_bytes();
    let contains =
        |file: &Path| fs::read(file).is_ok_and(|bytes| bytes.windows(needle.len()).any(|part| part == needle));
    fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let found = contains(&entry.path().join("cmdline")) || contains(&entry.path().join("environ"));
            found.then_some(pid)
        })
        .collect()
}

fn command_name(pid: i32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned()
}

fn sandbox_entries(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir).map(|entries| entries.map(|entry| entry.unwrap().path()).collect()).unwrap_or_default()
}
