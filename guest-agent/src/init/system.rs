//! Settings of the guest's kernel and of the agent's own process.

use std::fs;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::sys;

/// Kernel settings, each with the reason.
const SYSCTLS: [(&str, &str); 5] = [
    // Docker gives these two to its containers: ports below 1024 and `ping` without capabilities. A container here
    // usually has the guest's own network namespace.
    ("net/ipv4/ip_unprivileged_port_start", "0"),
    ("net/ipv4/ping_group_range", "0 2147483647"),
    // Elasticsearch and others refuse to start below this, and nobody can reach into the guest to raise it.
    ("vm/max_map_count", "262144"),
    // Programs reserve more than they use. On a host with much memory that works, and the container's limit counts what is
    // used; the default heuristic would refuse what is larger than this small machine.
    ("vm/overcommit_memory", "1"),
    // Development servers run out of the default of 128.
    ("fs/inotify/max_user_instances", "1024"),
];

/// Highest number of descriptors a process may ask for (`fs.nr_open`).
const MAX_DESCRIPTORS: u64 = 1 << 20;

/// Descriptors a container's process gets unless its specification says otherwise. Programs that loop over all
/// descriptors take minutes with a million.
pub const DEFAULT_DESCRIPTORS: u64 = 1024;

/// Applies everything. What fails is told on the console and is no reason to stop: the kernel may lack it.
pub fn set_up() {
    for (key, value) in SYSCTLS {
        report(&format!("sysctl {key}"), fs::write(format!("/proc/sys/{key}"), value));
    }
    report("hostname", nix::unistd::sethostname("hull"));
    report("loopback interface", sys::interface_up("lo"));
    // A container that uses up the memory must not take the agent with it.
    report("oom_score_adj", fs::write("/proc/self/oom_score_adj", "-1000"));
    report("RLIMIT_NOFILE", setrlimit(Resource::RLIMIT_NOFILE, MAX_DESCRIPTORS, MAX_DESCRIPTORS));
    // The default follows the guest's memory (about 250 in 64 MiB); the pids controller is the limit that counts.
    let unlimited = libc::RLIM_INFINITY;
    report("RLIMIT_NPROC", setrlimit(Resource::RLIMIT_NPROC, unlimited, unlimited));
}

/// Sets a container's default soft limit of descriptors, in the process that becomes the container's.
pub fn default_limits() {
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        report("RLIMIT_NOFILE", setrlimit(Resource::RLIMIT_NOFILE, DEFAULT_DESCRIPTORS.min(hard), hard));
    }
}

fn report<E: std::fmt::Display>(what: &str, result: Result<(), E>) {
    if let Err(error) = result {
        eprintln!("hull-agent: {what}: {error}");
    }
}
