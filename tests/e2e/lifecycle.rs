//! Every way in which a VM can end: the truth at once, and nothing left behind.

use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::{Hull, image, soak, wait_for};

#[test]
fn killing_the_monitor_is_reported_at_once_as_137_with_a_cause() {
    let hull = Hull::new();
    let running = hull.start(&[], "echo up; sleep 600", "up");
    let monitors = hull.monitors();
    assert_eq!(monitors.len(), 1);
    kill(Pid::from_raw(monitors[0]), Signal::SIGKILL).unwrap();
    let start = Instant::now();
    let run = running.finish();
    run.fails(137, &["hull-vmm", "signal 9"]);
    // Not a measure of speed: a poll interval or a time-out would show here.
    assert!(start.elapsed().as_secs() < 20, "{:?}", start.elapsed());
    hull.assert_nothing_left();
}

#[test]
fn killing_the_command_line_takes_the_vm_with_it() {
    let hull = Hull::new();
    let running = hull.start(&[], "echo up; sleep 600", "up");
    running.signal(Signal::SIGKILL);
    running.finish();
    hull.assert_nothing_left();
}

#[test]
fn a_guest_panic_is_reported_with_the_end_of_its_console() {
    // An initramfs without init: the kernel panics by itself.
    let empty = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(empty.path(), [0; 512]).unwrap();
    let hull = Hull::new();
    let run = hull.sh(&["--initrd", empty.path().to_str().unwrap()], "true");
    assert_eq!(run.code, Some(125), "{run:?}");
    assert!(run.stderr.contains("guest kernel panicked"), "{run:?}");
    assert!(run.stderr.contains("Unable to mount root fs") || run.stderr.contains("No working init"), "{run:?}");
    hull.assert_nothing_left();
}

#[test]
fn twenty_vms_in_sequence_leave_nothing() {
    let hull = Hull::new();
    for number in 0..20 * soak() {
        assert_eq!(hull.sh(&[], &format!("echo {number}")).ok(), format!("{number}\n"));
        hull.assert_nothing_left();
    }
}

#[test]
fn eight_vms_at_once_leave_nothing() {
    let hull = Hull::new();
    let image = image("busybox");
    let children: Vec<_> = (0..8)
        .map(|number| {
            let word = number.to_string();
            hull.command(["run", "--vm-memory", "128m", &image, "echo", &word]).spawn().unwrap()
        })
        .collect();
    for (number, child) in children.into_iter().enumerate() {
        let output = child.wait_with_output().unwrap();
        assert_eq!(
            String::from_utf8_lossy(&output.stdout),
            format!("{number}\n"),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    hull.assert_nothing_left();
}

#[test]
fn ps_shows_a_running_container_and_forgets_it_afterwards() {
    let hull = Hull::new();
    let running = hull.start(&["--name", "lighthouse"], "echo up; sleep 600", "up");
    assert!(hull.hull(["ps"]).ok().contains("lighthouse"));
    let clash = hull.sh(&["--name", "lighthouse"], "true");
    clash.fails(125, &["lighthouse"]);
    running.signal(Signal::SIGKILL);
    running.finish();
    wait_for("ps to forget", || !hull.hull(["ps"]).ok().contains("lighthouse"));
}

#[test]
fn a_second_interrupt_is_not_needed() {
    let hull = Hull::new();
    let running = hull.start(&["--init"], "echo up; exec sleep 600", "up");
    running.signal(Signal::SIGINT);
    assert_eq!(running.finish().code, Some(130));
}

#[test]
fn a_kill_in_any_phase_leaves_nothing() {
    // Spread over the whole start, which takes a few seconds under emulation.
    let step = Duration::from_millis(400);
    for round in 0..8 * soak() {
        let hull = Hull::new();
        let mut child = hull.command(["run", &image("busybox"), "sleep", "600"]).spawn().unwrap();
        let phase = step * u32::try_from(round % 8).unwrap()
            + Duration::from_millis(7) * u32::try_from(round / 8 % 50).unwrap();
        std::thread::sleep(phase);
        match hull.monitors().first() {
            // Half of the rounds end the monitor, if there is one already; the others the command line.
            Some(monitor) if round % 2 == 0 => {
                let _ = kill(Pid::from_raw(*monitor), Signal::SIGKILL);
                let output = child.wait_with_output().unwrap();
                let message = String::from_utf8_lossy(&output.stderr);
                assert!(
                    matches!(output.status.code(), Some(125 | 137)),
                    "after {phase:?}: {:?} {message}",
                    output.status
                );
                assert!(message.contains("signal 9"), "after {phase:?}: {message}");
            }
            _ => {
                child.kill().unwrap();
                child.wait().unwrap();
            }
        }
        hull.assert_nothing_left();
    }
}
