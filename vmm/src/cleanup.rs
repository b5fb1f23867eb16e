//! What a monitor leaves behind when nobody else will remove it.
//!
//! Nothing here follows a link or a path that the guest gave: the front door's directory is opened once, and only plain files and
//! sockets directly in it are removed.

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use nix::dir::{Dir, Type};
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::{Mode, SFlag, fstatat};
use nix::unistd::{UnlinkatFlags, unlinkat};

/// Bound on the entries of a runtime directory.
const MAX_ENTRIES: usize = 4096;

/// Files to remove when the monitor ends.
#[derive(Debug, Default)]
pub struct Cleanup {
    sockets: Mutex<Vec<PathBuf>>,
    runtime_dir: Option<PathBuf>,
}

impl Cleanup {
    /// Nothing to remove yet, except the front door's directory if the front door goes away.
    pub fn new(runtime_dir: Option<PathBuf>) -> Self {
        Self { sockets: Mutex::default(), runtime_dir }
    }

    /// Notes a socket that this monitor has made.
    pub fn add_socket(&self, path: &Path) {
        self.sockets.lock().unwrap_or_else(PoisonError::into_inner).push(path.to_owned());
    }

    /// Removes a socket that was noted, and forgets it.
    pub fn remove_socket(&self, path: &Path) {
        self.sockets.lock().unwrap_or_else(PoisonError::into_inner).retain(|noted| noted != path);
        remove_if_socket(path);
    }

    /// Removes the sockets.
    pub fn sockets(&self) {
        for path in self.sockets.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            remove_if_socket(&path);
        }
    }

    /// Removes the sockets and the runtime directory, for a front door that can't.
    pub fn everything(&self) {
        self.sockets();
        if let Some(path) = &self.runtime_dir {
            remove_flat_directory(path);
        }
    }
}

fn remove_if_socket(path: &Path) {
    // Only a socket: someone may have put something else there.
    if fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket()) {
        let _ = fs::remove_file(path);
    }
}

/// Removes files and sockets directly in `path`, then `path`. A subdirectory stays, and so does `path` then.
fn remove_flat_directory(path: &Path) {
    let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    let Ok(mut dir) = Dir::open(path, flags, Mode::empty()) else { return };
    let names: Vec<_> = dir
        .iter()
        .take(MAX_ENTRIES)
        .filter_map(Result::ok)
        .filter(|entry| !matches!(entry.file_type(), Some(Type::Directory | Type::Symlink)))
        .map(|entry| entry.file_name().to_owned())
        .collect();
    for name in names {
        let kind = fstatat(&dir, name.as_c_str(), AtFlags::AT_SYMLINK_NOFOLLOW)
            .map(|stat| SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT);
        if matches!(kind, Ok(SFlag::S_IFREG | SFlag::S_IFSOCK | SFlag::S_IFIFO)) {
            let _ = unlinkat(&dir, name.as_c_str(), UnlinkatFlags::NoRemoveDir);
        }
    }
    // Fails when something is left, or when the path leads elsewhere by now and that isn't empty.
    let _ = fs::remove_dir(path);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests stop at the first surprise")]

    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_flat_directory_goes_away() {
        let base = tempfile::tempdir().unwrap();
        let dir = base.path().join("vm");
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("state.json"), "{}").unwrap();
        let _listener = UnixListener::bind(dir.join("vsock")).unwrap();
        Cleanup::new(Some(dir.clone())).everything();
        assert!(!dir.exists());
    }

    #[test]
    fn links_and_subdirectories_are_left_alone() {
        let base = tempfile::tempdir().unwrap();
        let dir = base.path().join("vm");
        let other = base.path().join("other");
        fs::create_dir_all(dir.join("sub")).unwrap();
        fs::create_dir(&other).unwrap();
        fs::write(other.join("precious"), "x").unwrap();
        fs::write(dir.join("sub/file"), "x").unwrap();
        symlink(other.join("precious"), dir.join("link")).unwrap();
        let cleanup = Cleanup::new(Some(dir.clone()));
        cleanup.add_socket(&dir.join("link"));
        cleanup.everything();
        assert!(other.join("precious").exists() && dir.join("sub/file").exists());

        let link = base.path().join("link-to-other");
        symlink(&other, &link).unwrap();
        Cleanup::new(Some(link)).everything();
        assert!(other.join("precious").exists(), "a link in place of the directory is not followed");
    }

    #[test]
    fn only_sockets_count_as_sockets() {
        let base = tempfile::tempdir().unwrap();
        let (file, socket) = (base.path().join("file"), base.path().join("socket"));
        fs::write(&file, "x").unwrap();
        drop(UnixListener::bind(&socket).unwrap());
        let cleanup = Cleanup::new(None);
        cleanup.add_socket(&file);
        cleanup.add_socket(&socket);
        cleanup.sockets();
        assert!(file.exists() && !socket.exists());
    }
}
