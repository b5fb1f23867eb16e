//! Whatever dies, containerd hears of it at once, can delete the container, and nothing is left.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::harness::{Containerd, HULL};
use crate::harness::{soak, wait_for};

fn kill_one(pids: &[i32]) {
    assert_eq!(pids.len(), 1, "{pids:?}");
    kill(Pid::from_raw(pids[0]), Signal::SIGKILL).unwrap();
}

#[test]
fn a_killed_vm_ends_its_container_with_137_and_the_cause_is_in_the_log() {
    let containerd = Containerd::start();
    let args = containerd.run_args(HULL, &["--rm"], &["sh", "-c", "echo up; sleep 600"]);
    let child = containerd.command(&args).spawn().unwrap();
    wait_for("the VM", || !containerd.monitors().is_empty());
    let id = args.iter().find(|arg| arg.starts_with('c')).unwrap();
    containerd.wait_for_status(id, "RUNNING");
    kill_one(&containerd.monitors());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(137), "{output:?}");
    assert!(containerd.log().contains("hull-vmm was killed by signal 9"), "the cause");
    containerd.assert_nothing_left();
}

#[test]
fn a_killed_shim_takes_its_vm_with_it_and_the_container_can_be_deleted() {
    let containerd = Containerd::start();
    let mut events = containerd.command(["events"]).spawn().unwrap();
    let id = &containerd.detached(HULL, &[], "sleep 600");
    kill_one(&containerd.shims());
    wait_for("the task to go", || containerd.task(id).is_none());
    containerd.ctr(["container", "rm", id]).ok();
    containerd.assert_nothing_left();
    events.kill().unwrap();
    let events = events.wait_with_output().unwrap();
    let events = String::from_utf8_lossy(&events.stdout);
    let exit = events.lines().find(|line| line.contains("/tasks/exit")).unwrap_or_else(|| panic!("{events}"));
    assert!(exit.contains("\"exit_status\":137"), "{exit}");
}

#[test]
fn a_shim_and_its_vm_killed_together_leave_nothing() {
    let containerd = Containerd::start();
    let id = containerd.detached(HULL, &[], "sleep 600");
    let (shims, monitors) = (containerd.shims(), containerd.monitors());
    // Stopped first, so that neither sees the other's end.
    for pid in shims.iter().chain(&monitors) {
        kill(Pid::from_raw(*pid), Signal::SIGSTOP).unwrap();
    }
    kill_one(&monitors);
    kill_one(&shims);
    wait_for("the task to go", || containerd.task(&id).is_none());
    containerd.ctr(["container", "rm", &id]).ok();
    containerd.assert_nothing_left();
}

#[test]
fn a_guest_that_panics_ends_its_container_with_137_and_the_cause_is_in_the_log() {
    let containerd = Containerd::start();
    // A container that may do all: a process that wants too much is its kernel's end.
    let script = "echo 2 >/proc/sys/vm/panic_on_oom && tail /dev/zero";
    let run = containerd.run(HULL, &["--privileged", "--memory-limit", "67108864"], &["sh", "-c", script]);
    assert_eq!(run.code, Some(137), "{run:?}");
    assert!(containerd.log().contains("guest kernel panicked"), "the cause");
    containerd.assert_nothing_left();
}

#[test]
fn a_restarted_containerd_finds_all_its_pods() {
    let mut containerd = Containerd::start();
    let ids: Vec<_> = (0..(2 * soak()).min(10)).map(|_| containerd.detached(HULL, &[], "sleep 600")).collect();
    containerd.restart();
    for id in &ids {
        assert_eq!(containerd.ctr(["task", "exec", "--exec-id", "e", id, "echo", "alive"]).ok(), "alive\n");
    }
    for id in &ids {
        containerd.remove(id);
    }
    containerd.assert_nothing_left();
}

#[test]
fn a_restarted_containerd_finds_its_containers_as_they_are() {
    let mut containerd = Containerd::start();
    let running = containerd.detached(HULL, &[], "sleep 600");
    let ended = containerd.detached(HULL, &[], "sleep 600");
    containerd.restart();
    assert_eq!(containerd.task(&running).unwrap().1, "RUNNING");
    assert_eq!(containerd.ctr(["task", "exec", "--exec-id", "e", &running, "echo", "alive"]).ok(), "alive\n");
    // What ends while nobody listens is known afterwards.
    containerd.ctr(["task", "kill", "--signal", "KILL", &ended]).ok();
    containerd.restart();
    containerd.wait_for_status(&ended, "STOPPED");
    for id in [&running, &ended] {
        containerd.remove(id);
    }
    containerd.assert_nothing_left();
}

#[test]
fn a_container_whose_output_nobody_reads_can_be_killed_and_deleted() {
    let containerd = Containerd::start();
    // The client that made the FIFOs goes away; nobody reads them.
    let args = containerd.run_args(HULL, &["--detach"], &["sh", "-c", "yes; sleep 600"]);
    containerd.ctr(&args).ok();
    let id = args.iter().find(|arg| arg.starts_with('c')).unwrap();
    std::thread::sleep(std::time::Duration::from_secs(1));
    containerd.remove(id);
    containerd.assert_nothing_left();
}

#[test]
fn a_signal_for_the_shim_ends_the_vm_and_containerd_is_told() {
    let containerd = Containerd::start();
    let id = containerd.detached(HULL, &[], "sleep 600");
    let shims = containerd.shims();
    assert_eq!(shims.len(), 1);
    kill(Pid::from_raw(shims[0]), Signal::SIGTERM).unwrap();
    containerd.wait_for_status(&id, "STOPPED");
    assert!(containerd.monitors().is_empty());
    containerd.remove(&id);
    containerd.assert_nothing_left();
}
