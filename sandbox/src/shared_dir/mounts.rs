//! The mounts of one container in the shared directory.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt};
use std::path::{Component, Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use rustix::mount::{MoveMountFlags, OpenTreeFlags};

use super::loop_device::LoopDevice;
use super::options::{self, MountOptions};
use super::{SharedDirError, attributes, gone, unmount};

/// Name of the root file system in a container's directory.
pub(crate) const ROOTFS: &str = "rootfs";
/// Name of the directory with its bind mounts, which have numbers there.
pub(crate) const MOUNTS: &str = "mounts";
/// mount(2) reads one page, of which the last byte is a zero.
const MAX_DATA_BYTES: usize = 4095;

/// Where a container's root file system comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BundleRoot {
    /// Mounts, in order, as a snapshotter describes them.
    Mounts(Vec<RootMount>),
    /// A directory.
    Directory(PathBuf),
}

/// A mount as containerd describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootMount {
    /// "overlay", "ext4", "bind", ...
    pub fs_type: String,
    /// Device, file or directory.
    pub source: String,
    /// As for mount(8).
    pub options: Vec<String>,
}

/// Something of the host that a container binds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BindMount {
    /// File or directory.
    pub source: PathBuf,
    /// With what is mounted below it.
    pub recursive: bool,
    /// The guest can't write it, whatever it mounts.
    pub read_only: bool,
}

/// The mounts of one container. Dropping takes them away.
#[derive(Debug)]
pub struct ContainerMounts {
    dir: PathBuf,
    binds: usize,
    removed: bool,
}

impl ContainerMounts {
    pub(super) fn make(dir: PathBuf, root: &BundleRoot, binds: &[BindMount]) -> Result<Self, SharedDirError> {
        let create = |path: &Path| {
            let made = DirBuilder::new().mode(0o755).create(path);
            made.map_err(|source| SharedDirError::Create { path: path.to_owned(), source })
        };
        create(&dir)?;
        let mut made = Self { dir, binds: 0, removed: false };
        let (rootfs, mounts) = (made.dir.join(ROOTFS), made.dir.join(MOUNTS));
        create(&rootfs)?;
        create(&mounts)?;
        match root {
            BundleRoot::Mounts(all) => all.iter().try_for_each(|one| mount_root(one, &rootfs))?,
            BundleRoot::Directory(path) => bind(path, &rootfs, true, false)?,
        }
        for (number, wanted) in binds.iter().enumerate() {
            made.binds = number + 1;
            let target = mounts.join(number.to_string());
            if is_directory(&wanted.source)? {
                create(&target)?;
            } else {
                File::create_new(&target).map_err(|source| SharedDirError::Create { path: target.clone(), source })?;
            }
            bind(&wanted.source, &target, wanted.recursive, wanted.read_only)?;
        }
        Ok(made)
    }

    /// Where the bind mount of this number is.
    pub(crate) fn bind_path(&self, number: u32) -> PathBuf {
        self.dir.join(MOUNTS).join(number.to_string())
    }

    /// Takes them away. What fails can be tried again.
    pub fn remove(&mut self) -> Result<(), SharedDirError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| SharedDirError::Remove { path, source }
        };
        let mounts = self.dir.join(MOUNTS);
        for number in (0..self.binds).rev() {
            let path = mounts.join(number.to_string());
            unmount(&path).map_err(failed(&path))?;
            // Never recursive: if something were still mounted here, it would be emptied.
            let removed = if path.is_dir() { fs::remove_dir(&path) } else { fs::remove_file(&path) };
            gone(removed).map_err(failed(&path))?;
        }
        let rootfs = self.dir.join(ROOTFS);
        unmount(&rootfs).map_err(failed(&rootfs))?;
        for path in [&mounts, &rootfs, &self.dir] {
            gone(fs::remove_dir(path)).map_err(failed(path))?;
        }
        self.removed = true;
        Ok(())
    }
}

impl Drop for ContainerMounts {
    fn drop(&mut self) {
        if !self.removed
            && let Err(error) = self.remove()
        {
            tracing::warn!(%error, "mounts of a container stay until its sandbox ends");
        }
    }
}

/// Puts one of a snapshotter's mounts at the root.
fn mount_root(wanted: &RootMount, target: &Path) -> Result<(), SharedDirError> {
    let mut options = options::parse(&wanted.options);
    if options.flags.contains(MsFlags::MS_BIND) || wanted.fs_type == "bind" {
        let recursive = options.flags.contains(MsFlags::MS_REC);
        return bind(wanted.source.as_ref(), target, recursive, options.flags.contains(MsFlags::MS_RDONLY));
    }
    let read_only = options.flags.contains(MsFlags::MS_RDONLY);
    let device = options
        .is_loop
        .then(|| LoopDevice::attach(wanted.source.as_ref(), read_only))
        .transpose()
        .map_err(|source| SharedDirError::Loop { path: wanted.source.clone().into(), source })?;
    let source = device.as_ref().map_or(Path::new(&wanted.source), |device| device.path.as_path());
    let what = || format!("{} file system {}", wanted.fs_type, wanted.source);
    let failed = |source| SharedDirError::Mount { what: what(), source };
    let directory = shorten(&mut options).map_err(failed)?;
    mount_from(directory.as_deref(), source, target, &wanted.fs_type, &options).map_err(failed)
}

