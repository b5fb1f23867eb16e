//! The guest's own file systems.

use std::fs::{self, DirBuilder, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::DirBuilderExt;

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};
use nix::unistd::{chdir, chroot, dup2_stderr, dup2_stdin, dup2_stdout};

use crate::layout;

/// Source, target, type, flags, options; in the order in which they are mounted.
const MOUNTS: [(&str, &str, MsFlags, &str); 9] = [
    ("proc", "/proc", SAFE, ""),
    ("sysfs", "/sys", SAFE, ""),
    ("devtmpfs", "/dev", MsFlags::MS_NOSUID, "mode=755"),
    ("devpts", "/dev/pts", MsFlags::MS_NOSUID, "gid=5,mode=620,ptmxmode=666"),
    ("tmpfs", "/dev/shm", SAFE, "mode=1777"),
    ("mqueue", "/dev/mqueue", SAFE, ""),
    ("tmpfs", "/run", MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV), "mode=755"),
    ("tmpfs", "/tmp", MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV), "mode=1777"),
    ("cgroup2", "/sys/fs/cgroup", SAFE, "nsdelegate"),
];

const SAFE: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV).union(MsFlags::MS_NOEXEC);

const NONE: Option<&str> = None;

/// Leaves the initramfs root and mounts what Linux programs expect.
pub fn set_up() -> Result<()> {
    leave_initramfs_root()?;
    for (kind, target, flags, options) in MOUNTS {
        // A directory that exists (or is made by the file system above it) is fine; mount says what is wrong otherwise.
        let _ = DirBuilder::new().recursive(true).mode(0o755).create(target);
        mount(Some(kind), target, Some(kind), flags, Some(options))
            .with_context(|| format!("mount {kind} on {target}"))?;
    }
    // The agent's binary becomes reachable through /proc/PID/exe of the processes that it starts in containers:
    // read-only, so that nobody writes to it.
    mount(NONE, "/", NONE, MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY, NONE)
        .context("remount / read-only")?;
    for directory in [layout::STATE, layout::IMAGES, layout::CONSOLES] {
        DirBuilder::new()
            .recursive(true)
            // The root of a user namespace is nobody here and has to pass on the way to its root directory.
            .mode(0o711)
            .create(directory)
            .with_context(|| format!("create {directory}"))?;
    }
    Ok(())
}

/// `pivot_root` doesn't work on the initramfs root, and containers need it. So the root becomes a bind mount of itself.
fn leave_initramfs_root() -> Result<()> {
    fs::create_dir_all("/mnt").context("create /mnt")?;
    mount(Some("/"), "/mnt", NONE, MsFlags::MS_BIND, NONE).context("bind / to /mnt")?;
    chdir("/mnt").context("enter /mnt")?;
    mount(Some("."), "/", NONE, MsFlags::MS_MOVE, NONE).context("move /mnt to /")?;
    chroot(".").context("chroot")?;
    chdir("/").context("enter the new root")
}

/// Sends the agent's own messages to the console, where the host reads them beside the kernel's. The kernel may have
/// started the agent with its standard descriptors closed: without a console they become /dev/null, so that no file of
/// the agent gets one of their numbers.
pub fn use_console() {
    let open = |path| OpenOptions::new().read(true).write(true).open(path);
    let Ok(console) = open("/dev/console").or_else(|_| open("/dev/null")) else {
        return;
    };
    let _ = dup2_stdin(&console);
    let _ = dup2_stdout(&console);
    let _ = dup2_stderr(&console);
    if console.as_raw_fd() <= 2 {
        // It is one of the three itself and has to stay open.
        std::mem::forget(console);
    }
}
