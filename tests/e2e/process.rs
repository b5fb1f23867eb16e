//! The container's process: exit status, environment, user, arguments.

use nix::sys::signal::Signal;

use crate::harness::{Hull, image};

#[test]
fn the_exit_status_of_the_command_is_that_of_hull() {
    let hull = Hull::new();
    for code in [0, 3, 255] {
        assert_eq!(hull.sh(&[], &format!("exit {code}")).code, Some(code));
    }
}

#[test]
fn a_signal_becomes_128_plus_its_number() {
    assert_eq!(Hull::new().sh(&["--init"], "kill -9 $$").code, Some(137));
}

#[test]
fn an_unknown_command_gives_127_and_a_file_that_is_no_program_126() {
    let hull = Hull::new();
    let image = image("busybox");
    hull.hull(["run", &image, "no-such-command"]).fails(127, &["no-such-command", "not found"]);
    hull.hull(["run", &image, "/etc/hostname"]).fails(126, &["/etc/hostname", "permission denied"]);
    hull.hull(["run", &image, "/bin"]).fails(126, &["/bin"]);
}

#[test]
fn an_own_error_gives_125() {
    let hull = Hull::new();
    hull.hull(["run", "oci:/no/such/layout", "true"]).fails(125, &["/no/such/layout"]);
    hull.hull(["run", &image("busybox:no-such-tag"), "true"]).fails(125, &["no-such-tag"]);
}

#[test]
fn sigterm_is_forwarded() {
    let running = Hull::new();
    let started = running.start(&[], "trap 'echo got it; exit 9' TERM; echo up; while :; do sleep 1; done", "up");
    started.signal(Signal::SIGTERM);
    let run = started.finish();
    assert_eq!(run.code, Some(9), "{run:?}");
    assert!(run.text().ends_with("got it\n"), "{run:?}");
}

#[test]
fn a_command_that_dies_of_sigterm_gives_143() {
    let hull = Hull::new();
    let started = hull.start(&["--init"], "echo up; exec sleep 600", "up");
    started.signal(Signal::SIGTERM);
    assert_eq!(started.finish().code, Some(143));
}

#[test]
fn environment_directory_and_host_name_are_as_asked() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("env");
    std::fs::write(&file, "# comment\nFROM_FILE=two words\nEMPTY=\n").unwrap();
    let run = Hull::new().sh(
        &[
            "-e", "ONE=1", "--env-file", file.to_str().unwrap(), "-w", "/var/work", "--hostname", "harbour",
        ],
        "echo $ONE/$FROM_FILE/${EMPTY-unset}/$(pwd)/$(hostname)/$HOSTNAME; cat /etc/hostname; grep harbour /etc/hosts | wc -l",
    );
    assert_eq!(run.ok(), "1/two words///var/work/harbour/harbour\nharbour\n1\n");
}

#[test]
fn the_user_is_taken_from_the_flag_by_number_and_by_name() {
    let hull = Hull::new();
    assert_eq!(hull.sh(&["-u", "1000:1001"], "id -u; id -g").ok(), "1000\n1001\n");
    assert_eq!(hull.sh(&["-u", "nobody"], "id -u").ok(), "65534\n");
    let run = hull.sh(&["-u", "no-such-user"], "true");
    assert_eq!(run.code, Some(125), "{run:?}");
    assert!(run.stderr.contains("no-such-user"), "{run:?}");
}

#[test]
fn the_entrypoint_can_be_replaced() {
    let image = image("busybox");
    let run = Hull::new().hull(["run", "--entrypoint", "echo", &image, "a", "b c"]);
    assert_eq!(run.ok(), "a b c\n");
}

#[test]
fn the_command_is_process_1_unless_init_is_asked_for() {
    let hull = Hull::new();
    assert_eq!(hull.sh(&[], "echo $$").ok(), "1\n");
    assert_ne!(hull.sh(&["--init"], "echo $$; true").ok(), "1\n");
    // A signal to the init process reaches the command, also one without a name.
    assert_eq!(hull.sh(&["--init"], "kill -34 1; sleep 60").code, Some(128 + 34));
}

#[test]
fn init_reaps_orphans() {
    let run = Hull::new().sh(&["--init"], "(sleep 0.1 & exec true) ; sleep 2; ps -o stat,comm | grep -c '^Z' || true");
    assert_eq!(run.ok(), "0\n");
}
