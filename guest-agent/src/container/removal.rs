//! Takes a container apart.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};

use crate::failure::{Context, Failure};
use crate::helper::device_nodes;
use crate::layout::{self, Bundle};
use crate::process::Process;
use crate::{cgroup, volume};

/// Longest wait for killed processes to go. One that hangs in the kernel (a dead network file system) may take for ever.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// Kills the container's processes and waits for the first one's end.
pub async fn kill(id: &str, init: &Process) -> Result<(), Failure> {
    cgroup::kill_all(&cgroup::path(id), KILL_TIMEOUT).await?;
    tokio::time::timeout(KILL_TIMEOUT, init.ended()).await.context("wait for the container's end")?;
    Ok(())
}

/// Removes everything of a container, whatever of it exists.
pub async fn remove(id: &str) -> Result<(), Failure> {
    let cgroup = cgroup::path(id);
    cgroup::kill_all(&cgroup, KILL_TIMEOUT).await?;
    cgroup::remove(&cgroup).context("remove the cgroup")?;

    let bundle = Bundle::new(id);
    for mount in [bundle.rootfs(), bundle.upper()] {
        unmount(&mount)?;
        // Never recursive: if something were still mounted here, it would be emptied.
        gone(fs::remove_dir(&mount)).context(format!("remove {}", mount.display()))?;
    }
    volume::remove(id)?;
    gone(device_nodes::remove(&layout::devices(id))).context("remove devices")?;
    gone(fs::remove_dir_all(bundle.path())).context("remove the bundle")?;
    gone(fs::remove_dir_all(Path::new(layout::STATE).join(id))).context("remove the state")
}

/// Unmounts an image. It may be in use by a process that is about to end, so that it is detached.
pub fn unmount_image(serial: &str) {
    let target = Path::new(layout::IMAGES).join(serial);
    if let Err(failure) = unmount(&target) {
        eprintln!("hull-agent: {failure}");
        return;
    }
    let _ = fs::remove_dir(&target);
}

fn unmount(target: &Path) -> Result<(), Failure> {
    match umount2(target, MntFlags::MNT_DETACH) {
        // Not there, or no mount.
        Ok(()) | Err(Errno::ENOENT | Errno::EINVAL) => Ok(()),
        Err(error) => Err(error).context(format!("unmount {}", target.display())),
    }
}

fn gone(result: std::io::Result<()>) -> std::io::Result<()> {
    match result {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
