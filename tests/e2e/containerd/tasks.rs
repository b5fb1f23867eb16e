//! A task's life: states, events, pausing, signals, metrics.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;
use std::sync::mpsc;

use super::harness::{Containerd, HULL, RUNC, scenarios};
use crate::harness::{PATIENCE, wait_for};

scenarios! {
    states_are_those_of_runc_from_the_start_to_the_end,
    a_paused_container_stands_still_and_can_be_killed,
    the_process_of_a_task_is_one_of_the_host_and_its_shim_is_small,
    a_task_is_listed_as_the_host_s_process_whatever_runs_in_its_guest,
    metrics_are_the_container_s,
    events_come_in_the_order_of_what_happened,
    a_container_that_needs_too_much_memory_is_killed_and_containerd_told,
}

pub fn states_are_those_of_runc_from_the_start_to_the_end(containerd: &Containerd) {
    let mut seen = Vec::new();
    for runtime in [RUNC, HULL] {
        let id = containerd.detached(runtime, &[], "trap 'exit 9' TERM; while :; do sleep 0.1; done");
        let mut states = vec![containerd.task(&id).unwrap().1];
        containerd.ctr(["task", "pause", &id]).ok();
        states.push(containerd.task(&id).unwrap().1);
        containerd.ctr(["task", "resume", &id]).ok();
        states.push(containerd.task(&id).unwrap().1);
        let running = containerd.ctr(["task", "rm", &id]);
        assert_ne!(running.code, Some(0), "{runtime}: a running task can't be deleted");
        containerd.ctr(["task", "kill", "--signal", "TERM", &id]).ok();
        containerd.wait_for_status(&id, "STOPPED");
        let gone = containerd.ctr(["task", "kill", &id]);
        // The newer `ctr` shows the message alone, not the code.
        let says_so = ["not found", "has ended"].iter().any(|words| gone.stderr.contains(words));
        assert!(gone.code != Some(0) && says_so, "{runtime}: {gone:?}");
        states.push(format!("{:?}", containerd.delete_task(&id)));
        assert!(containerd.task(&id).is_none());
        containerd.ctr(["container", "rm", &id]).ok();
        seen.push(states);
    }
    assert_eq!(seen[0], seen[1], "runc, hull");
}

fn a_paused_container_stands_still_and_can_be_killed(containerd: &Containerd) {
    let data = containerd.path("data");
    std::fs::create_dir(&data).unwrap();
    let mount = format!("type=bind,src={},dst=/data,options=rbind:rw", data.display());
    let id = containerd.detached(HULL, &["--mount", &mount], "while :; do echo x >>/data/beats; sleep 0.05; done");
    let beats = || std::fs::metadata(data.join("beats")).map_or(0, |metadata| metadata.len());
    wait_for("the container to work", || beats() > 0);
    containerd.ctr(["task", "pause", &id]).ok();
    let before = beats();
    std::thread::sleep(std::time::Duration::from_secs(2));
    assert_eq!(beats(), before, "it works while it is paused");
    assert_ne!(containerd.ctr(["task", "pause", &id]).code, Some(0), "it is paused already");
    containerd.ctr(["task", "resume", &id]).ok();
    wait_for("the container to go on", || beats() > before);
    containerd.ctr(["task", "pause", &id]).ok();
    containerd.remove(&id);
}

fn the_process_of_a_task_is_one_of_the_host_and_its_shim_is_small(containerd: &Containerd) {
    let id = containerd.detached(HULL, &[], "sleep 600");
    let (pid, _) = containerd.task(&id).unwrap();
    assert_eq!(containerd.monitors(), [pid]);
    let status = std::fs::read_to_string(format!("/proc/{}/status", containerd.shims()[0])).unwrap();
    let resident = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    let resident_kib: u32 = resident.split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!(resident_kib < 6 << 10, "the shim has {resident_kib} KiB resident");
    containerd.remove(&id);
}

