//! What the container sees of its image.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};

use crate::harness::{Hull, Run, image};

#[test]
fn writes_land_in_the_overlay_and_are_gone_next_time() {
    let hull = Hull::new();
    let script = "cat /etc/mark 2>/dev/null; echo here > /etc/mark; cat /etc/mark";
    assert_eq!(hull.sh(&[], script).ok(), "here\n");
    assert_eq!(hull.sh(&[], script).ok(), "here\n");
}

#[test]
fn whiteouts_and_opaque_directories_of_a_three_layer_image_hide_what_is_below() {
    // Made by images/layers.sh, which lists what each layer holds.
    let run = Hull::new().hull(["run", &image("layers"), "find", "/data"]);
    let mut found: Vec<_> = run.ok().lines().map(str::to_owned).collect();
    found.sort();
    assert_eq!(found, ["/data", "/data/kept", "/data/opaque", "/data/opaque/new", "/data/replaced"]);
    let run = Hull::new().hull(["run", &image("layers"), "cat", "/data/replaced"]);
    assert_eq!(run.ok(), "layer 3\n");
}

#[test]
fn a_debian_image_with_python_runs_a_script() {
    let run = Hull::new().feed(
        &["run", "-i", &image("python"), "python3", "-"],
        b"import os, sys, platform\nprint(sum(range(10)), os.getpid(), sys.version_info[0])\n".to_vec(),
    );
    assert_eq!(run.ok(), "45 1 3\n");
}

#[test]
fn a_pull_that_waits_for_another_process_says_for_which_and_can_be_interrupted() {
    let store = tempfile::tempdir().unwrap();
    let hull = Hull::with_store(store.path());
    hull.hull(["images"]).ok();
    let mut other = Command::new("flock")
        .arg(store.path().join("lock"))
        .args(["sh", "-c", "echo -n $$ > \"$0\" && echo held && exec sleep 600"])
        .arg(store.path().join("lock"))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let holder = read_line(other.stdout.as_mut().unwrap());
    assert_eq!(holder, "held\n");
    let mut waiting = hull.command(["run", &image("busybox"), "true"]).spawn().unwrap();
    let line = read_line(waiting.stderr.as_mut().unwrap());
    assert!(line.contains("aiting for process ") && line.contains("which uses the image store"), "{line}");
    let pid = nix::unistd::Pid::from_raw(waiting.id().try_into().unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
    assert_eq!(waiting.wait().unwrap().code(), Some(130));
    // A holder that dies releases the store.
    let waiting = hull.command(["pull", &image("busybox")]).spawn().unwrap();
    let id = line.split_whitespace().find_map(|word| word.trim_end_matches(',').parse::<i32>().ok()).unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(id), nix::sys::signal::Signal::SIGKILL).unwrap();
    other.wait().unwrap();
    Run::from(waiting.wait_with_output().unwrap()).ok();
}

fn read_line(stream: &mut impl Read) -> String {
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    line
}

#[test]
fn two_containers_of_one_image_share_its_erofs_file() {
    let hull = Hull::new();
    let first = hull.start(&[], "echo up; sleep 600", "up");
    let other = Hull::new();
    let second = other.start(&[], "echo up; sleep 600", "up");
    let erofs_of = |hull: &Hull| {
        let pid = hull.monitors()[0];
        let inodes: Vec<_> = std::fs::read_dir(format!("/proc/{pid}/fd"))
            .unwrap()
            .filter_map(|entry| {
                let path = entry.unwrap().path();
                let target = std::fs::read_link(&path).ok()?;
                let is_erofs = target.to_str()?.contains("erofs");
                is_erofs.then(|| std::fs::metadata(&path).unwrap().ino())
            })
            .collect();
        assert_eq!(inodes.len(), 1);
        inodes[0]
    };
    assert_eq!(erofs_of(&hull), erofs_of(&other));
    for running in [first, second] {
        running.signal(nix::sys::signal::Signal::SIGKILL);
        running.finish();
    }
}