/// Overlay file systems of many layers need more than a page for their names. Then the layers' common directory becomes the
/// working directory of the mount, and their names begin there.
fn shorten(options: &mut MountOptions) -> io::Result<Option<PathBuf>> {
    let length = |data: &[String]| data.iter().map(|option| option.len() + 1).sum::<usize>();
    if length(&options.data) <= MAX_DATA_BYTES {
        return Ok(None);
    }
    let too_long = || io::Error::new(io::ErrorKind::InvalidInput, "its options are longer than the kernel reads");
    let lower = options.data.iter_mut().find_map(|option| {
        let layers = option.strip_prefix("lowerdir=")?.to_owned();
        Some((option, layers))
    });
    let (option, layers) = lower.ok_or_else(too_long)?;
    let layers: Vec<&Path> = layers.split(':').map(Path::new).collect();
    let common = common_directory(&layers).ok_or_else(too_long)?;
    let names: Vec<_> =
        layers.iter().filter_map(|layer| layer.strip_prefix(&common).ok()?.to_str()).map(String::from).collect();
    *option = format!("lowerdir={}", names.join(":"));
    if length(&options.data) > MAX_DATA_BYTES {
        return Err(too_long());
    }
    Ok(Some(common))
}

/// The deepest directory that has all of the paths below it.
fn common_directory(paths: &[&Path]) -> Option<PathBuf> {
    let mut common = paths.first()?.parent()?.to_owned();
    for path in paths {
        while !path.parent()?.starts_with(&common) {
            common = common.parent()?.to_owned();
        }
    }
    common.components().nth(1).is_some_and(|first| matches!(first, Component::Normal(_))).then_some(common)
}

fn mount_from(
    directory: Option<&Path>,
    source: &Path,
    target: &Path,
    fs_type: &str,
    options: &MountOptions,
) -> io::Result<()> {
    let data = options.data.join(",");
    let mount = || mount(Some(source), target, Some(fs_type), options.flags, Some(data.as_str()));
    let Some(directory) = directory else { return Ok(mount()?) };
    // A working directory belongs to the process unless a thread takes its own.
    let in_thread = || -> nix::Result<()> {
        unshare(CloneFlags::CLONE_FS)?;
        nix::unistd::chdir(directory)?;
        mount()
    };
    let joined = std::thread::scope(|scope| scope.spawn(in_thread).join());
    joined.unwrap_or(Err(nix::errno::Errno::EIO)).map_err(Into::into)
}

/// Binds `source` to `target` in a way that nothing that happens below `target` happens to `source`'s mounts.
fn bind(source: &Path, target: &Path, recursive: bool, read_only: bool) -> Result<(), SharedDirError> {
    let work = || -> io::Result<()> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let flags = if recursive { flags | OpenTreeFlags::AT_RECURSIVE } else { flags };
        let tree = rustix::mount::open_tree(rustix::fs::CWD, source, flags)?;
        attributes::confine(tree.as_fd(), read_only)?;
        let from_tree = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        Ok(rustix::mount::move_mount(tree, c"", rustix::fs::CWD, target, from_tree)?)
    };
    work().map_err(|error| SharedDirError::Mount { what: source.display().to_string(), source: error })
}

/// Links are followed, as the kernel does it for mounts.
fn is_directory(source: &Path) -> Result<bool, SharedDirError> {
    let failed = |error| SharedDirError::Mount { what: source.display().to_string(), source: error };
    let kind = fs::metadata(source).map_err(failed)?.file_type();
    if kind.is_block_device() || kind.is_char_device() || kind.is_fifo() {
        return Err(SharedDirError::Kind(source.to_owned()));
    }
    Ok(kind.is_dir())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_layers_are_named_from_their_common_directory() {
        let layers: Vec<_> = (0..200).map(|n| format!("/var/lib/containerd/snapshots/{n}/fs")).collect();
        let lower = format!("lowerdir={}", layers.join(":"));
        assert!(lower.len() > MAX_DATA_BYTES);
        let mut options = options::parse(&["workdir=/w".into(), lower]);
        assert_eq!(shorten(&mut options).unwrap(), Some("/var/lib/containerd/snapshots".into()));
        assert!(options.data[1].starts_with("lowerdir=0/fs:1/fs:"), "{:?}", options.data);
        // Too many for this as well.
        let lower = format!("lowerdir={}", vec!["/a/bbbbbbbbbb"; 1000].join(":"));
        assert!(shorten(&mut options::parse(&[lower])).is_err());
        // Nothing in common, nothing to shorten.
        let lower = format!("lowerdir=/a:{}", "/b/c".repeat(2000));
        assert!(shorten(&mut options::parse(&[lower])).is_err());
        let mut few = options::parse(&["lowerdir=/a:/b".into()]);
        assert_eq!(shorten(&mut few).unwrap(), None);
    }
}
