//! What `hull-vmm` does when the process that started it is gone before it has handed over a configuration.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests stop at the first surprise")]

use std::fs;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// A monitor that waits for its configuration on standard input; the other end of its event stream.
fn start(runtime_dir: &Path) -> (Child, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let script = r#"exec "$0" run --config-fd 3 --events-fd 4 --runtime-dir "$1" 3<&0 4>&1 </dev/null >/dev/null"#;
    let child = Command::new("sh")
        .args(["-c", script, env!("CARGO_BIN_EXE_hull-vmm")])
        .arg(runtime_dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::from(OwnedFd::from(theirs)))
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    (child, ours)
}

#[test]
fn a_front_door_that_dies_before_the_configuration_leaves_no_directory() {
    for text in ["", r#"{"boot-source": "#] {
        let base = tempfile::tempdir().unwrap();
        let dir = base.path().join("vm");
        let (mut child, events) = start(&dir);
        // It is made after the monitor has started.
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("sandbox.json"), "{}").unwrap();
        child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        drop(events);
        assert_eq!(child.wait_with_output().unwrap().status.code(), Some(1));
        assert!(!dir.exists());
    }
}

#[test]
fn a_front_door_that_lives_keeps_its_directory() {
    let dir = tempfile::tempdir().unwrap();
    let (mut child, _events) = start(dir.path());
    child.stdin.take().unwrap().write_all(b"{}").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("boot-source"), "{output:?}");
    assert!(dir.path().exists());
}
