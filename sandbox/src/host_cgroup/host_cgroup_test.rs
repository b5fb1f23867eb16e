use std::io::Write as _;
use std::process::Command;

use super::*;

fn v2(mount: &Path, path: &str) -> HostCgroup {
    let mut hierarchy = Hierarchy::default();
    hierarchy.mount = mount.into();
    HostCgroup { hierarchies: vec![hierarchy], path: path.into() }
}

#[test]
fn all_levels_are_made_and_only_the_last_goes() {
    let top = tempfile::tempdir().unwrap();
    fs::write(top.path().join("cgroup.controllers"), "cpuset cpu io memory pids rdma\n").unwrap();
    fs::write(top.path().join("cgroup.subtree_control"), "cpuset cpu io memory\n").unwrap();
    let cgroup = v2(top.path(), "pods/pod1/c").of_its_own("own");
    cgroup.create().unwrap();
    assert_eq!(v2(top.path(), "pods/pod1/c").of_its_own("own"), v2(top.path(), "pods/pod1/c/own"));
    cgroup.create().unwrap();
    // What was missing, and no more.
    assert_eq!(fs::read_to_string(top.path().join("cgroup.subtree_control")).unwrap(), "+pids");
    assert!(top.path().join("pods/pod1/c").is_dir());
    cgroup.remove().unwrap();
    assert!(top.path().join("pods/pod1").is_dir() && !top.path().join("pods/pod1/c").exists());
    cgroup.remove().unwrap();
}

#[test]
fn what_is_in_the_way_is_named() {
    let top = tempfile::tempdir().unwrap();
    fs::write(top.path().join("pods"), "").unwrap();
    let error = v2(top.path(), "pods/c").create().unwrap_err();
    assert!(error.to_string().ends_with("pods/c"), "{error}");
    fs::remove_file(top.path().join("pods")).unwrap();
    let cgroup = v2(top.path(), "pods/c");
    cgroup.create().unwrap();
    assert!(cgroup.enter(1).is_err(), "it has no file for processes");
    fs::create_dir(top.path().join("pods/c/other")).unwrap();
    assert!(cgroup.remove().is_err(), "it is still used");
}

/// With the kernel's own, of whichever version this host has.
#[test]
fn a_process_enters_leaves_and_the_cgroup_goes() {
    let name = format!("hull-test-{}", std::process::id());
    let located = HostCgroup::locate(&format!("/{name}"), "own").unwrap();
    let Some(cgroup) = located.filter(|cgroup| cgroup.create().is_ok()) else {
        let _ = writeln!(io::stderr(), "SKIPPED: this host lets nobody make cgroups here");
        return;
    };
    let mut child = Command::new("sleep").arg("600").spawn().unwrap();
    let list = || fs::read_to_string(format!("/proc/{}/cgroup", child.id())).unwrap();
    let (before, places) = (list(), cgroup.places(child.id()));
    let entered = cgroup.enter(child.id());
    let (inside, held) = (list(), cgroup.remove());
    cgroup.leave(child.id(), &places);
    let after = list();
    child.kill().unwrap();
    child.wait().unwrap();
    let too_late = cgroup.enter(child.id());
    cgroup.remove().unwrap();
    too_late.unwrap();
    entered.unwrap();
    assert_eq!(inside.matches(&format!("/{name}\n")).count(), cgroup.hierarchies.len(), "{inside}");
    assert!(held.is_err(), "it was removed with a process in it");
    assert_eq!(after, before);
    assert!(cgroup.directories().all(|directory| !directory.exists()));
}
