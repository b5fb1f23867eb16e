//! Volumes that the host replaces in one step: Kubernetes' ConfigMaps, Secrets, projected and downward API volumes.
//!
//! Such a volume is a directory of symbolic links into `..data`, which is a symbolic link to the directory with what counts
//! now. A kubelet writes another directory beside it, has `..data` point to that by a rename, adds and removes links, and removes
//! the old directory. The guest has a copy of it in memory, so that inotify works there ([`Volumes`] tells it when to look).

mod changes;
mod watcher;

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};

use crate::shared_dir::BindMount;

pub(crate) use watcher::{Volumes, Watch};

/// Points to the directory with what counts now.
const DATA: &str = "..data";
/// Directories of a kubelet with volumes of the kinds that it writes in this way.
const KINDS: [&str; 4] =
    ["kubernetes.io~configmap", "kubernetes.io~secret", "kubernetes.io~projected", "kubernetes.io~downward-api"];

/// A kubelet may replace what is mounted here. Only whole volumes are replaced, not files of them that are mounted alone
/// (`subPath`); and a copy can only be read.
pub(crate) fn is_candidate(bind: &BindMount) -> bool {
    let mut components = bind.source.components().rev();
    let name = components.next().is_some_and(|name| matches!(name, Component::Normal(_)));
    let kind = components.next().and_then(|kind| kind.as_os_str().to_str());
    name && bind.read_only && kind.is_some_and(|kind| KINDS.contains(&kind))
}

/// The name of the directory with what counts now in the volume at `path`. `None` if it isn't written as described above.
fn current_data(path: &Path) -> io::Result<Option<String>> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if !is_reserved(&entry.file_name()) && !entry.file_type()?.is_symlink() {
            return Ok(None);
        }
    }
    match fs::read_link(path.join(DATA)) {
        Ok(target) => Ok(target.to_str().filter(|name| is_content(name)).map(str::to_owned)),
        // No link, or none there.
        Err(error) if matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::NotFound) => Ok(None),
        Err(error) => Err(error),
    }
}

fn is_content(name: &str) -> bool {
    is_reserved(OsStr::new(name)) && name.len() > 2 && !name.contains('/')
}

fn is_reserved(name: &OsStr) -> bool {
    name.as_bytes().starts_with(b"..")
}

#[cfg(test)]
#[path = "volume_test.rs"]
mod tests;
