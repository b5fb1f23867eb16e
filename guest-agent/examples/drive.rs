//!
//! `drive CID` expects a guest with the boot token 0123...ef on its command line and a disk with serial number `image`
//! that holds busybox. It runs scenarios and prints what came out; `tests/` holds the real tests.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a tool for developers"
)]

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hull_protocol::agent::*;
use hull_protocol::agent_ttrpc::AgentClient;
use hull_protocol::{AGENT_PORT, PROTOCOL_VERSION, READY_PORT, STREAM_PORT};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::oneshot;
use tokio_vsock::{VMADDR_CID_ANY, VsockAddr, VsockListener, VsockStream};
use ttrpc::asynchronous::Client;
use ttrpc::asynchronous::transport::Socket;

type Waiting = Arc<Mutex<HashMap<[u8; 16], oneshot::Sender<VsockStream>>>>;

struct Host {
    agent: AgentClient,
    waiting: Waiting,
    next: u8,
}

struct Run {
    streams: Streams,
    stdin: Option<oneshot::Receiver<VsockStream>>,
    stdout: oneshot::Receiver<VsockStream>,
    stderr: Option<oneshot::Receiver<VsockStream>>,
}

fn context(seconds: u64) -> ttrpc::context::Context {
    ttrpc::context::with_duration(Duration::from_secs(seconds))
}

impl Host {
    fn expect(&mut self) -> (Vec<u8>, oneshot::Receiver<VsockStream>) {
        self.next += 1;
        let token = [self.next; 16];
        let (sender, receiver) = oneshot::channel();
        self.waiting.lock().unwrap().insert(token, sender);
        (token.to_vec(), receiver)
    }

    fn run(&mut self, stdin: bool, terminal: bool) -> Run {
        let (out_token, stdout) = self.expect();
        let mut streams = Streams { stdout: out_token, ..Default::default() };
        let mut run = Run { streams: Streams::new(), stdin: None, stdout, stderr: None };
        if stdin {
            let (token, receiver) = self.expect();
            streams.stdin = token;
            run.stdin = Some(receiver);
        }
        if !terminal {
            let (token, receiver) = self.expect();
            streams.stderr = token;
            run.stderr = Some(receiver);
        }
        run.streams = streams;
        run
    }

    fn create(&self, id: &str, spec: &Value, run: &Run) -> CreateContainerRequest {
        CreateContainerRequest {
            container_id: id.into(),
            oci_spec_json: spec.to_string().into_bytes(),
            rootfs: Some(RootFilesystem {
                image_serial: "image".into(),
                image_type: "erofs".into(),
                ..Default::default()
            })
            .into(),
            streams: Some(run.streams.clone()).into(),
            files: vec![InjectedFile {
                path: "/etc/hosts".into(),
                content: b"127.0.0.1 localhost injected\n".to_vec(),
                mode: 0o644,
                ..Default::default()
            }],
            ..Default::default()
        }
    }

    /// Creates, starts, waits, collects and deletes.
    async fn container(&mut self, name: &str, spec: Value, change: impl FnOnce(&mut CreateContainerRequest)) {
        let started = Instant::now();
        let run = self.run(false, false);
        let mut request = self.create(name, &spec, &run);
        change(&mut request);
        if let Err(error) = self.agent.create_container(context(30), &request).await {
            println!("== {name}: create: {error}");
            return;
        }
        let out = collect(run.stdout);
        let err = collect(run.stderr.unwrap());
        let id = || name.to_string();
        let start = StartContainerRequest { container_id: id(), ..Default::default() };
        if let Err(error) = self.agent.start_container(context(30), &start).await {
            println!("== {name}: start: {error}");
        }
        let wait = WaitProcessRequest { container_id: id(), ..Default::default() };
        match self.agent.wait_process(context(60), &wait).await {
            Ok(exit) => println!(
                "== {name}: status {} signal {} oom {} in {:?}",
                exit.exit_status,
                exit.signal,
                exit.oom_killed,
                started.elapsed()
            ),
            Err(error) => println!("== {name}: wait: {error}"),
        }
        let (out, err) = (out.await.unwrap(), err.await.unwrap());
        print!("{}", shorten(&out));
        if !err.is_empty() {
            println!("[stderr] {}", shorten(&err));
        }
        self.delete(name).await;
    }

    async fn delete(&self, id: &str) {
        let delete = DeleteContainerRequest { container_id: id.into(), force: true, ..Default::default() };
        if let Err(error) = self.agent.delete_container(context(30), &delete).await {
            println!("== {id}: delete: {error}");
        }
    }

