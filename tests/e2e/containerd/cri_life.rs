//! The life of a pod's containers as a kubelet sees it: states, logs, statistics, limits, the reasons of their ends.

use std::fs;

use super::cri::{Cri, IMAGE, Pod};
use super::engine::Engine;
use super::message::{Message, bytes, message, number, text};
use crate::harness::wait_for;

const RUNNING: u64 = 1;
const EXITED: u64 = 2;

#[test]
fn containers_of_a_pod_are_told_as_they_are() {
    let cri = Cri::start(Engine::Bookworm);
    let pod = cri.pod("pod-life", None, &[]).unwrap();
    let server = cri.run(&pod, "server", "while :; do sleep 1; done", 64 << 20);
    let talker = cri.run(&pod, "talker", "echo to-out; echo to-err >&2; exit 3", 64 << 20);

    let status = cri.ask("PodSandboxStatus", &text(1, &pod.id)).get(1);
    assert_eq!((status.number(3), status.get(2).text(1).as_str()), (0, "pod-life"), "the pod is ready");
    assert!(status.get(5).text(1).starts_with("10.99.0."), "its address is told");

    let ended = cri.wait_for_end(&talker);
    assert_eq!((ended.number(7), ended.text(10).as_str()), (3, "Error"), "exit code and reason");
    assert!(ended.number(5) > 0 && ended.number(6) >= ended.number(5), "start and end: {ended:?}");
    let log = fs::read_to_string(cri.0.path("logs/talker.log")).unwrap();
    let mut lines: Vec<_> = log.lines().map(|line| line.split_once(' ').unwrap().1).collect();
    lines.sort_unstable();
    assert_eq!(lines, ["stderr F to-err", "stdout F to-out"]);

    let states = || {
        let of_pod = bytes(1, &text(3, &pod.id));
        let mut states: Vec<_> =
            cri.ask("ListContainers", &of_pod).all(1).iter().map(|one| (one.get(3).text(1), one.number(6))).collect();
        states.sort();
        states
    };
    assert_eq!(states(), [("server".into(), RUNNING), ("talker".into(), EXITED)]);

    // A container restarts while the others go on.
    cri.ask("RemoveContainer", &text(1, &talker));
    let again = cri.run(&pod, "talker", "exit 0", 64 << 20);
    let ended = cri.wait_for_end(&again);
    assert_eq!((ended.number(7), ended.text(10).as_str()), (0, "Completed"));

    let statistics = || cri.ask("ContainerStats", &text(1, &server)).get(1);
    let (first, memory) = (statistics().get(2).get(2).number(1), statistics().get(3).get(2).number(1));
    assert!(first > 0, "processor time");
    assert!((1..64 << 20).contains(&memory), "{memory} bytes of memory");
    cri.exec(&server, "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; echo done");
    assert!(statistics().get(2).get(2).number(1) > first, "processor time grows");
    // Those that have ended are listed without numbers.
    let listed = cri.ask("ListContainerStats", &[]).all(1);
    assert_eq!(listed.iter().filter(|one| one.get(2).get(2).number(1) > 0).count(), 1, "statistics of what runs");

    cri.ask("UpdateContainerResources", &message(&[text(1, &server), bytes(2, &number(4, 96 << 20))]));
    assert_eq!(cri.exec(&server, "cat /sys/fs/cgroup/memory.max"), format!("{}\n", 96 << 20));

    let greedy = cri.run(&pod, "greedy", "tail /dev/zero", 32 << 20);
    let ended = cri.wait_for_end(&greedy);
    assert_eq!((ended.number(7), ended.text(10).as_str()), (137, "OOMKilled"));

    cri.ask("StopContainer", &message(&[text(1, &server), number(2, 2)]));
    let ended = cri.wait_for_end(&server);
    assert!([137, 143].contains(&ended.number(7)), "{ended:?}");

    cri.remove(&pod);
    assert!(cri.ask("ListPodSandbox", &[]).all(1).is_empty() && cri.ask("ListContainers", &[]).all(1).is_empty());
}

impl Cri {
    /// Starts a container with a log and a limit of memory; returns its identifier.
    pub fn run(&self, pod: &Pod, name: &str, script: &str, memory: u64) -> String {
        let command = message(&[text(3, "sh"), text(3, "-c"), text(3, script)]);
        let linux = bytes(1, &number(4, memory));
        let config = message(&[
            bytes(1, &text(1, name)),
            bytes(2, &text(1, IMAGE)),
            command,
            text(11, &format!("{name}.log")),
            bytes(15, &linux),
        ]);
        self.start_container(pod, &config)
    }

    /// Waits until a container has ended; returns its status.
    fn wait_for_end(&self, container: &str) -> Message {
        let status = || self.ask("ContainerStatus", &text(1, container)).get(1);
        wait_for("the container to end", || status().number(3) == EXITED);
        status()
    }
}
