//! `ctr task exec`: more processes in a container.

use super::harness::{Containerd, HULL, RUNC, scenarios};

scenarios! {
    processes_run_beside_the_first_with_their_own_streams_and_codes,
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