    async fn exec(&mut self, id: &str, exec_id: &str, process: Value, user: &str) {
        let run = self.run(false, false);
        let request = ExecProcessRequest {
            container_id: id.into(),
            exec_id: exec_id.into(),
            oci_process_json: process.to_string().into_bytes(),
            streams: Some(run.streams.clone()).into(),
            user: user.into(),
            ..Default::default()
        };
        let started = Instant::now();
        if let Err(error) = self.agent.exec_process(context(30), &request).await {
            println!("== {id}/{exec_id}: exec: {error}");
            return;
        }
        let (out, err) = (collect(run.stdout), collect(run.stderr.unwrap()));
        let wait = WaitProcessRequest { container_id: id.into(), exec_id: exec_id.into(), ..Default::default() };
        match self.agent.wait_process(context(60), &wait).await {
            Ok(exit) => println!("== {id}/{exec_id}: status {} in {:?}", exit.exit_status, started.elapsed()),
            Err(error) => println!("== {id}/{exec_id}: wait: {error}"),
        }
        print!("{}", shorten(&out.await.unwrap()));
        let err = err.await.unwrap();
        if !err.is_empty() {
            println!("[stderr] {}", shorten(&err));
        }
    }
}

fn collect(stream: oneshot::Receiver<VsockStream>) -> tokio::task::JoinHandle<Vec<u8>> {
    tokio::spawn(async move {
        let mut all = Vec::new();
        if let Ok(Ok(mut stream)) = tokio::time::timeout(Duration::from_secs(5), stream).await {
            let _ = tokio::time::timeout(Duration::from_secs(60), stream.read_to_end(&mut all)).await;
        }
        all
    })
}

fn shorten(bytes: &[u8]) -> String {
    if bytes.len() > 4000 {
        return format!("({} bytes, sum {})\n", bytes.len(), bytes.iter().map(|&b| u64::from(b)).sum::<u64>());
    }
    String::from_utf8_lossy(bytes).into_owned()
}

fn process(args: &[&str]) -> Value {
    let caps = [
        "CAP_CHOWN",
        "CAP_DAC_OVERRIDE",
        "CAP_FSETID",
        "CAP_FOWNER",
        "CAP_MKNOD",
        "CAP_NET_RAW",
        "CAP_SETGID",
        "CAP_SETUID",
        "CAP_SETFCAP",
        "CAP_SETPCAP",
        "CAP_NET_BIND_SERVICE",
        "CAP_SYS_CHROOT",
        "CAP_KILL",
        "CAP_AUDIT_WRITE",
    ];
    json!({"terminal": false, "user": {"uid": 0, "gid": 0}, "args": args, "env": ["PATH=/bin:/usr/bin"], "cwd": "/",
        "capabilities": {"bounding": caps, "effective": caps, "permitted": caps}})
}

fn spec(args: &[&str]) -> Value {
    json!({"ociVersion": "1.0.2", "process": process(args), "root": {"path": "rootfs"}, "hostname": "box",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["nosuid", "noexec", "nodev", "ro"]}],
        "linux": {
            "namespaces": [{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "cgroup"}],
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
            "maskedPaths": ["/proc/kcore", "/proc/timer_list", "/sys/firmware"],
            "readonlyPaths": ["/proc/sys", "/proc/bus"],
            "seccomp": {"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
                "syscalls": [{"names": ["swapoff", "mkdirat", "mkdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}]}}})
}

fn shell(script: &str) -> Value {
    spec(&["sh", "-c", script])
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let cid: u32 = std::env::args().nth(1).and_then(|a| a.parse().ok()).expect("usage: drive CID");
    let ready = VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, READY_PORT)).expect("ready port");
    let streams = VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, STREAM_PORT)).expect("stream port");
    println!("waiting");
    let (mut message, _) = ready.accept().await.expect("ready");
    let mut token = Vec::new();
    message.read_to_end(&mut token).await.expect("token");
    println!("ready {token:02x?}");
    let waiting = Waiting::default();
    let table = waiting.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = streams.accept().await {
            let mut token = [0; 16];
            if stream.read_exact(&mut token).await.is_ok()
                && let Some(sender) = table.lock().unwrap().remove(&token)
            {
                let _ = sender.send(stream);
            }
        }
    });
    let stream = VsockStream::connect(VsockAddr::new(cid, AGENT_PORT)).await.expect("connect");
    let agent = AgentClient::new(Client::new(Socket::new(stream)));
    let hello = agent
        .hello(
            context(10),
            &HelloRequest {
                protocol_version: PROTOCOL_VERSION,
                wall_clock_ns: 1_800_000_000_000_000_000,
                entropy: vec![7; 64],
                ..Default::default()
            },
        )
        .await
        .expect("hello");
    println!("hello {hello}");
    let mut host = Host { agent, waiting, next: 0 };
    scenarios(&mut host).await;
    println!("shutdown {:?}", host.agent.shutdown(context(10), &Empty::new()).await.map(drop));
}

