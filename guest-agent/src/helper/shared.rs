//! What containers share: the host's directory, and memory.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Component, Path};

use hull_protocol::{SHARE_TAG, SHARED_DIR, SHM_DIR};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use oci_spec::runtime::Spec;

use crate::failure::{Context, Failure};

const NONE: Option<&str> = None;

/// Makes a directory of the shared directory a container's root.
pub fn bind_root(path: &str, target: &Path) -> Result<(), Failure> {
    let plain = !path.contains('\0') && Path::new(path).components().all(|part| matches!(part, Component::Normal(_)));
    if !plain {
        return Err(Failure::invalid(format!("rootfs.shared_path {path:?} is not a plain relative path")));
    }
    mount_shared()?;
    let source = Path::new(SHARED_DIR).join(path);
    mount(Some(&source), target, NONE, MsFlags::MS_BIND | MsFlags::MS_REC, NONE).map_err(|error| match error {
        Errno::ENOENT | Errno::ENOTDIR => Failure::invalid(format!("the host shares no directory {path}")),
        error => Failure::internal(format!("bind the shared directory {path}: {error}")),
    })
}

/// Mounts the memory that containers share, if a mount of the container wants it and it isn't there yet. Its size is then the
/// kernel's default of half the memory: nobody has said another one.
pub fn provide_memory(spec: &Spec) -> Result<(), Failure> {
    let wants = |mount: &oci_spec::runtime::Mount| mount.source().as_deref().is_some_and(|s| s == Path::new(SHM_DIR));
    if spec.mounts().iter().flatten().any(wants) { mount_memory(0) } else { Ok(()) }
}

/// Mounts the memory that containers share, or gives what is mounted another size. 0: the kernel's default, and what is mounted
/// stays as it is.
pub fn mount_memory(size_bytes: u64) -> Result<(), Failure> {
    let mounted = is_mounted(SHM_DIR);
    if mounted && size_bytes == 0 {
        return Ok(());
    }
    let size = if size_bytes == 0 { String::new() } else { format!(",size={size_bytes}") };
    let safe = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let flags = if mounted { safe | MsFlags::MS_REMOUNT } else { safe };
    make_directory(SHM_DIR)?;
    let options = format!("mode=1777{size}");
    mount(Some("shm"), SHM_DIR, Some("tmpfs"), flags, Some(options.as_str())).context("mount the shared memory")
}

/// Has the kernel forget the names and inodes of shared files that nobody uses. As long as it knows them the host keeps them
/// open, and with them file systems that it wants to unmount.
pub fn forget() {
    const NAMES_AND_INODES: &str = "2";
    if let Err(error) = fs::write("/proc/sys/vm/drop_caches", NAMES_AND_INODES) {
        eprintln!("hull-agent: forget shared files: {error}");
    }
}

/// Mounts the host's directory at the first need.
pub fn mount_shared() -> Result<(), Failure> {
    if is_mounted(SHARED_DIR) {
        return Ok(());
    }
    make_directory(SHARED_DIR)?;
    mount(Some(SHARE_TAG), SHARED_DIR, Some("virtiofs"), MsFlags::empty(), NONE).map_err(|error| match error {
        Errno::EINVAL | Errno::ENODEV | Errno::ENOENT => Failure::invalid("the host shares no directory"),
        error => Failure::internal(format!("mount the shared directory: {error}")),
    })
}

fn make_directory(path: &str) -> Result<(), Failure> {
    DirBuilder::new().recursive(true).mode(0o711).create(path).context(format!("create {path}"))
}

/// Something else than its parent's file system is there.
fn is_mounted(path: &str) -> bool {
    let device = |path: &Path| fs::metadata(path).map(|metadata| metadata.dev()).ok();
    let path = Path::new(path);
    device(path).is_some_and(|own| path.parent().and_then(device) != Some(own))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_lead_elsewhere_are_refused() {
        for path in ["/etc", "../x", "a/../b", "a\0b", "./a"] {
            let failure = bind_root(path, Path::new("/nonexistent")).unwrap_err();
            assert_eq!(failure.code, ttrpc::Code::INVALID_ARGUMENT, "{path:?}");
        }
    }

    #[test]
    fn mount_points_are_told_from_directories() {
        assert!(is_mounted("/proc") && !is_mounted("/proc/self") && !is_mounted("/nonexistent"));
    }
}
