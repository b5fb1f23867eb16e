//! Many of each, one after the other and at once; the counts grow with `HULL_SOAK`.

use std::fs;
use std::io::Write as _;
use std::process::{Child, Stdio};

use super::harness::{Containerd, HULL};
use crate::harness::{Run, noise, soak};

/// Starts `cat` in a container; `input` is written and its end is sent.
fn cat(containerd: &Containerd, container: &str, name: &str, input: Vec<u8>) -> Child {
    let mut command = containerd.command(["task", "exec", "--exec-id", name, container, "cat"]);
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    std::thread::spawn(move || stdin.write_all(&input).unwrap());
    child
}

fn assert_output(child: Child, expected: &[u8]) {
    let run = Run::from(child.wait_with_output().unwrap());
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    assert!(run.stdout == expected, "{} of {} bytes", run.stdout.len(), expected.len());
}

/// Threads and descriptors of a process.
fn held(pid: i32) -> (usize, usize) {
    let count = |kind: &str| fs::read_dir(format!("/proc/{pid}/{kind}")).unwrap().count();
    (count("task"), count("fd"))
}

#[test]
fn processes_one_after_the_other_leave_nothing_behind() {
    let containerd = &Containerd::start();
    let id = containerd.detached(HULL, &[], "sleep 100000");
    let holders: Vec<_> = [containerd.shims(), containerd.monitors()].concat();
    let all_held = || holders.iter().map(|pid| held(*pid)).collect::<Vec<_>>();
    let run = |number: usize| {
        let input = noise(1000 + number);
        assert_output(cat(containerd, &id, &format!("e{number}"), input.clone()), &input);
    };
    run(0);
    let before = all_held();
    for number in 1..=20 * soak() {
        run(number);
    }
    for (before, after) in before.into_iter().zip(all_held()) {
        // A thread of the pool for blocking work comes and goes.
        assert!(after.0 <= before.0 + 1 && after.1 <= before.1, "threads and descriptors: {before:?}, then {after:?}");
    }
    containerd.remove(&id);
}

#[test]
fn processes_at_once_keep_their_input_and_output_apart() {
    let containerd = &Containerd::start();
    let id = containerd.detached(HULL, &[], "sleep 100000");
    let children: Vec<_> = (0..(8 * soak()).min(200))
        .map(|number| {
            let input = noise(50_000 + number);
            (cat(containerd, &id, &format!("e{number}"), input.clone()), input)
        })
        .collect();
    for (child, input) in children {
        assert_output(child, &input);
    }
    containerd.remove(&id);
}

#[test]
fn containers_one_after_the_other_and_at_once_leave_nothing_behind() {
    let containerd = &Containerd::start();
    for _ in 0..(2 * soak()).min(50) {
        assert_eq!(containerd.run(HULL, &[], &["echo", "one"]).ok(), "one\n");
    }
    containerd.assert_nothing_left();
    let children: Vec<_> = (0..(2 * soak()).min(10))
        .map(|_| containerd.command(containerd.run_args(HULL, &["--rm"], &["echo", "two"])).spawn().unwrap())
        .collect();
    for child in children {
        assert_output(child, b"two\n");
    }
    containerd.assert_nothing_left();
}
