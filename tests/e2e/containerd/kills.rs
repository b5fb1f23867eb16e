//! kill -9 of the VM, of its shim and of containerd in each phase of a container's life. Whoever dies: each call is answered,
//! the container can be deleted, and nothing is left.

use std::process::Child;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::harness::{Containerd, HULL};
use crate::harness::{Run, soak, wait_for};

#[derive(Debug, Clone, Copy, PartialEq)]
enum Victim {
    Monitor,
    Shim,
    Containerd,
}

/// Where a container is in its life when somebody dies.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Phase {
    /// The runtime's first process that stays is there.
    Starting,
    /// The VM is there, but not yet its agent.
    Booting,
    Running,
    /// A second process runs.
    Exec,
    /// The container has a signal that it takes its time to obey.
    Stopping,
    /// It has ended and is being deleted.
    Deleting,
}

const PHASES: [Phase; 6] =
    [Phase::Starting, Phase::Booting, Phase::Running, Phase::Exec, Phase::Stopping, Phase::Deleting];

/// What the container does: it needs a second to end when it is told to.
const SCRIPT: &str = "trap 'sleep 1; exit 0' TERM; while :; do sleep 0.1; done";

/// Kills one that the containerd has. False if there is none yet, or no more.
fn kill_one(containerd: &mut Containerd, victim: Victim) -> bool {
    let pids = match victim {
        Victim::Monitor => containerd.monitors(),
        Victim::Shim => containerd.serving_shims(),
        Victim::Containerd => {
            containerd.restart();
            return true;
        }
    };
    // It may end by itself meanwhile.
    pids.first().is_some_and(|pid| kill(Pid::from_raw(*pid), Signal::SIGKILL).is_ok())
}

/// Brings a container into `phase`. Returns its identifier and the commands that are still under way.
fn bring(containerd: &Containerd, phase: Phase, victim: Victim) -> (String, Vec<Child>) {
    let args = containerd.run_args(HULL, &["--detach", "--null-io"], &["sh", "-c", SCRIPT]);
    let id = args[args.len() - 4].clone();
    let spawn = |args: &[&str]| containerd.command(args).spawn().unwrap();
    let mut start = containerd.command(&args).spawn().unwrap();
    match phase {
        Phase::Starting if victim != Victim::Monitor => wait_for("a shim", || !containerd.serving_shims().is_empty()),
        Phase::Starting | Phase::Booting => wait_for("a VM", || !containerd.monitors().is_empty()),
        _ => {
            let started = start.wait().unwrap();
            assert!(started.success(), "{phase:?}: {started}");
        }
    }
    let mut under_way = vec![start];
    match phase {
        Phase::Starting | Phase::Booting | Phase::Running => (),
        Phase::Exec => {
            under_way.push(spawn(&["task", "exec", "--exec-id", "e", &id, "sh", "-c", "touch /up; exec sleep 600"]));
            wait_for("the second process", || {
                containerd.ctr(["task", "exec", "--exec-id", "p", &id, "test", "-e", "/up"]).code == Some(0)
            });
        }
        Phase::Stopping => drop(containerd.ctr(["task", "kill", &id]).ok()),
        Phase::Deleting => {
            containerd.ctr(["task", "kill", "--signal", "KILL", &id]).ok();
            containerd.wait_for_status(&id, "STOPPED");
            under_way.push(spawn(&["task", "rm", &id]));
        }
    }
    (id, under_way)
}

fn in_each_phase(victim: Victim) {
    let mut containerd = Containerd::start();
    // With `HULL_SOAK=50` more than hundred and fifty kills.
    for round in 0..(soak() / 5).max(1) {
        for phase in PHASES {
            let (id, under_way) = bring(&containerd, phase, victim);
            // Another moment of the phase in each round.
            std::thread::sleep(Duration::from_millis(37) * u32::try_from(round).unwrap());
            let killed = kill_one(&mut containerd, victim);
            // One that is deleted may have nobody left to kill.
            assert!(killed || matches!(phase, Phase::Stopping | Phase::Deleting), "{victim:?} in {phase:?}");
            for child in under_way {
                // Whatever it says: it ends.
                let run = Run::from(child.wait_with_output().unwrap());
                assert!(!run.stderr.contains("panicked"), "{victim:?} in {phase:?}: {run:?}");
            }
            if victim != Victim::Containerd && phase != Phase::Deleting {
                wait_for(&format!("{victim:?} killed in {phase:?} to be noticed"), || {
                    containerd.task(&id).is_none_or(|(_, status)| status == "STOPPED")
                });
            }
            containerd.forget(&id);
            containerd.assert_nothing_left();
        }
    }
}

#[test]
fn the_vm_dies_in_each_phase() {
    in_each_phase(Victim::Monitor);
}

#[test]
fn the_shim_dies_in_each_phase() {
    in_each_phase(Victim::Shim);
}

#[test]
fn containerd_dies_in_each_phase() {
    in_each_phase(Victim::Containerd);
}
