//! Docker with Hull as a runtime: `docker run --runtime io.containerd.kata.v2`.

mod harness;

use std::fs;
use std::io::Write as _;
use std::process::{Command, Stdio};

use crate::harness::{Run, noise, wait_for};
use harness::{ADDRESS, Docker};

#[test]
fn containers_live_as_docker_s_own_do() {
    let docker = Docker::start();

    // Commands that end.
    assert_eq!(docker.run(&[], &["sh", "-c", "cat /proc/version | grep -c hull"]).ok(), "1\n");
    let run = docker.run(
        &["--env", "A=b c", "--workdir", "/usr", "--user", "65534"],
        &["sh", "-c", "echo $A; pwd; id -u; echo err >&2; exit 7"],
    );
    assert_eq!((run.code, run.text().as_str(), run.stderr.as_str()), (Some(7), "b c\n/usr\n65534\n", "err\n"));
    let missing = docker.run(&[], &["no-such-program"]);
    assert_eq!(missing.code, Some(127), "{missing:?}");
    assert!(missing.stderr.contains("no-such-program"), "{missing:?}");

    let script = "mkdir /m; mount -t tmpfs none /m && echo mounted; ls /dev/kvm /dev/mem 2>/dev/null; ls -d /dev/null";
    assert_eq!(docker.run(&["--privileged"], &["sh", "-c", script]).ok(), "mounted\n/dev/null\n");

    // Standard input, and a terminal.
    let input = noise(1 << 20);
    let mut child = docker.command(Docker::run_args(&["--rm", "-i"], &["cat"])).stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let bytes = input.clone();
    let writer = std::thread::spawn(move || stdin.write_all(&bytes));
    let run = Run::from(child.wait_with_output().unwrap());
    writer.join().unwrap().unwrap();
    assert!(run.stdout == input, "{} bytes came back: {}", run.stdout.len(), run.stderr);
    let run = in_terminal(&docker, "test -t 0 && until stty size | grep 30; do sleep 0.1; done; exit 5");
    assert_eq!(run.code, Some(5), "{run:?}");
    assert!(run.text().contains("30 100"), "{run:?}");

    // A container that stays, with a volume and limits.
    let data = docker.path("volume");
    fs::create_dir(&data).unwrap();
    fs::write(data.join("file"), "of the host\n").unwrap();
    let volume = format!("{}:/volume", data.display());
    let script = "echo out; echo err >&2; trap 'echo stopped; exit 0' TERM; while :; do sleep 0.1; done";
    docker.detached("one", &["--volume", &volume, "--memory", "64m", "--cpus", "0.5", "--hostname", "h"], script);
    let seen = docker.exec("one", "hostname; cat /volume/file /sys/fs/cgroup/memory.max /sys/fs/cgroup/cpu.max");
    assert_eq!(seen, format!("h\nof the host\n{}\n50000 100000\n", 64 << 20));
    docker.exec("one", "echo written >/volume/new; echo kept >/kept");
    assert_eq!(fs::read_to_string(data.join("new")).unwrap(), "written\n");
    let failed = docker.docker(["exec", "one", "sh", "-c", "exit 9"]);
    assert_eq!(failed.code, Some(9), "{failed:?}");
    let statistics = docker.docker(["stats", "--no-stream", "--format", "{{.MemUsage}} {{.PIDs}}", "one"]).ok();
    assert!(statistics.contains("/ 64MiB"), "{statistics}");
    docker.docker(["update", "--memory", "80m", "--memory-swap", "-1", "one"]).ok();
    assert_eq!(docker.exec("one", "cat /sys/fs/cgroup/memory.max"), format!("{}\n", 80 << 20));

    let refused = docker.run(&["--pid", "container:one"], &["ps"]);
    assert_eq!(refused.code, Some(125), "{refused:?}");
    assert!(refused.stderr.contains("pid namespace of another container"), "{refused:?}");

    // Files in and out.
    docker.docker(["cp", "one:/kept", data.to_str().unwrap()]).ok();
    assert_eq!(fs::read_to_string(data.join("kept")).unwrap(), "kept\n");
    docker.docker(["cp", data.join("file").to_str().unwrap(), "one:/copied"]).ok();
    assert_eq!(docker.exec("one", "cat /copied"), "of the host\n");

    // Its life.
    docker.docker(["pause", "one"]).ok();
    assert_eq!(docker.inspect("one", "{{.State.Status}}"), "paused");
    docker.docker(["unpause", "one"]).ok();
    docker.docker(["restart", "one"]).ok();
    assert_eq!(docker.exec("one", "cat /kept"), "kept\n", "what it wrote");
    docker.docker(["stop", "one"]).ok();
    assert_eq!(docker.inspect("one", "{{.State.Status}} {{.State.ExitCode}}"), "exited 0");
    let logs = docker.docker(["logs", "one"]);
    assert_eq!((logs.text().as_str(), logs.stderr.as_str()), ("out\nstopped\nout\nstopped\n", "err\nerr\n"));
    docker.docker(["start", "one"]).ok();
    docker.docker(["kill", "one"]).ok();
    assert_eq!(docker.docker(["wait", "one"]).ok(), "137\n");
    docker.docker(["rm", "one"]).ok();
}

