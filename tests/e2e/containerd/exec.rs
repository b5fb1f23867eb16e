//! `ctr task exec`: more processes in a container.

use super::harness::{Containerd, HULL, RUNC, scenarios};
use super::run::in_terminal;

scenarios! {
    processes_run_beside_the_first_with_their_own_streams_and_codes,
    a_process_beside_the_first_has_a_terminal_of_its_own,
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
        let killed = exec(&["--exec-id", "four"], &["sh", "-c", "kill -34 $$"]);
        assert_eq!(killed.code, Some(128 + 34), "{runtime}: a real-time signal: {killed:?}");
        // The failed one has left its identifier and the container as they were.
        assert_eq!(exec(&["--exec-id", "three"], &["echo", "again"]).ok(), "again\n", "{runtime}");
        containerd.remove(&id);
    }
}

pub fn a_process_beside_the_first_has_a_terminal_of_its_own(containerd: &Containerd) {
    for runtime in [RUNC, HULL] {
        let id = containerd.detached(runtime, &[], "sleep 600");
        // More than once: the terminal is made while the process starts.
        for number in 1..=3 {
            let script = "test -t 0 && test -t 1 && until stty size | grep ' '; do sleep 0.1; done; exit 5";
            let exec_id = format!("terminal{number}");
            let args = ["task", "exec", "--exec-id", &exec_id, "-t", &id, "sh", "-c", script].map(String::from);
            let run = in_terminal(containerd, &args);
            assert_eq!(run.code, Some(5), "{runtime}: {run:?}");
            assert!(run.text().contains("30 100"), "{runtime}: {run:?}");
        }
        containerd.remove(&id);
    }
}