fn a_task_is_listed_as_the_host_s_process_whatever_runs_in_its_guest(containerd: &Containerd) {
    let id = containerd.detached(HULL, &[], "sleep 600 & sleep 600 & wait");
    let exec = ["task", "exec", "--exec-id", "e", "--detach", &id, "sleep", "600"];
    containerd.ctr(exec).ok();
    // No number of a process in the guest: on the host it means another one.
    assert_eq!(containerd.listed(&id), containerd.monitors());
    let inside = containerd.ctr(["task", "exec", "--exec-id", "ps", &id, "ps", "-o", "args"]).ok();
    assert_eq!(inside.matches("sleep 600\n").count(), 3, "{inside}");
    containerd.ctr(["task", "kill", "--signal", "KILL", &id]).ok();
    containerd.wait_for_status(&id, "STOPPED");
    assert!(containerd.listed(&id).is_empty(), "it has ended");
    containerd.remove(&id);
}

pub fn metrics_are_the_container_s(containerd: &Containerd) {
    for runtime in [RUNC, HULL] {
        let id = containerd.detached(runtime, &["--memory-limit", "67108864"], "sleep 600");
        let metrics = containerd.ctr(["task", "metrics", &id]).ok();
        let value = |name: &str| {
            let line = metrics.lines().find(|line| line.starts_with(name));
            let line = line.unwrap_or_else(|| panic!("{name} in {metrics}"));
            line.split_whitespace().last().unwrap().parse::<u64>().unwrap()
        };
        assert_eq!(value("memory.usage_limit"), 67_108_864, "{runtime}");
        let usage = value("memory.usage");
        assert!((1..67_108_864).contains(&usage), "{runtime}: {usage}");
        assert!(value("cpu.usage_usec") > 0, "{runtime}");
        containerd.remove(&id);
    }
}

fn events_come_in_the_order_of_what_happened(containerd: &Containerd) {
    let mut events = containerd.command(["events"]).stdin(Stdio::null()).spawn().unwrap();
    let (sender, topics) = mpsc::channel();
    let lines = BufReader::new(events.stdout.take().unwrap()).lines();
    std::thread::spawn(move || {
        for line in lines.map_while(Result::ok) {
            let topic = line.split_whitespace().find(|word| word.starts_with("/tasks/")).map(str::to_owned);
            if let Some(topic) = topic {
                let _ = sender.send(topic);
            }
        }
    });
    let expect = |expected: &[&str]| {
        for topic in expected {
            assert_eq!(topics.recv_timeout(PATIENCE).unwrap(), *topic, "of {expected:?}");
        }
    };
    for runtime in [RUNC, HULL] {
        // Events that come before the listener is there are nobody's.
        containerd.run(runtime, &[], &["true"]).ok();
        expect(&["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"]);
        let id = containerd.detached(runtime, &[], "sleep 600");
        containerd.ctr(["task", "exec", "--exec-id", "e", &id, "true"]).ok();
        containerd.ctr(["task", "pause", &id]).ok();
        containerd.ctr(["task", "resume", &id]).ok();
        containerd.remove(&id);
        expect(&["/tasks/create", "/tasks/start", "/tasks/exec-added", "/tasks/exec-started", "/tasks/exit"]);
        expect(&["/tasks/paused", "/tasks/resumed", "/tasks/exit", "/tasks/delete"]);
    }
    events.kill().unwrap();
    events.wait().unwrap();
}

fn a_container_that_needs_too_much_memory_is_killed_and_containerd_told(containerd: &Containerd) {
    let mut events = containerd.command(["events"]).spawn().unwrap();
    let run = containerd.run(
        HULL,
        &["--memory-limit", "33554432"],
        &["sh", "-c", "x=$(head -c 100000000 /dev/zero | tr '\\0' a); echo ${#x}"],
    );
    assert_ne!(run.code, Some(0), "{run:?}");
    std::thread::sleep(std::time::Duration::from_secs(1));
    events.kill().unwrap();
    let output = events.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("/tasks/oom"), "{text}");
}
