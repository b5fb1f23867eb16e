//! The host's directory that a VM shares, in which the root file systems and bind mounts of its containers appear.
//!
//! | path below the sandbox's runtime directory | what |
//! |---|---|
//! | `shared` | a small tmpfs in which the host mounts |
//! | `shared/ID/rootfs` | a container's root file system |
//! | `shared/ID/mounts/N` | what it binds from the host |
//! | `export` | the same tree as the guest gets it: a slave mount |
//!
//! The guest is not trusted, and it writes into the file systems that are mounted here. But directories in which the host
//! mounts must not be the guest's to rename or to replace by links. So the tmpfs itself is read-only in `export`, into which
//! the kernel propagates every mount that is made and undone in `shared`. Nothing propagates back, and nothing to the
//! sources of bind mounts: both ends are slaves.
//!
//! All of it goes away when the two are detached, whatever is mounted below: see [`remove`].

mod attributes;
mod loop_device;
mod mounts;
mod options;

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use thiserror::Error;

pub use mounts::{BindMount, BundleRoot, ContainerMounts, RootMount};
pub(crate) use mounts::{MOUNTS, ROOTFS};

const SHARED: &str = "shared";
const EXPORT: &str = "export";
/// Names in the runtime directory of a sandbox that shares a directory, those of mount points.
pub(crate) const DIRECTORIES: [&str; 2] = [EXPORT, SHARED];
/// The tmpfs holds mount points only.
const TMPFS_OPTIONS: &str = "mode=700,size=4m,nr_inodes=32k";
const NONE: Option<&str> = None;
/// So many mounts on top of each other are taken away from one place.
const MAX_STACKED: usize = 64;

/// A directory or a mount of the shared directory could not be made or removed.
#[derive(Debug, Error)]
pub enum SharedDirError {
    /// The directory itself.
    #[error("The shared directory {path} can't be made")]
    Create {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A mount of a container.
    #[error("{what} can't be mounted for the container")]
    Mount {
        /// Type or source.
        what: String,
        /// Why.
        source: io::Error,
    },
    /// A source that is neither a file nor a directory.
    #[error("{0} is a device or a pipe, which can't be shared with a guest")]
    Kind(PathBuf),
    /// A loop device.
    #[error("{path} can't be put on a loop device")]
    Loop {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A mount stays.
    #[error("The container's mount {path} can't be removed")]
    Remove {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// The shared directory of one sandbox. Its owner removes it with the runtime directory.
#[derive(Debug)]
pub struct SharedDir {
    path: PathBuf,
}

impl SharedDir {
    /// Makes `shared` and `export` in the sandbox's runtime directory. Needs the right to mount.
    pub fn create(runtime_dir: &Path) -> Result<Self, SharedDirError> {
        let (path, export) = (runtime_dir.join(SHARED), runtime_dir.join(EXPORT));
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source: io::Error| SharedDirError::Create { path, source }
        };
        for directory in [&path, &export] {
            DirBuilder::new().mode(0o700).create(directory).map_err(failed(directory))?;
        }
        let set_up = || -> nix::Result<()> {
            let safe = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
            mount(Some("hull"), &path, Some("tmpfs"), safe, Some(TMPFS_OPTIONS))?;
            // Out of the host's peer group, if it has one, and into one of its own.
            mount(NONE, &path, NONE, MsFlags::MS_PRIVATE, NONE)?;
            mount(NONE, &path, NONE, MsFlags::MS_SHARED, NONE)?;
            mount(Some(&path), &export, NONE, MsFlags::MS_BIND, NONE)?;
            mount(NONE, &export, NONE, MsFlags::MS_SLAVE, NONE)?;
            mount(NONE, &export, NONE, MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY | safe, NONE)
        };
        set_up().map_err(io::Error::from).map_err(failed(&path))?;
        Ok(Self { path })
    }

    /// What the guest gets.
    pub fn export(runtime_dir: &Path) -> PathBuf {
        runtime_dir.join(EXPORT)
    }

    /// Mounts a container's root file system and its bind mounts, which get the numbers of their places in `binds`. After a
    /// failure nothing of it is left. Blocks as long as the file systems do.
    pub fn mount_container(
        &self,
        id: &str,
        root: &BundleRoot,
        binds: &[BindMount],
    ) -> Result<ContainerMounts, SharedDirError> {
        ContainerMounts::make(self.path.join(id), root, binds)
    }
}

/// Takes away the shared directory in `runtime_dir`, if it has one, with everything that is mounted there. The sources stay
/// as they are.
pub fn remove(runtime_dir: &Path) -> io::Result<()> {
    for name in DIRECTORIES {
        let path = runtime_dir.join(name);
        unmount(&path)?;
        // Fails if it is still a mount point.
        gone(fs::remove_dir(&path))?;
    }
    Ok(())
}

/// Detaches whatever is mounted at a path. A detached file system goes away when its last file is closed, in the guest too.
fn unmount(path: &Path) -> io::Result<()> {
    for _ in 0..MAX_STACKED {
        match umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => (),
            // Not mounted, or not there.
            Err(Errno::EINVAL | Errno::ENOENT) => return Ok(()),
            // Without the right to unmount nothing can be mounted here either, unless others did it.
            Err(Errno::EPERM) if !is_mounted(path) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        }
    }
    Err(io::ErrorKind::ResourceBusy.into())
}

fn is_mounted(path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let device = |path: &Path| fs::symlink_metadata(path).map(|metadata| metadata.dev()).ok();
    path.parent().is_some_and(|parent| device(path).is_some() && device(path) != device(parent))
}

fn gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
#[path = "shared_dir_test.rs"]
mod tests;
