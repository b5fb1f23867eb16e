//! Where the host's cgroups are: version 1 has a hierarchy for each controller, or for some together; version 2 has one.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Controllers of version 1 that count, or bind a pod to a part of the host.
const CONTROLLERS_V1: [&str; 7] = ["blkio", "cpu", "cpuacct", "cpuset", "hugetlb", "memory", "pids"];
/// Those of version 2, where a cgroup has what the one above hands down to it.
const CONTROLLERS_V2: [&str; 5] = ["cpu", "cpuset", "io", "memory", "pids"];
/// In version 1 nobody can enter before these are set.
const CPUSET_FILES: [&str; 2] = ["cpuset.cpus", "cpuset.mems"];

/// One mounted hierarchy.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Hierarchy {
    /// Where it is mounted.
    pub mount: PathBuf,
    /// What is mounted there of it: not `/` in a container.
    root: PathBuf,
    /// Those of its controllers in version 1 that count; none for version 2.
    controllers: Vec<String>,
}

/// The hierarchies of this host that count something.
pub(super) fn of_this_host() -> io::Result<Vec<Hierarchy>> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let has_controllers =
        |mount: &Path| fs::read_to_string(mount.join("cgroup.controllers")).is_ok_and(|text| !text.trim().is_empty());
    Ok(choose(parse(&mounts), has_controllers))
}

/// Those of version 1, and version 2 if it has controllers itself, or if there is no other.
fn choose(found: Vec<Hierarchy>, has_controllers: impl Fn(&Path) -> bool) -> Vec<Hierarchy> {
    let has_v1 = found.iter().any(|one| !one.controllers.is_empty());
    let wanted = |one: &Hierarchy| !one.controllers.is_empty() || !has_v1 || has_controllers(&one.mount);
    let mut chosen: Vec<Hierarchy> = Vec::new();
    for one in found.into_iter().filter(wanted) {
        // It may be mounted in other places too.
        if chosen.iter().all(|other| other.controllers != one.controllers) {
            chosen.push(one);
        }
    }
    chosen
}

/// Mounts of cgroups that count something, in a list in the form of `/proc/PID/mountinfo` (proc_pid_mountinfo(5)).
fn parse(mountinfo: &str) -> Vec<Hierarchy> {
    mountinfo.lines().filter_map(parse_line).collect()
}

fn parse_line(line: &str) -> Option<Hierarchy> {
    let (place, kind) = line.split_once(" - ")?;
    let mut place = place.split(' ').skip(3);
    let (root, mount) = (unescape(place.next()?), unescape(place.next()?));
    let mut kind = kind.split(' ');
    let (kind, options) = (kind.next()?, kind.nth(1)?);
    let controllers = match kind {
        "cgroup2" => Vec::new(),
        "cgroup" => {
            let counting = options.split(',').filter(|word| CONTROLLERS_V1.contains(word));
            Some(counting.map(str::to_owned).collect::<Vec<_>>()).filter(|counting| !counting.is_empty())?
        }
        _ => return None,
    };
    Some(Hierarchy { mount: mount.into(), root: root.into(), controllers })
}

/// Blanks and the like are written as octal numbers.
fn unescape(text: &str) -> String {
    text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

impl Hierarchy {
    /// Lets what is below `directory` have the controllers that it has itself, as far as that is possible: a cgroup of version 2
    /// with processes in it can't.
    pub fn hand_down(&self, directory: &Path) {
        if !self.controllers.is_empty() {
            return;
        }
        let words = |file: &str| fs::read_to_string(directory.join(file)).unwrap_or_default();
        let (own, handed_down) = (words("cgroup.controllers"), words("cgroup.subtree_control"));
        let has = |list: &str, name: &str| list.split_whitespace().any(|word| word == name);
        for name in CONTROLLERS_V2.iter().filter(|name| has(&own, name) && !has(&handed_down, name)) {
            let _ = fs::write(directory.join("cgroup.subtree_control"), format!("+{name}"));
        }
    }

    /// Gives a new directory what it must have before processes can enter.
    pub fn inherit(&self, directory: &Path) {
        if !self.controllers.iter().any(|name| name == "cpuset") {
            return;
        }
        let Some(above) = directory.parent() else { return };
        for file in CPUSET_FILES {
            let is_empty = fs::read_to_string(directory.join(file)).is_ok_and(|text| text.trim().is_empty());
            if is_empty && let Ok(text) = fs::read_to_string(above.join(file)) {
                // Entering says it if this was not possible.
                let _ = fs::write(directory.join(file), text);
            }
        }
    }

    /// The directory that a list in the form of `/proc/PID/cgroup` names for this hierarchy (cgroups(7)); the top, if it names
    /// none that can be seen here.
    pub fn place_in(&self, list: &str) -> PathBuf {
        let path = list.lines().find_map(|line| {
            let mut parts = line.splitn(3, ':').skip(1);
            // Version 2 has no names.
            let wanted = self.controllers.first().map_or("", String::as_str);
            let is_this = parts.next()?.split(',').any(|name| name == wanted);
            is_this.then_some(parts.next()?)
        });
        let inside = path.and_then(|path| Path::new(path).strip_prefix(&self.root).ok());
        inside.map_or_else(|| self.mount.clone(), |inside| self.mount.join(inside))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const V2: &str =
        "24 1 0:22 / /sys rw - sysfs sysfs rw\n29 24 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw\n";
    const V1: &str = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
        32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
        33 31 0:30 /docker/a /sys/fs/cgroup/my\\040memory rw - cgroup cgroup rw,memory,clone_children\n\
        34 31 0:31 / /sys/fs/cgroup/devices rw - cgroup cgroup rw,devices\n\
        35 31 0:32 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n\
        36 31 0:33 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
        37 1 0:30 / /mnt rw - cgroup cgroup rw,memory\n";

    fn mounts(chosen: &[Hierarchy]) -> Vec<&str> {
        chosen.iter().map(|one| one.mount.to_str().unwrap()).collect()
    }

    #[test]
    fn the_one_hierarchy_or_those_that_count_are_chosen() {
        assert_eq!(mounts(&choose(parse(V2), |_| true)), ["/sys/fs/cgroup"]);
        let v1 = ["/sys/fs/cgroup/cpu,cpuacct", "/sys/fs/cgroup/my memory"];
        assert_eq!(mounts(&choose(parse(V1), |_| false)), v1);
        // Both have controllers.
        assert_eq!(mounts(&choose(parse(V1), |_| true)).last().unwrap(), &"/sys/fs/cgroup/unified");
        assert!(choose(parse("nonsense\n- cgroup\n1 2 3 - cgroup2 x\n"), |_| true).is_empty());
    }

    #[test]
    fn a_process_has_a_place_in_each() {
        let list = "3:cpu,cpuacct:/a\n2:memory:/docker/a/b\n1:name=systemd:/s\n0::/u\n";
        let places: Vec<_> = choose(parse(V1), |_| true).iter().map(|one| one.place_in(list)).collect();
        let expected = ["/sys/fs/cgroup/cpu,cpuacct/a", "/sys/fs/cgroup/my memory/b", "/sys/fs/cgroup/unified/u"];
        assert_eq!(places, expected.map(PathBuf::from));
        let elsewhere = choose(parse(V1), |_| false)[1].place_in("2:memory:/other\n");
        assert_eq!(elsewhere, PathBuf::from("/sys/fs/cgroup/my memory"));
    }
}
