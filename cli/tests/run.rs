//! `hull run` with a fake monitor: everything on the host's side of the VM, on any machine.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test")]

use std::fs;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::pty::{Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(30);

/// Directories of one test and a root file system that is the host's: an empty directory serves as image.
struct Scene {
    dir: TempDir,
}

impl Scene {
    fn new() -> Self {
        let dir = TempDir::with_prefix_in("h", "/tmp").unwrap();
        for name in ["run", "rootfs", "guest"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        fs::write(dir.path().join("rootfs/file"), "content").unwrap();
        fs::write(dir.path().join("guest/vmlinux"), "Linux version 6.12.0-fake (x)\n").unwrap();
        fs::write(dir.path().join("guest/initramfs.cpio"), "").unwrap();
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn hull(&self, args: &[&str]) -> Command {
        let hull = Path::new(env!("CARGO_BIN_EXE_hull"));
        let mut command = Command::new(hull);
        command
            .args(args)
            .env("HULL_VMM", hull.parent().unwrap().join("examples/fake-vmm"))
            .env("HULL_GUEST_DIR", self.path("guest"))
            .env("HULL_RUNTIME_DIR", self.path("run"))
            .env("HULL_ROOT", self.path("store"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// `hull run FLAGS... IMAGE COMMAND...`
    fn run(&self, flags: &[&str], command: &[&str]) -> Command {
        let image = format!("rootfs:{}", self.path("rootfs").display());
        let args: Vec<&str> = ["run"].iter().chain(flags).copied().chain([image.as_str()]).collect();
        let mut hull = self.hull(&args);
        hull.args(command);
        hull
    }

    fn sh(&self, flags: &[&str], script: &str) -> Output {
        self.run(flags, &["sh", "-c", script]).output().unwrap()
    }

    fn ps(&self) -> String {
        String::from_utf8(self.hull(&["ps"]).output().unwrap().stdout).unwrap()
    }

    fn assert_nothing_left(&self) {
        until("the runtime directory is empty", || fs::read_dir(self.path("run")).unwrap().count() == 0);
        let needle = self.dir.path().to_str().unwrap().to_owned();
        until("no process is left", || {
            fs::read_dir("/proc").unwrap().filter_map(Result::ok).all(|entry| {
                let cmdline = fs::read(entry.path().join("cmdline")).unwrap_or_default();
                !String::from_utf8_lossy(&cmdline).contains(&needle)
            })
        });
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        if !thread::panicking() {
            self.assert_nothing_left();
        }
    }
}

fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "still waiting until {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn fails(output: &Output, code: i32, words: &[&str]) {
    let text = stderr(output);
    assert_eq!(output.status.code(), Some(code), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
    for word in words {
        assert!(text.contains(word), "{word} in {text}");
    }
}

fn signal(child: &Child, signal: Signal) {
    kill(Pid::from_raw(child.id().try_into().unwrap()), signal).unwrap();
}

/// Starts it and waits for "up" on its standard output.
fn started(mut command: Command) -> Child {
    let mut child = command.spawn().unwrap();
    let mut up = [0; 3];
    child.stdout.as_mut().unwrap().read_exact(&mut up).unwrap();
    assert_eq!(&up, b"up\n");
    child
}

#[test]
fn streams_stay_apart_and_the_status_is_the_commands() {
    let scene = Scene::new();
    let output = scene.sh(&["--rm"], "echo out; echo err >&2; exit 3");
    assert_eq!(
        (output.stdout.as_slice(), output.stderr.as_slice(), output.status.code()),
        (&b"out\n"[..], &b"err\n"[..], Some(3))
    );
    assert_eq!(scene.sh(&[], "kill -9 $$").status.code(), Some(137));
}

#[test]
fn mebibytes_pass_unchanged_with_a_slow_reader() {
    let scene = Scene::new();
    let mut child = scene.run(&["-i"], &["cat"]).stdin(Stdio::piped()).spawn().unwrap();
    let sent: Vec<u8> = (0..16_u32 << 20).map(|number| u8::try_from(number * 7 % 251).unwrap()).collect();
    let mut stdin = child.stdin.take().unwrap();
    let copy = sent.clone();
    let writer = thread::spawn(move || stdin.write_all(&copy).unwrap());
    thread::sleep(Duration::from_millis(500));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(output.stdout == sent);
}

#[test]
fn standard_input_is_connected_on_request_only() {
    let scene = Scene::new();
    for (flags, expected) in [(&[][..], "0\n"), (&["-i"][..], "3\n")] {
        let mut child = scene.run(flags, &["wc", "-c"]).stdin(Stdio::piped()).spawn().unwrap();
        let _ = child.stdin.take().unwrap().write_all(b"abc");
        assert_eq!(String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap(), expected);
    }
}

#[test]
fn a_reader_that_goes_away_ends_the_writer() {
    let scene = Scene::new();
    let mut child = scene.run(&[], &["yes"]).spawn().unwrap();
    drop(child.stdout.take());
    assert!(!child.wait().unwrap().success());
}

#[test]
fn signals_are_forwarded_and_the_third_request_kills() {
    let scene = Scene::new();
    let child = started(scene.run(&[], &["sh", "-c", "trap 'exit 9' TERM; echo up; while :; do sleep 0.1; done"]));
    signal(&child, Signal::SIGTERM);
    assert_eq!(child.wait_with_output().unwrap().status.code(), Some(9));
    let child = started(scene.run(&[], &["sh", "-c", "trap '' INT; echo up; while :; do sleep 0.1; done"]));
    for _ in 0..3 {
        signal(&child, Signal::SIGINT);
        thread::sleep(Duration::from_millis(50));
    }
    fails(&child.wait_with_output().unwrap(), 137, &["three times"]);
}

#[test]
fn errors_of_the_command_and_of_hull_have_dockers_codes() {
    let scene = Scene::new();
    fails(&scene.run(&[], &["missing"]).output().unwrap(), 127, &["missing", "not found"]);
    fails(&scene.run(&[], &["/etc/passwd"]).output().unwrap(), 126, &["/etc/passwd", "permission denied"]);
    fails(&scene.run(&["-u", "nobody-here"], &["true"]).output().unwrap(), 125, &["nobody-here"]);
    fails(&scene.run(&[], &[]).output().unwrap(), 125, &["No command"]);
    fails(&scene.run(&["--no-such"], &["true"]).output().unwrap(), 125, &["--no-such", "see `hull run --help`"]);
    fails(&scene.hull(&["ps", "--no-such"]).output().unwrap(), 125, &["--no-such", "see `hull ps --help`"]);
    fails(&scene.hull(&["run", "oci:/no/such", "true"]).output().unwrap(), 125, &["/no/such"]);
    fails(&scene.run(&["-it"], &["sh"]).output().unwrap(), 125, &["not a TTY"]);
    fails(&scene.run(&["-w", "relative"], &["sh"]).output().unwrap(), 125, &["relative"]);
}

#[test]
fn a_panic_is_told_at_once_and_an_out_of_memory_kill_with_its_limit() {
    let scene = Scene::new();
    let output = scene.run(&[], &["true"]).env("FAKE_PANIC", "1").output().unwrap();
    fails(&output, 125, &["guest kernel panicked", "not syncing: fake"]);
    let output = scene.run(&["-m", "50m"], &["sh", "-c", "kill -9 $$"]).env("FAKE_OOM", "1").output().unwrap();
    fails(&output, 137, &["killed for want of memory", "50 MiB"]);
}

#[test]
fn a_killed_monitor_is_137_with_a_cause() {
    let scene = Scene::new();
    let child = started(scene.run(&["--name", "lost"], &["sh", "-c", "echo up; sleep 600"]));
    let json = scene.hull(&["ps", "--json"]).output().unwrap().stdout;
    let records: serde_json::Value = serde_json::from_slice(&json).unwrap();
    let monitor = records[0]["monitor_pid"].as_i64().unwrap();
    kill(Pid::from_raw(monitor.try_into().unwrap()), Signal::SIGKILL).unwrap();
    fails(&child.wait_with_output().unwrap(), 137, &["hull-vmm", "signal 9"]);
}

#[test]
fn names_are_unique_while_their_containers_run_and_ps_shows_them() {
    let scene = Scene::new();
    let child = started(scene.run(&["--name", "one"], &["sh", "-c", "echo up; sleep 600"]));
    assert!(scene.ps().contains("one") && scene.ps().contains("running"));
    fails(&scene.run(&["--name", "one"], &["true"]).output().unwrap(), 125, &["\"one\"", "in use"]);
    signal(&child, Signal::SIGKILL);
    child.wait_with_output().unwrap();
    until("ps forgets it", || !scene.ps().contains("one"));
}

#[test]
fn stop_ends_what_listens_and_kills_what_does_not() {
    let scene = Scene::new();
    for (trap, code) in [("exit 4", Some(4)), ("", None)] {
        let script = format!("trap '{trap}' TERM; echo up; while :; do sleep 0.1; done");
        let child = started(scene.run(&["--name", "two"], &["sh", "-c", &script]));
        let stop = scene.hull(&["stop", "-t", "1", "two"]).output().unwrap();
        assert_eq!(stop.status.code(), Some(0), "{}", stderr(&stop));
        assert!(!scene.ps().contains("two"));
        assert_eq!(child.wait_with_output().unwrap().status.code(), code);
    }
    fails(&scene.hull(&["stop", "nobody"]).output().unwrap(), 125, &["nobody"]);
}

#[test]
fn timings_are_a_table_on_standard_error() {
    let scene = Scene::new();
    let output = scene.sh(&["--timings"], "echo hi");
    assert_eq!(output.stdout, b"hi\n");
    for phase in ["hull started", "monitor started", "agent ready", "container started", "first output", "VM gone"] {
        assert!(stderr(&output).contains(phase), "{phase}: {}", stderr(&output));
    }
}

#[test]
fn doctor_weighs_all_checks() {
    let scene = Scene::new();
    let output = scene.hull(&["doctor", "--json"]).output().unwrap();
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((report["can_run_vms"].as_bool(), output.status.code()), (Some(true), Some(0)), "{report}");
    fs::remove_file(scene.path("guest/vmlinux")).unwrap();
    assert_eq!(scene.hull(&["doctor"]).output().unwrap().status.code(), Some(1));
}

/// `hull run -it` on a pseudo-terminal.
struct Terminal {
    child: Child,
    master: fs::File,
    seen: String,
}

impl Terminal {
    fn start(scene: &Scene, flags: &[&str], command: &[&str]) -> Self {
        let size = Winsize { ws_row: 33, ws_col: 91, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(Some(&size), None).unwrap();
        let slave = |fd: &OwnedFd| Stdio::from(fd.try_clone().unwrap());
        let flags: Vec<&str> = ["-it"].iter().chain(flags).copied().collect();
        let mut hull = scene.run(&flags, command);
        hull.stdin(slave(&pty.slave)).stdout(slave(&pty.slave)).stderr(slave(&pty.slave));
        let child = hull.spawn().unwrap();
        Self { child, master: fs::File::from(pty.master), seen: String::new() }
    }

    fn expect(&mut self, text: &str) {
        while !self.seen.contains(text) {
            let mut byte = [0];
            let count = self.master.read(&mut byte).unwrap_or(0);
            assert_eq!(count, 1, "{text:?} in {:?}", self.seen);
            self.seen.push(byte[0].into());
        }
        let end = self.seen.find(text).unwrap() + text.len();
        self.seen.drain(..end);
    }

    fn send(&mut self, text: &str) {
        self.master.write_all(text.as_bytes()).unwrap();
    }

    fn is_raw(&self) -> bool {
        use nix::sys::termios::{LocalFlags, tcgetattr};
        !tcgetattr(self.master.as_fd()).unwrap().local_flags.contains(LocalFlags::ICANON)
    }
}

#[test]
fn a_terminal_is_raw_while_the_command_runs_and_restored_afterwards() {
    let scene = Scene::new();
    let mut terminal = Terminal::start(&scene, &[], &["sh", "-c", "echo u''p; read line; echo got $line; exit 7"]);
    terminal.expect("up");
    until("the terminal is raw", || terminal.is_raw());
    terminal.send("hello\r");
    terminal.expect("got hello");
    assert_eq!(terminal.child.wait().unwrap().code(), Some(7));
    assert!(!terminal.is_raw());
}

#[test]
fn the_detach_keys_leave_the_container_running() {
    let scene = Scene::new();
    let mut terminal = Terminal::start(&scene, &["--name", "anchored"], &["sh", "-c", "echo u''p; sleep 600"]);
    terminal.expect("up");
    until("the terminal is raw", || terminal.is_raw());
    terminal.send("\x10\x11");
    assert_eq!(terminal.child.wait().unwrap().code(), Some(0));
    assert!(!terminal.is_raw());
    assert!(scene.ps().contains("anchored"));
    let stop = scene.hull(&["stop", "-t", "5", "anchored"]).output().unwrap();
    assert_eq!(stop.status.code(), Some(0), "{}", stderr(&stop));
    assert!(!scene.ps().contains("anchored"));
}

/// A paste that fits between the terminal and a container that takes nothing.
fn paste() -> String {
    "a line of a file\n".repeat((256 << 10) / 17)
}

#[test]
fn the_detach_keys_get_through_a_paste_that_nobody_reads() {
    let scene = Scene::new();
    let script = "stty raw -echo; echo u''p; sleep 600";
    let mut terminal = Terminal::start(&scene, &["--name", "deaf"], &["sh", "-c", script]);
    terminal.expect("up");
    until("the terminal is raw", || terminal.is_raw());
    terminal.send(&paste());
    terminal.send("\x10\x11");
    assert_eq!(terminal.child.wait().unwrap().code(), Some(0));
    let stop = scene.hull(&["stop", "-t", "5", "deaf"]).output().unwrap();
    assert_eq!(stop.status.code(), Some(0), "{}", stderr(&stop));
}

#[test]
fn signals_get_through_a_paste_that_nobody_reads() {
    let scene = Scene::new();
    let script = "stty raw -echo; trap 'exit 9' TERM; echo u''p; while :; do sleep 0.1; done";
    let mut terminal = Terminal::start(&scene, &[], &["sh", "-c", script]);
    terminal.expect("up");
    until("the terminal is raw", || terminal.is_raw());
    terminal.send(&paste());
    signal(&terminal.child, Signal::SIGTERM);
    assert_eq!(terminal.child.wait().unwrap().code(), Some(9));
}

#[test]
fn a_paste_larger_than_all_buffers_reaches_a_slow_reader_complete() {
    let scene = Scene::new();
    let script = "stty raw -echo; echo u''p; sleep 1; head -c 3000000 | cksum";
    let mut terminal = Terminal::start(&scene, &[], &["sh", "-c", script]);
    terminal.expect("up");
    until("the terminal is raw", || terminal.is_raw());
    terminal.send(&"0123456789".repeat(300_000));
    terminal.expect("802629297 3000000");
    assert_eq!(terminal.child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_killed_attached_process_takes_the_container_with_it() {
    let scene = Scene::new();
    let mut terminal = Terminal::start(&scene, &[], &["sh", "-c", "echo u''p; sleep 600"]);
    terminal.expect("up");
    signal(&terminal.child, Signal::SIGKILL);
    terminal.child.wait().unwrap();
    scene.assert_nothing_left();
}

#[test]
fn a_hangup_ends_the_container_and_restores_the_terminal() {
    let scene = Scene::new();
    let mut terminal = Terminal::start(&scene, &[], &["sh", "-c", "trap '' HUP; echo u''p; sleep 600"]);
    terminal.expect("up");
    until("the terminal is raw", || terminal.is_raw());
    signal(&terminal.child, Signal::SIGHUP);
    assert_eq!(terminal.child.wait().unwrap().code(), Some(129));
    assert!(!terminal.is_raw());
}

#[test]
fn an_error_before_the_start_is_one_line_on_the_terminal() {
    let scene = Scene::new();
    let mut terminal = Terminal::start(&scene, &[], &["missing"]);
    terminal.expect("hull: exec \"missing\": not found");
    assert_eq!(terminal.child.wait().unwrap().code(), Some(127));
}

#[test]
fn a_reader_that_has_gone_away_is_no_failure() {
    let scene = Scene::new();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = scene.hull(&["images"]).stdout(Stdio::from(writer)).output().unwrap();
    assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(0), ""));
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let status = scene.hull(&["rmi", "none"]).stderr(Stdio::from(writer)).status().unwrap();
    assert_eq!(status.code(), Some(125));
}

#[test]
fn an_interrupted_build_leaves_nothing() {
    let scene = Scene::new();
    // Sparse, so that reading it takes long and making it takes nothing.
    fs::File::create(scene.path("rootfs/large")).unwrap().set_len(8 << 30).unwrap();
    let image = format!("rootfs:{}", scene.path("rootfs").display());
    let mut hull = scene.hull(&["pull", &image]).spawn().unwrap();
    let temporary = scene.path("store/tmp");
    let descriptors = format!("/proc/{}/fd", hull.id());
    // What is built has no name before it is complete, where the file system can do that.
    until("the build is under way", || {
        let unnamed = |entry: fs::DirEntry| fs::read_link(entry.path()).is_ok_and(|path| path.starts_with(&temporary));
        fs::read_dir(&descriptors).is_ok_and(|mut fds| fds.any(|fd| fd.is_ok_and(unnamed)))
    });
    thread::sleep(Duration::from_millis(200));
    kill(Pid::from_raw(i32::try_from(hull.id()).unwrap()), Signal::SIGINT).unwrap();
    assert_eq!(hull.wait().unwrap().code(), Some(130));
    assert!(scene.hull(&["images"]).status().unwrap().success());
    assert_eq!(fs::read_dir(temporary).map_or(0, Iterator::count), 0);
}