/// Runs `script` in a container whose terminal has 30 lines of 100 characters.
fn in_terminal(docker: &Docker, script: &str) -> Run {
    let command = docker.command(Docker::run_args(&["--rm", "-it"], &["sh", "-c", script]));
    let words = [command.get_program()].into_iter().chain(command.get_args());
    let line: String = words.map(|word| format!(" '{}'", word.to_str().unwrap().replace('\'', "'\\''"))).collect();
    let line = format!("stty rows 30 cols 100; exec{line}");
    Run::from(Command::new("script").args(["-qec", &line, "/dev/null"]).stdin(Stdio::null()).output().unwrap())
}

#[test]
fn networks_reach_containers_also_while_they_run() {
    let docker = Docker::start();
    let serve = "echo hello >/index.html; exec httpd -f -p 80 -h /";
    docker.detached("server", &["--publish", "8080:80"], serve);
    let address = docker.inspect("server", "{{.NetworkSettings.IPAddress}}");
    wait_for("the server", || {
        docker.docker(["exec", "server", "wget", "-q", "-O-", "http://localhost"]).code == Some(0)
    });
    assert_eq!(docker.get(&format!("http://{address}")), "hello\n", "its own address");
    assert_eq!(docker.get("http://127.0.0.1:8080"), "hello\n", "the published port, on the machine itself");
    let outside = Command::new("curl").args(["-sS", "--max-time", "60", &format!("http://{ADDRESS}:8080")]).output();
    assert_eq!(Run::from(outside.unwrap()).ok(), "hello\n", "the published port, from another machine");
    let fetch = |flags: &[&str], address: &str| docker.run(flags, &["wget", "-q", "-O-", address]);
    assert_eq!(fetch(&[], &format!("http://{address}")).ok(), "hello\n", "from another container");

    // A second network, while the container runs.
    docker.docker(["network", "create", "second"]).ok();
    docker.docker(["network", "connect", "second", "server"]).ok();
    let second = docker.inspect("server", "{{.NetworkSettings.Networks.second.IPAddress}}");
    let has_second = || docker.exec("server", "ip -4 -o addr show").contains(&format!(" {second}/"));
    wait_for("the second network to reach the guest", has_second);
    assert_eq!(fetch(&["--network", "second"], &format!("http://{second}")).ok(), "hello\n");
    assert_eq!(fetch(&["--network", "second"], "http://server").ok(), "hello\n", "by its name");
    assert_eq!(docker.exec("server", "wget -q -O- http://server"), "hello\n", "a name, since it has that network");
    docker.docker(["restart", "--time", "1", "server"]).ok();
    assert!(has_second(), "a restarted container has both from the start");
    assert_eq!(docker.get("http://127.0.0.1:8080"), "hello\n", "the port is published again");
    docker.docker(["network", "disconnect", "second", "server"]).ok();
    wait_for("the second network to leave the guest", || !has_second());
    assert_eq!(docker.exec("server", "ls /sys/class/net"), "eth0\nlo\n");

    assert_eq!(docker.run(&["--network", "none"], &["ls", "/sys/class/net"]).ok(), "lo\n");
    let refused = docker.run(&["--network", "host"], &["true"]);
    assert_eq!(refused.code, Some(125), "{refused:?}");
    assert!(refused.stderr.contains("can't be in the host's network"), "{refused:?}");
}
