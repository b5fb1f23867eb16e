//! A server with clients on the host: Debian's Redis in a container, `redis-benchmark` outside.

use std::process::Command;
use std::sync::PoisonError;

use serde_json::json;

use super::harness::{Containerd, HULL};
use super::network::{NETWORK, configure_cni};
use crate::harness::{Run, noise, wait_for};

const IMAGE: &str = "localhost/redis:latest";
const PORT: u16 = 6379;
/// Leads to it, on this machine.
const PUBLISHED: u16 = 16_379;

/// Where a Redis is reached.
struct Redis {
    address: String,
    port: u16,
}

impl Redis {
    fn command(&self, program: &str, args: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(["-h", &self.address, "-p", &self.port.to_string()]).args(args);
        command
    }

    fn cli(&self, args: &[&str]) -> Run {
        Run::from(self.command("redis-cli", args).output().unwrap())
    }

    fn benchmark(&self, args: &[&str]) {
        let run = Run::from(self.command("redis-benchmark", &[&["--csv"], args].concat()).output().unwrap());
        assert!(run.ok().lines().count() > 1 && !run.text().contains("Error") && run.stderr.is_empty(), "{run:?}");
    }

    /// How often it has answered a command; it has failed none.
    fn answered(&self, command: &str) -> u32 {
        let statistics = self.cli(&["info", "commandstats"]).ok();
        let prefix = format!("cmdstat_{command}:calls=");
        let Some(line) = statistics.lines().find_map(|line| line.strip_prefix(&prefix)) else { return 0 };
        assert!(line.contains("rejected_calls=0,failed_calls=0"), "{line}");
        line.split(',').next().unwrap().parse().unwrap()
    }
}

#[test]
fn redis_answers_every_request_over_the_bridge_and_at_a_published_port() {
    let containerd = Containerd::start();
    let _network = NETWORK.lock().unwrap_or_else(PoisonError::into_inner);
    configure_cni(&containerd, json!([{ "hostPort": PUBLISHED, "containerPort": PORT, "protocol": "tcp" }]));
    containerd.import("default", "redis", IMAGE);
    let id = containerd.id();
    let run = ["run", "--detach", "--null-io", "--cni", "--runtime", HULL, IMAGE, &id];
    containerd.ctr([&run[..], &["redis-server", "--save", "", "--protected-mode", "no"]].concat()).ok();
    let shown =
        containerd.ctr(["task", "exec", "--exec-id", "a", &id, "ip", "-4", "-o", "addr", "show", "dev", "eth0"]).ok();
    let address = shown.split_whitespace().find_map(|word| word.strip_suffix("/24")).unwrap().to_owned();
    let redis = Redis { address, port: PORT };
    wait_for("Redis to answer", || redis.cli(&["ping"]).text() == "PONG\n");

    redis.benchmark(&["-t", "set,get", "-n", "4000", "-c", "40", "-P", "4", "-r", "500"]);
    assert_eq!((redis.answered("set"), redis.answered("get")), (4000, 4000));
    // More than a packet each.
    redis.benchmark(&["-t", "set", "-n", "200", "-c", "10", "-d", "20000"]);
    assert_eq!(redis.answered("set"), 4200);

    let published = Redis { address: "127.0.0.1".into(), port: PUBLISHED };
    let before = redis.answered("ping");
    published.benchmark(&["-t", "ping_mbulk", "-n", "500", "-c", "10"]);
    assert_eq!(redis.answered("ping") - before, 500);

    let value: String = noise(1 << 20).iter().map(|byte| char::from(b'a' + byte % 26)).collect();
    let file = containerd.path("value");
    std::fs::write(&file, &value).unwrap();
    let input = std::fs::File::open(&file).unwrap();
    let stored = published.command("redis-cli", &["-x", "set", "value"]).stdin(input).output().unwrap();
    assert_eq!(Run::from(stored).ok(), "OK\n");
    assert!(redis.cli(&["--raw", "get", "value"]).ok().trim_end() == value, "another value came back");
    containerd.remove(&id);
}
