//! VMs that follow the limits of their containers: as these come, go, and change.

use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::grpc::{self, Answer};
use super::harness::{Containerd, HULL};
use super::message::{bytes, message, text};
use super::pods::{member_flags, member_with, sandbox_with};
use crate::harness::wait_for;

/// A pod without limits gets this much; it is less than what its containers come to.
const CONFIGURATION: &str = "default_memory_mib = 200\nmax_memory_mib = 1000\nmax_vcpus = 3\n";

/// What the VM of a container has: processors in use and memory in MiB, of which the kernel's own part is not counted.
fn size(containerd: &Containerd, id: &str) -> (u32, u32) {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let exec_id = format!("size{}", NEXT.fetch_add(1, Ordering::Relaxed));
    let script = "nproc; awk '/^MemTotal/ {print int($2 / 1024)}' /proc/meminfo";
    let seen = containerd.ctr(["task", "exec", "--exec-id", &exec_id, id, "sh", "-c", script]).ok();
    let mut numbers = seen.lines().map(|line| line.parse().unwrap());
    (numbers.next().unwrap(), numbers.next().unwrap())
}

fn limits(mib: u32, cpus: &'static str) -> [String; 4] {
    ["--memory-limit".into(), (u64::from(mib) << 20).to_string(), "--cpus".into(), cpus.into()]
}

fn pod(containerd: &Containerd) -> String {
    let file = containerd.path("hull.toml");
    fs::write(&file, CONFIGURATION).unwrap();
    sandbox_with(containerd, &["--runtime-config-path", file.to_str().unwrap()])
}

fn member(containerd: &Containerd, pod: &str, mib: u32, cpus: &'static str, script: &str) -> String {
    let limits = limits(mib, cpus);
    let mount = ["--mount", "type=tmpfs,src=tmpfs,dst=/big,options=size=90%"];
    let flags: Vec<_> = limits.iter().map(String::as_str).chain(mount).collect();
    member_with(containerd, pod, &flags, script)
}

/// What `ctr` has no word for: new limits of a task.
fn update(containerd: &Containerd, id: &str, resources: &str) -> Answer {
    let any =
        message(&[text(1, "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources"), text(2, resources)]);
    let request = message(&[text(1, id), bytes(2, &any)]);
    grpc::call(containerd, "default", "containerd.services.tasks.v1.Tasks/Update", &request)
}

fn memory_limit(mib: u64) -> String {
    format!(r#"{{"memory":{{"limit":{}}}}}"#, mib << 20)
}

#[test]
fn the_vm_of_a_pod_grows_for_its_containers_and_shrinks_after_them() {
    let containerd = Containerd::start();
    let pod = pod(&containerd);
    // 64 + 1 + 64 MiB are less than what it has.
    let first = member(&containerd, &pod, 64, "0.5", "sleep 600");
    let (cpus, base) = size(&containerd, &first);
    assert!(cpus == 1 && (120..200).contains(&base), "{cpus} processors, {base} MiB");

    // 364 + 5 + 64 MiB: 233 more. It can use its limit.
    let fill = "dd if=/dev/zero of=/big/f bs=1M count=280 2>/dev/null && echo filled >/big/done; sleep 600";
    let second = member(&containerd, &pod, 300, "1.5", fill);
    assert_eq!(size(&containerd, &first), (2, base + 234));
    wait_for("the second container to use its memory", || {
        containerd.ctr(["task", "exec", "--exec-id", "look", &second, "test", "-e", "/big/done"]).code == Some(0)
    });

    // One that can't be made leaves nothing behind, not even its memory.
    let flags = [limits(300, "1").as_slice(), &member_flags(&pod)].concat();
    let flags: Vec<_> = flags.iter().map(String::as_str).collect();
    let failed = containerd.run(HULL, &flags, &["no-such-program"]);
    assert!(failed.code != Some(0) && failed.stderr.contains("no-such-program"), "{failed:?}");
    // Some blocks may hold what the guest's kernel can't move.
    let shrunk_to = |cpus, memory| {
        let (now_cpus, now) = size(&containerd, &first);
        now_cpus == cpus && (memory..memory + 64).contains(&now)
    };
    wait_for("the memory of the failed one to go", || shrunk_to(2, base + 234));

    containerd.remove(&second);
    wait_for("the VM to shrink", || shrunk_to(1, base));
    containerd.remove(&first);
    containerd.remove(&pod);
}

#[test]
fn limits_beyond_what_a_vm_can_have_are_no_failure_unless_somebody_raises_them_so_far() {
    let containerd = Containerd::start();
    let pod = pod(&containerd);
    // As on a small node.
    let id = member(&containerd, &pod, 4096, "16", "sleep 600");
    let (cpus, memory) = size(&containerd, &id);
    assert!(cpus == 3 && (900..1000).contains(&memory), "{cpus} processors, {memory} MiB");
    assert!(containerd.log().contains("max_memory_mib"), "a warning that names the key");
    let refused = update(&containerd, &id, &memory_limit(5000)).unwrap_err();
    assert!(refused.contains("max_memory_mib") && refused.contains("1000 MiB"), "{refused}");
    let limit = || {
        let metrics = containerd.ctr(["task", "metrics", &id]).ok();
        let line = metrics.lines().find(|line| line.starts_with("memory.usage_limit")).unwrap();
        line.split_whitespace().last().unwrap().parse::<u64>().unwrap()
    };
    assert_eq!(limit(), 4096 << 20, "it is as it was");
    // What does not raise the limit is none of the VM's business.
    update(&containerd, &id, &memory_limit(2000)).unwrap();
    assert_eq!(limit(), 2000 << 20);
    containerd.remove(&id);
    containerd.remove(&pod);
}

#[test]
fn a_vm_follows_the_limits_of_a_container_that_is_alone_in_it() {
    let containerd = Containerd::start();
    let id = containerd.detached(HULL, &["--memory-limit", "67108864"], "sleep 600");
    let (_, base) = size(&containerd, &id);
    assert!(base < 129, "{base} MiB");
    update(&containerd, &id, &memory_limit(256)).unwrap();
    // 256 + 4 + 64 MiB instead of 64 + 1 + 64.
    assert_eq!(size(&containerd, &id).1, base + 195 + 1);
    update(&containerd, &id, &memory_limit(32)).unwrap();
    wait_for("the VM to shrink", || (base..base + 64).contains(&size(&containerd, &id).1));
    containerd.remove(&id);
}
