//! Pods: one VM for the sandbox and all of its containers, as the annotations of containerd's CRI group them.

use super::harness::{Containerd, HULL, scenarios};

scenarios! {
    the_containers_of_a_pod_share_one_vm_and_end_one_by_one,
    a_container_without_its_pod_is_refused,
    the_death_of_a_pod_s_vm_ends_all_of_its_containers,
}

const KIND: &str = "io.kubernetes.cri.container-type";
const SANDBOX: &str = "io.kubernetes.cri.sandbox-id";

/// The annotations of a container of the pod `sandbox`.
pub fn member_flags(sandbox: &str) -> [String; 4] {
    ["--annotation".into(), format!("{KIND}=container"), "--annotation".into(), format!("{SANDBOX}={sandbox}")]
}

/// Starts a pod without containers.
pub fn sandbox_with(containerd: &Containerd, flags: &[&str]) -> String {
    let kind = format!("{KIND}=sandbox");
    containerd.detached(HULL, &[flags, &["--annotation", &kind]].concat(), "this is never run")
}

/// Starts a container of the pod `sandbox`.
pub fn member_with(containerd: &Containerd, sandbox: &str, flags: &[&str], script: &str) -> String {
    let own = member_flags(sandbox);
    let own: Vec<_> = own.iter().map(String::as_str).collect();
    containerd.detached(HULL, &[flags, &own].concat(), script)
}

fn member(containerd: &Containerd, sandbox: &str, script: &str) -> String {
    member_with(containerd, sandbox, &[], script)
}

fn sandbox(containerd: &Containerd) -> String {
    sandbox_with(containerd, &[])
}

fn the_containers_of_a_pod_share_one_vm_and_end_one_by_one(containerd: &Containerd) {
    let pod = sandbox(containerd);
    let (one, two) = (member(containerd, &pod, "sleep 600"), member(containerd, &pod, "sleep 600"));
    assert_eq!((containerd.shims().len(), containerd.monitors().len()), (1, 1));
    for id in [&pod, &one, &two] {
        assert_eq!(containerd.task(id).unwrap(), (containerd.monitors()[0], "RUNNING".into()), "{id}");
        assert_eq!(containerd.listed(id), containerd.monitors(), "{id}");
    }
    let exec = |id: &str| containerd.ctr(["task", "exec", "--exec-id", "e", id, "cat", "/proc/1/cmdline"]);
    assert!(exec(&one).ok().starts_with("sleep"), "each has its own processes");
    assert_ne!(exec(&pod).code, Some(0), "the sandbox has none");
    assert!(containerd.ctr(["task", "metrics", &pod]).ok().contains("memory"));
    containerd.remove(&one);
    assert_eq!(containerd.task(&two).unwrap().1, "RUNNING");
    containerd.remove(&two);
    assert_eq!(containerd.monitors().len(), 1, "the pod stays until its sandbox goes");
    containerd.remove(&pod);
    containerd.assert_nothing_left();
}

fn a_container_without_its_pod_is_refused(containerd: &Containerd) {
    let (kind, sandbox) = (format!("{KIND}=container"), format!("{SANDBOX}=gone"));
    let run = containerd.run(HULL, &["--annotation", &kind, "--annotation", &sandbox], &["true"]);
    assert_ne!(run.code, Some(0));
    assert!(run.stderr.contains("sandbox gone does not run"), "{run:?}");
    containerd.assert_nothing_left();
}

fn the_death_of_a_pod_s_vm_ends_all_of_its_containers(containerd: &Containerd) {
    use nix::sys::signal::{Signal, kill};
    let pod = sandbox(containerd);
    let one = member(containerd, &pod, "sleep 600");
    kill(nix::unistd::Pid::from_raw(containerd.monitors()[0]), Signal::SIGKILL).unwrap();
    containerd.wait_for_status(&one, "STOPPED");
    containerd.wait_for_status(&pod, "STOPPED");
    assert_eq!(containerd.delete_task(&one), Some(137));
    containerd.ctr(["container", "rm", &one]).ok();
    containerd.remove(&pod);
    containerd.assert_nothing_left();
}
