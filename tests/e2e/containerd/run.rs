//! `ctr run`: each case first with containerd's own runtime, then with Hull; what differs is a failure.

use std::fs;
use std::io::Write as _;
use std::process::Stdio;

use super::harness::{Containerd, HULL, RUNC, scenarios};
use crate::harness::{Run, noise};

scenarios! {
    output_exit_codes_and_flags_are_those_of_runc,
    a_command_that_does_not_exist_is_an_error_that_names_it,
    mounts_show_the_host_s_files_and_take_what_is_written,
    piped_input_ends_and_large_output_is_whole,
    a_terminal_is_one,
    logs_go_to_files_and_programs,
    a_privileged_container_has_rights_in_its_guest_and_none_of_the_host_s_devices,
}

/// Runs a case with both and returns what both did.
fn both(containerd: &Containerd, flags: &[&str], command: &[&str]) -> Run {
    let expected = containerd.run(RUNC, flags, command);
    let run = containerd.run(HULL, flags, command);
    let view = |run: &Run| (run.code, run.text());
    assert_eq!(view(&run), view(&expected), "{flags:?} {command:?}: hull: {run:?}, runc: {expected:?}");
    run
}

pub fn output_exit_codes_and_flags_are_those_of_runc(containerd: &Containerd) {
    let both = |flags: &[&str], command: &[&str]| both(containerd, flags, command);
    assert_eq!(both(&[], &["echo", "hello"]).ok(), "hello\n");
    assert_eq!(both(&[], &["sh", "-c", "echo out; echo err >&2; exit 7"]).code, Some(7));
    assert_eq!(both(&[], &["sh", "-c", "sh -c 'kill -9 $$'; exit $?"]).code, Some(137));
    assert_eq!(both(&["--env", "A=b c", "--cwd", "/usr"], &["sh", "-c", "echo $A; pwd"]).ok(), "b c\n/usr\n");
    both(&["--read-only"], &["sh", "-c", "touch /x && echo written; cat /proc/self/status | grep ^Cap"]);
    both(&["--memory-limit", "67108864"], &["cat", "/sys/fs/cgroup/memory.max"]);
    both(&["--cpus", "0.5"], &["cat", "/sys/fs/cgroup/cpu.max"]);
    both(&[], &["sh", "-c", "id; ls /dev | grep -v core | sort; cat /proc/1/comm"]);
    both(&[], &["sh", "-c", "touch /new /tmp/new && mkdir -p /a/b && ls / && stat -c '%a %u %g' /new /tmp"]);
}

fn a_command_that_does_not_exist_is_an_error_that_names_it(containerd: &Containerd) {
    for runtime in [RUNC, HULL] {
        let run = containerd.run(runtime, &[], &["no-such-program"]);
        assert_ne!(run.code, Some(0));
        assert!(run.stderr.contains("no-such-program"), "{run:?}");
        assert!(run.stderr.contains("executable file not found in $PATH"), "{run:?}");
    }
    containerd.assert_nothing_left();
}

fn mounts_show_the_host_s_files_and_take_what_is_written(containerd: &Containerd) {
    let (data, file) = (containerd.path("data"), containerd.path("file"));
    fs::create_dir(&data).unwrap();
    fs::write(&file, "a file\n").unwrap();
    let mount = format!("type=bind,src={},dst=/data,options=rbind:rw", data.display());
    let read_only = format!("type=bind,src={},dst=/etc/motd,options=rbind:ro", file.display());
    let flags = ["--mount", &mount, "--mount", &read_only];
    let script = "cat /etc/motd; echo written >/data/new; echo x >/etc/motd || echo refused; grep -c . /data/new";
    let run = both(containerd, &flags, &["sh", "-c", script]);
    assert!(run.text().contains("a file\n") && run.text().contains("refused\n"), "{run:?}");
    assert_eq!(fs::read_to_string(data.join("new")).unwrap(), "written\n");
    assert_eq!(fs::read_to_string(file).unwrap(), "a file\n");
}

fn piped_input_ends_and_large_output_is_whole(containerd: &Containerd) {
    let input = noise(3 << 20);
    for runtime in [RUNC, HULL] {
        let args = containerd.run_args(runtime, &["--rm"], &["sh", "-c", "cat; echo end >&2"]);
        let mut child = containerd.command(&args).stdin(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let bytes = input.clone();
        let writer = std::thread::spawn(move || stdin.write_all(&bytes));
        let run = Run::from(child.wait_with_output().unwrap());
        writer.join().unwrap().unwrap();
        assert_eq!(run.code, Some(0), "{runtime}: {}", run.stderr);
        assert!(run.stdout == input, "{runtime}: {} bytes", run.stdout.len());
        assert_eq!(run.stderr, "end\n", "{runtime}");
    }
}

pub fn a_terminal_is_one(containerd: &Containerd) {
    for runtime in [RUNC, HULL] {
        // The size comes a little after the start.
        let script = "test -t 0 && test -t 1 && until stty size | grep ' '; do sleep 0.1; done; exit 5";
        let args = containerd.run_args(runtime, &["--rm", "-t"], &["sh", "-c", script]);
        let run = in_terminal(containerd, &args);
        assert_eq!(run.code, Some(5), "{runtime}: {run:?}");
        assert!(run.text().contains("30 100"), "{runtime}: {run:?}");
    }
}

/// Runs `ctr` in a terminal of 30 lines of 100 characters.
pub fn in_terminal(containerd: &Containerd, args: &[String]) -> Run {
    let line = format!(
        "stty rows 30 cols 100; exec {} --address {} {}",
        containerd.engine().program("ctr").display(),
        containerd.path("c.sock").display(),
        quoted(args)
    );
    let output = std::process::Command::new("script").args(["-qec", &line, "/dev/null"]).stdin(Stdio::null()).output();
    Run::from(output.unwrap())
}

fn quoted(words: &[String]) -> String {
    words.iter().map(|word| format!("'{}'", word.replace('\'', "'\\''"))).collect::<Vec<_>>().join(" ")
}

fn logs_go_to_files_and_programs(containerd: &Containerd) {
    for runtime in [RUNC, HULL] {
        let log = containerd.path(&format!("{runtime}.log"));
        let uri = format!("file://{}", log.display());
        let args = containerd.run_args(runtime, &["--rm", "--log-uri", &uri], &["sh", "-c", "echo out; echo err >&2"]);
        containerd.ctr(&args).ok();
        let text = fs::read_to_string(&log).unwrap();
        assert!(text.contains("out\n") && text.contains("err\n"), "{runtime}: {text:?}");
    }
}

fn a_privileged_container_has_rights_in_its_guest_and_none_of_the_host_s_devices(containerd: &Containerd) {
    let script = "mkdir /m; mount -t tmpfs none /m && echo mounted; ls /dev/kvm /dev/mem 2>/dev/null; ls -d /dev/null";
    assert_eq!(containerd.run(HULL, &["--privileged"], &["sh", "-c", script]).ok(), "mounted\n/dev/null\n");
}
