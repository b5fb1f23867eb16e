//! `ctr task exec`: more processes in a container.

use std::io::Write as _;
use std::process::Stdio;

use super::harness::{Containerd, HULL, RUNC, scenarios};
use crate::harness::{Run, noise};

scenarios! {
    processes_run_beside_the_first_with_their_own_streams_and_codes,
    eight_processes_at_once_keep_their_input_and_output_apart,
}

pub fn processes_run_beside_the_first_with_their_own_streams_and_codes(containerd: &Containerd) {
    for runtime in [RUNC, HULL] {
        let id = containerd.detached(runtime, &["--env", "A=b"], "sleep 600");
        let exec = |flags: &[&str], command: &[&str]| {
            let mut args = vec!["task", "exec"];
            args.extend_from_slice(flags);
            args.push(&id);
            args.extend_from_slice(command);
            containerd.ctr(args)
        };
        let run = exec(&["--exec-id", "one", "--cwd", "/usr"], &["sh", "-c", "pwd; echo err >&2; exit 3"]);
        assert_eq!((run.code, run.text().as_str(), run.stderr.as_str()), (Some(3), "/usr\n", "err\n"), "{runtime}");
        assert_eq!(exec(&["--exec-id", "two", "--user", "65534"], &["id", "-u"]).ok(), "65534\n", "{runtime}");
        let missing = exec(&["--exec-id", "three"], &["no-such-program"]);
        assert!(missing.code != Some(0) && missing.stderr.contains("no-such-program"), "{runtime}: {missing:?}");
        // The failed one has left its identifier and the container as they were.
        assert_eq!(exec(&["--exec-id", "three"], &["echo", "again"]).ok(), "again\n", "{runtime}");
        containerd.remove(&id);
    }
}

fn eight_processes_at_once_keep_their_input_and_output_apart(containerd: &Containerd) {
    let id = containerd.detached(HULL, &[], "sleep 600");
    let children: Vec<_> = (0..8_usize)
        .map(|number| {
            let exec_id = format!("e{number}");
            let mut command = containerd.command(["task", "exec", "--exec-id", &exec_id, &id, "cat"]);
            let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
            let input = noise(50_000 + number);
            let mut stdin = child.stdin.take().unwrap();
            let bytes = input.clone();
            let writer = std::thread::spawn(move || stdin.write_all(&bytes).unwrap());
            (child, input, writer)
        })
        .collect();
    for (child, input, writer) in children {
        let run = Run::from(child.wait_with_output().unwrap());
        writer.join().unwrap();
        assert_eq!(run.code, Some(0), "{}", run.stderr);
        assert!(run.stdout == input, "{} of {} bytes", run.stdout.len(), input.len());
    }
    containerd.remove(&id);
}