async fn scenarios(h: &mut Host) {
    let mut guest = shell(
        "grep -E 'VmRSS|VmHWM|Threads|VmExe' /proc/1/status; ls -l /proc/1/exe; wc -c < /proc/1/exe; ls /proc/1/fd",
    );
    if let Some(namespaces) = guest["linux"]["namespaces"].as_array_mut() {
        namespaces.retain(|namespace| namespace["type"] != "pid");
    }
    h.container("guest", guest, |_| {}).await;

    h.container("basics", shell("echo out; echo err >&2; id; hostname; cat /etc/hosts; date -u +%Y; echo $HOME; pwd; ps; grep Cap /proc/self/status; mount | head -3; ls /dev; ulimit -n; exit 3"), |_| {}).await;
    h.container("devices", shell("mknod /tmp/vda b 254 0; mknod /tmp/vdb b 253 0; dd if=/tmp/vda of=/dev/null count=1; dd if=/tmp/vdb of=/dev/null count=1; echo x > /dev/null && echo null ok; head -c 3 /dev/urandom | wc -c"), |_| {}).await;
    h.container(
        "seccomp",
        shell("mkdir /newdir; echo $?; ls /proc/kcore -l; echo 1 > /proc/sys/vm/swappiness"),
        |_| {},
    )
    .await;
    h.container("user", shell("id; echo $HOME; cat /proc/self/status | grep CapEff; echo hi > /dev/stdout"), |r| {
        r.user = "www-data".into()
    })
    .await;
    h.container("missing", spec(&["nonesuch"]), |_| {}).await;
    h.container("notexec", spec(&["/etc/passwd"]), |_| {}).await;
    h.container("badformat", spec(&["/bad"]), |_| {}).await;
    h.container("nouser", spec(&["true"]), |r| r.user = "nobodyhere".into()).await;
    h.container("nodisk", spec(&["true"]), |r| r.rootfs.as_mut().unwrap().image_serial = "other".into()).await;
    h.container("init", shell("ps; sleep 1 & exit 5"), |r| r.use_init = true).await;
    h.container("readonly", shell("touch /x; echo $?; cat /etc/hosts"), |r| {
        r.rootfs.as_mut().unwrap().read_only = true
    })
    .await;
    h.container(
        "cwd",
        {
            let mut s = shell("pwd; ls -ld .");
            s["process"]["cwd"] = json!("/work/deep");
            s
        },
        |_| {},
    )
    .await;
    let mut limited = shell(
        "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/pids.max /sys/fs/cgroup/cpu.max; x=$(head -c 100000000 /dev/zero | tr '\\0' x); echo not reached",
    );
    limited["linux"]["resources"] = json!({"memory": {"limit": 52428800, "swap": 104857600}, "pids": {"limit": 32}, "cpu": {"quota": 200000, "period": 100000}});
    h.container("oom", limited, |_| {}).await;
    let mut user_ns = shell("id; cat /proc/self/uid_map; touch /tmp/x; ls -ln /tmp");
    user_ns["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "user"}));
    user_ns["linux"]["uidMappings"] = json!([{"containerID": 0, "hostID": 100000, "size": 65536}]);
    user_ns["linux"]["gidMappings"] = json!([{"containerID": 0, "hostID": 100000, "size": 65536}]);
    h.container("userns", user_ns, |_| {}).await;
    let mut network = shell("ip a | grep -c LOOPBACK,UP; ls /sys/class/net");
    network["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "network"}));
    h.container("network", network, |_| {}).await;
    let mut hooks = shell("cat /tmp/hooked");
    hooks["hooks"] = json!({"prestart": [{"path": "/host-only"}], "startContainer": [{"path": "/bin/sh", "args": ["sh", "-c", "cat > /dev/null; id > /tmp/hooked"]}]});
    h.container("hooks", hooks, |_| {}).await;
    h.container("bulk", shell("head -c 67108864 /dev/zero | tr '\\0' a"), |_| {}).await;
    h.container("kill", shell("kill -9 $$"), |_| {}).await;
    interactive(h).await;
    running(h).await;
}

async fn interactive(h: &mut Host) {
    // stdin through a pipe.
    let mut run = h.run(true, false);
    let request = h.create("cat", &spec(&["sh", "-c", "cat | wc -c"]), &run);
    h.agent.create_container(context(30), &request).await.expect("create");
    let out = collect(run.stdout);
    h.agent
        .start_container(context(30), &StartContainerRequest { container_id: "cat".into(), ..Default::default() })
        .await
        .expect("start");
    let mut stdin = run.stdin.take().unwrap().await.expect("stdin");
    stdin.write_all(&vec![b'x'; 5_000_000]).await.expect("write");
    h.agent
        .close_stdin(context(10), &CloseStdinRequest { container_id: "cat".into(), ..Default::default() })
        .await
        .expect("close");
    let wait = WaitProcessRequest { container_id: "cat".into(), ..Default::default() };
    println!(
        "== cat: {:?} {}",
        h.agent.wait_process(context(30), &wait).await.map(|w| w.exit_status),
        shorten(&out.await.unwrap())
    );
    h.delete("cat").await;

    // A terminal.
    let mut run = h.run(true, true);
    let mut tty = spec(&["sh"]);
    tty["process"]["terminal"] = json!(true);
    let mut request = h.create("tty", &tty, &run);
    request.terminal_size = Some(TerminalSize { columns: 100, rows: 30, ..Default::default() }).into();
    h.agent.create_container(context(30), &request).await.expect("create");
    let out = collect(run.stdout);
    h.agent
        .start_container(context(30), &StartContainerRequest { container_id: "tty".into(), ..Default::default() })
        .await
        .expect("start");
    let mut stdin = run.stdin.take().unwrap().await.expect("stdin");
    stdin.write_all(b"stty size; tty; ls -l /dev/console\n").await.unwrap();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let size = TerminalSize { columns: 55, rows: 22, ..Default::default() };
    h.agent
        .resize_terminal(
            context(10),
            &ResizeTerminalRequest { container_id: "tty".into(), size: Some(size).into(), ..Default::default() },
        )
        .await
        .expect("resize");
    stdin.write_all(b"stty size; exit 7\n").await.unwrap();
    let wait = WaitProcessRequest { container_id: "tty".into(), ..Default::default() };
    println!(
        "== tty: {:?}\n{}",
        h.agent.wait_process(context(30), &wait).await.map(|w| w.exit_status),
        shorten(&out.await.unwrap())
    );
    h.delete("tty").await;
}

async fn running(h: &mut Host) {
    let run = h.run(false, false);
    println!("== long");
    let mut long = spec(&["sleep", "1000"]);
    long["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "user"}));
    long["linux"]["uidMappings"] = json!([{"containerID": 0, "hostID": 0, "size": 65536}]);
    long["linux"]["gidMappings"] = json!([{"containerID": 0, "hostID": 0, "size": 65536}]);
    let request = h.create("long", &long, &run);
    if let Err(error) = h.agent.create_container(context(30), &request).await {
        println!("== long: {error}");
        return;
    }
    println!("again: {:?}", h.agent.create_container(context(30), &request).await.map(drop));
    h.exec("long", "early", process(&["true"]), "").await;
    h.agent
        .start_container(context(30), &StartContainerRequest { container_id: "long".into(), ..Default::default() })
        .await
        .expect("start");
    h.exec("long", "e1", process(&["sh", "-c", "id; ps; mkdir /q; grep -E 'Seccomp:|CapEff' /proc/self/status; cat /proc/self/cgroup; readlink /proc/self/ns/user; ls -l /proc/self/fd; exit 4"]), "").await;
    h.exec("long", "e2", process(&["nonesuch"]), "").await;
    h.exec("long", "e3", process(&["sh", "-c", "id; echo $HOME"]), "www-data").await;
    h.exec("long", "e4", process(&["/etc/passwd"]), "").await;
    h.exec("long", "e5", process(&["sh", "-c", "sleep 30 & echo left behind"]), "").await;
    h.exec("long", "e6", process(&["dd", "if=/proc/1/exe", "of=/dev/null", "count=1"]), "").await;
    let id = || "long".to_string();
    println!(
        "state {:?}",
        h.agent
            .container_state(context(5), &ContainerStateRequest { container_id: id(), ..Default::default() })
            .await
            .map(|s| s.to_string())
    );
    println!(
        "stats {:?}",
        h.agent
            .container_stats(context(5), &ContainerStatsRequest { container_id: id(), ..Default::default() })
            .await
            .map(|s| s.to_string())
    );
    let delete = DeleteContainerRequest { container_id: id(), ..Default::default() };
    println!("delete running: {:?}", h.agent.delete_container(context(5), &delete).await.map(drop));
    let signal = SignalProcessRequest { container_id: id(), signal: 9, all: true, ..Default::default() };
    h.agent.signal_process(context(5), &signal).await.expect("signal");
    let wait = WaitProcessRequest { container_id: id(), ..Default::default() };
    println!("wait {:?}", h.agent.wait_process(context(10), &wait).await.map(|w| w.to_string()));
    println!(
        "signal ended: {:?}",
        h.agent
            .signal_process(context(5), &SignalProcessRequest { container_id: id(), signal: 15, ..Default::default() })
            .await
            .map(drop)
    );
    h.delete("long").await;
    println!(
        "state after delete: {:?}",
        h.agent
            .container_state(context(5), &ContainerStateRequest { container_id: id(), ..Default::default() })
            .await
            .map(drop)
    );
}
