//! Output that nobody reads, or not yet: the end of a process doesn't wait for it.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::Stdio;

use super::grpc;
use super::harness::{Containerd, HULL, RUNC};
use super::message::{Message, text};
use crate::harness::wait_for;

/// Starts a container in the background whose output goes to FIFOs that nobody reads after `ctr` has gone. Its script begins
/// when `/data/go` exists.
fn unread(containerd: &Containerd, runtime: &str, script: &str) -> (String, PathBuf) {
    let data = containerd.path(&format!("data-{runtime}"));
    fs::create_dir_all(&data).unwrap();
    let fifos = containerd.path(&format!("fifos-{runtime}"));
    let mount = format!("type=bind,src={},dst=/data,options=rbind:rw", data.display());
    let flags = ["--detach", "--fifo-dir", fifos.to_str().unwrap(), "--mount", &mount];
    let script = format!("until test -e /data/go; do sleep 0.1; done; {script}");
    let args = containerd.run_args(runtime, &flags, &["sh", "-c", &script]);
    containerd.ctr(&args).ok();
    fs::write(data.join("go"), "").unwrap();
    let id = args[args.len() - 4].clone();
    let own = fs::read_dir(&fifos).unwrap().next().unwrap().unwrap().path();
    (id.clone(), own.join(format!("{id}-stdout")))
}

#[test]
fn an_end_is_told_and_deleted_though_nobody_reads_the_output() {
    let containerd = Containerd::start();
    let log = containerd.path("events");
    let mut events = containerd.command(["events"]).stdout(File::create(&log).unwrap()).spawn().unwrap();
    for runtime in [RUNC, HULL] {
        // The first process ends while another has filled all that is between it and the reader.
        let (id, _) = unread(&containerd, runtime, "head -c 4000000 /dev/zero & sleep 2; exit 3");
        containerd.wait_for_status(&id, "STOPPED");
        wait_for("the event", || {
            let events = fs::read_to_string(&log).unwrap();
            events.lines().any(|line| line.contains("/tasks/exit") && line.contains(&id))
        });
        let waited = grpc::call(&containerd, "default", "containerd.services.tasks.v1.Tasks/Wait", &text(1, &id));
        assert_eq!(Message::parse(&waited.unwrap()).number(1), 3, "{runtime}");
        assert_eq!(containerd.delete_task(&id), Some(3), "{runtime}");
        containerd.ctr(["container", "rm", &id]).ok();
        containerd.assert_nothing_left();
    }
    events.kill().unwrap();
    events.wait().unwrap();
}

#[test]
fn a_reader_that_comes_after_the_end_gets_all_output() {
    let containerd = Containerd::start();
    // Much more than a FIFO holds.
    let expected: String = (1..=40_000).map(|number| format!("{number}\n")).collect();
    let (id, stdout) = unread(&containerd, HULL, "seq 1 40000; exit 4");
    containerd.wait_for_status(&id, "STOPPED");
    let mut reader = std::process::Command::new("cat").arg(stdout).stdout(Stdio::piped()).spawn().unwrap();
    let mut output = String::new();
    std::io::Read::read_to_string(reader.stdout.as_mut().unwrap(), &mut output).unwrap();
    reader.wait().unwrap();
    assert!(output == expected, "{} of {} bytes", output.len(), expected.len());
    assert_eq!(containerd.delete_task(&id), Some(4));
    containerd.ctr(["container", "rm", &id]).ok();
}
