//! Volumes whose content the host replaces in one step, as copies in memory.
//!
//! A program that waits for a change by inotify hears only of what happens in its own kernel, and what the host does in a shared
//! directory does not. So the container gets a copy in a tmpfs, and the agent does there what the host has done: a new directory
//! appears, `..data` is renamed to point to it, names come and go, the old directory disappears.

mod copy;

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::{self, DirBuilder};
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::{Component, Path, PathBuf};

use hull_protocol::agent::Volume;
use hull_protocol::{SHARED_DIR, VOLUMES_DIR};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::failure::{Context, Failure};
use crate::helper::shared;

/// Points to the directory with what counts now.
const DATA: &str = "..data";
/// Becomes [`DATA`] in one step.
const NEXT_DATA: &str = "..data_tmp";

/// Makes copies of a container's volumes. One whose content the host has just replaced stays empty until it is updated.
pub fn create(container_id: &str, volumes: &[Volume]) -> Result<(), Failure> {
    shared::mount_shared()?;
    let directory = Path::new(VOLUMES_DIR).join(container_id);
    DirBuilder::new().recursive(true).mode(0o711).create(&directory).context("create the directory of volumes")?;
    let safe = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("volumes"), &directory, Some("tmpfs"), safe, Some("mode=755")).context("mount the volumes' memory")?;
    for volume in volumes {
        let (source, target) = paths(container_id, volume.number);
        copy::directory(&source, &target).context(format!("copy volume {}", volume.number))?;
        match update(container_id, volume) {
            Err(failure) if !gone(&source.join(&volume.data)) => return Err(failure),
            _ => {}
        }
    }
    Ok(())
}

/// Makes a copy like what the host has now.
pub fn update(container_id: &str, volume: &Volume) -> Result<(), Failure> {
    let (source, target) = paths(container_id, volume.number);
    let data = checked_name(&volume.data)?;
    if !target.is_dir() {
        return Err(Failure::not_found(format!("the container has no volume {}", volume.number)));
    }
    let result = refresh(&source, &target, data);
    // The host keeps what the kernel knows open.
    shared::forget();
    result.context(format!("copy volume {}", volume.number))
}

/// Removes the copies of a container's volumes, if there are any.
pub fn remove(container_id: &str) -> Result<(), Failure> {
    let directory = Path::new(VOLUMES_DIR).join(container_id);
    match umount2(&directory, MntFlags::MNT_DETACH) {
        Ok(()) | Err(Errno::ENOENT | Errno::EINVAL) => {}
        Err(error) => return Err(error).context("unmount the volumes' memory"),
    }
    // Never recursive: if something were still mounted here, it would be emptied.
    unless_gone(fs::remove_dir(&directory)).context("remove the directory of volumes")
}

/// Where the host shows a volume, and where its copy is.
fn paths(container_id: &str, number: u32) -> (PathBuf, PathBuf) {
    let number = number.to_string();
    let source = Path::new(SHARED_DIR).join(container_id).join("mounts").join(&number);
    (source, Path::new(VOLUMES_DIR).join(container_id).join(number))
}

/// A plain name, and none that a volume's files could have.
fn checked_name(data: &str) -> Result<&str, Failure> {
    let mut components = Path::new(data).components();
    let plain = matches!((components.next(), components.next()), (Some(Component::Normal(_)), None));
    let reserved = is_reserved(data.as_bytes()) && ![DATA, NEXT_DATA].contains(&data);
    if plain && reserved && !data.contains(['/', '\0']) {
        return Ok(data);
    }
    Err(Failure::invalid(format!("a volume's content can't be called {data:?}")))
}

/// The writer of the volume keeps such names for itself.
fn is_reserved(name: &[u8]) -> bool {
    name.starts_with(b"..")
}

/// The steps in the order in which a kubelet does them.
fn refresh(source: &Path, target: &Path, data: &str) -> io::Result<()> {
    if fs::read_link(target.join(DATA)).ok().as_deref() != Some(Path::new(data)) {
        replace(source, target, data)?;
    }
    let names = add_names(source, target)?;
    remove_names(target, &names)?;
    remove_old(target, data)
}

/// Copies `data` and makes it what counts.
fn replace(source: &Path, target: &Path, data: &str) -> io::Result<()> {
    let copied = target.join(data);
    // Of an attempt that failed.
    unless_gone(fs::remove_dir_all(&copied))?;
    if let Err(error) = copy::tree(&source.join(data), &copied) {
        let _ = fs::remove_dir_all(&copied);
        return Err(error);
    }
    let next = target.join(NEXT_DATA);
    unless_gone(fs::remove_file(&next))?;
    symlink(data, &next)?;
    fs::rename(&next, target.join(DATA))
}

/// Adds links that the volume has and the copy hasn't, and returns all that the volume has. The links are names of files in
/// [`DATA`].
fn add_names(source: &Path, target: &Path) -> io::Result<HashSet<OsString>> {
    let mut names = HashSet::new();
    for entry in fs::read_dir(source)? {
        let entry = entry?;
        let name = entry.file_name();
        if is_reserved(name.as_bytes()) {
            continue;
        }
        let link = match fs::read_link(entry.path()) {
            Ok(link) => link,
            // Removed meanwhile, or no link: then it is not of the volume's writer.
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::InvalidInput) => continue,
            Err(error) => return Err(error),
        };
        let copied = target.join(&name);
        if fs::read_link(&copied).ok().as_ref() != Some(&link) {
            unless_gone(fs::remove_file(&copied))?;
            symlink(link, copied)?;
        }
        names.insert(name);
    }
    Ok(names)
}

fn remove_names(target: &Path, names: &HashSet<OsString>) -> io::Result<()> {
    for entry in fs::read_dir(target)? {
        let entry = entry?;
        if !is_reserved(entry.file_name().as_bytes()) && !names.contains(&entry.file_name()) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Removes directories that counted before.
fn remove_old(target: &Path, data: &str) -> io::Result<()> {
    for entry in fs::read_dir(target)? {
        let entry = entry?;
        if entry.file_name() != data && entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

fn gone(path: &Path) -> bool {
    fs::symlink_metadata(path).is_err_and(|error| error.kind() == ErrorKind::NotFound)
}

fn unless_gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
#[path = "volume_test.rs"]
mod tests;
