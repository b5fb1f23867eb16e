//! Mounts of a container.

use serde_json::{Value, json};

use super::ContainerOptions;

/// Docker's size of /dev/shm.
const SHM_SIZE: &str = "size=65536k";

pub(super) fn mounts(options: &ContainerOptions, volumes: &[String]) -> Vec<Value> {
    let mut mounts = vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        mount("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "ro"]),
        mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", SHM_SIZE]),
    ];
    // The writable layer serves volumes as well; without one each gets a tmpfs.
    if options.read_only {
        let wanted = |path: &&String| path.starts_with('/') && !options.tmpfs.iter().any(|tmpfs| tmpfs.path == **path);
        let volumes = volumes.iter().filter(wanted);
        mounts.extend(volumes.map(|path| mount(path, "tmpfs", "tmpfs", &["nosuid", "nodev", "mode=755"])));
    }
    for tmpfs in &options.tmpfs {
        // A mount of the user's replaces a default one at the same place.
        let path = tmpfs.path.trim_end_matches('/');
        mounts.retain(|mount| mount.get("destination").and_then(Value::as_str) != Some(path));
        let options: Vec<&str> = tmpfs.options.iter().map(String::as_str).collect();
        mounts.push(mount(path, "tmpfs", "tmpfs", &options));
    }
    mounts
}

fn mount(destination: &str, kind: &str, source: &str, options: &[&str]) -> Value {
    json!({ "destination": destination, "type": kind, "source": source, "options": options })
}
