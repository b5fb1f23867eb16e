//! Where on the host a VM is counted: the cgroup that its specification names.

use std::fs;
use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::harness::{Containerd, HULL};
use crate::harness::wait_for;

const ROOT: &str = "/sys/fs/cgroup";

/// The cgroup of a process, without the slash at the beginning.
fn of_process(pid: i32) -> String {
    let list = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    list.trim().strip_prefix("0::/").expect("cgroup v2").to_owned()
}

fn places(containerd: &Containerd) -> (String, String) {
    (of_process(containerd.shims()[0]), of_process(containerd.monitors()[0]))
}

fn memory(cgroup: &Path) -> u64 {
    fs::read_to_string(cgroup.join("memory.current")).unwrap().trim().parse().unwrap()
}

#[test]
fn a_vm_and_its_shim_are_counted_in_the_container_s_cgroup_until_they_end_however_they_do() {
    let containerd = Containerd::start();
    let id = containerd.detached(HULL, &[], "sleep 600");
    let named = format!("default/{id}");
    assert_eq!(places(&containerd), (named.clone(), named.clone()));
    let directory = Path::new(ROOT).join(named);
    // A guest that has booted has touched more than this.
    assert!(memory(&directory) > 20 << 20, "{} bytes", memory(&directory));
    containerd.remove(&id);
    assert!(!directory.exists());

    // systemd's form.
    let slices = "hulltest.slice/hulltest-pod1.slice";
    let named = ["--cgroup", "hulltest-pod1.slice:cri-containerd:c1"];
    let id = containerd.detached(HULL, &named, "sleep 600");
    let scope = format!("{slices}/cri-containerd-c1.scope");
    assert_eq!(places(&containerd), (scope.clone(), scope.clone()));
    for pid in [containerd.shims()[0], containerd.monitors()[0]] {
        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    }
    wait_for("the task to go", || containerd.task(&id).is_none());
    containerd.ctr(["container", "rm", &id]).ok();
    wait_for("the scope to go", || !Path::new(ROOT).join(&scope).exists());
    for slice in Path::new(slices).ancestors().filter(|slice| !slice.as_os_str().is_empty()) {
        fs::remove_dir(Path::new(ROOT).join(slice)).unwrap();
    }
}

#[test]
fn the_configuration_says_what_is_counted_there() {
    let containerd = Containerd::start();
    let home = of_process(i32::try_from(std::process::id()).unwrap());
    let file = containerd.path("hull.toml");
    let run = |value: &str| {
        fs::write(&file, format!("sandbox_cgroup = \"{value}\"\n")).unwrap();
        let id = containerd.detached(HULL, &["--runtime-config-path", file.to_str().unwrap()], "sleep 600");
        let places = places(&containerd);
        containerd.remove(&id);
        assert!(!Path::new(ROOT).join("default").join(&id).exists());
        (id, places)
    };
    let (id, seen) = run("vm");
    assert_eq!(seen, (home.clone(), format!("default/{id}")));
    let (_, seen) = run("none");
    assert_eq!(seen, (home.clone(), home));

    let refused = containerd.run(HULL, &["--cgroup", "/a/../b"], &["true"]);
    assert!(refused.code != Some(0) && refused.stderr.contains("/a/../b"), "{refused:?}");
    containerd.assert_nothing_left();
}

#[test]
fn a_limit_of_the_cgroup_above_holds_for_the_vm_and_its_container_ends_with_137() {
    let containerd = Containerd::start();
    let pod = PathBuf::from(ROOT).join("hulltestpod");
    fs::create_dir_all(&pod).unwrap();
    let _ = fs::write(Path::new(ROOT).join("cgroup.subtree_control"), "+memory");
    fs::write(pod.join("memory.max"), (150 << 20).to_string()).unwrap();
    let mount = "type=tmpfs,src=tmpfs,dst=/big,options=size=400m";
    let script = "dd if=/dev/zero of=/big/f bs=1M count=300; sleep 600";
    let id = containerd.detached(HULL, &["--cgroup", "/hulltestpod/c", "--mount", mount], script);
    containerd.wait_for_status(&id, "STOPPED");
    assert_eq!(containerd.delete_task(&id), Some(137));
    containerd.ctr(["container", "rm", &id]).ok();
    containerd.assert_nothing_left();
    assert!(!pod.join("c").exists());
    fs::remove_dir(pod).unwrap();
}
