//! Access to files of a container's root file system. Its symbolic links are resolved inside it, whatever they say.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat, openat2};
use nix::sys::stat::{Mode, SFlag, fchmod, fstat, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use crate::failure::{Context, Failure};

/// Deepest path that is accepted.
const MAX_DEPTH: usize = 64;

/// A directory that plays the root.
pub struct Root(OwnedFd);

impl Root {
    /// Opens the directory.
    pub fn open(path: &Path) -> Result<Self, Failure> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        Ok(Self(open(path, flags, Mode::empty()).context(format!("open {}", path.display()))?))
    }

    /// Reads a regular file up to a size; what lies beyond is left out. `None` if there is no such file.
    pub fn read(&self, path: &str, max_bytes: u64) -> Result<Option<Vec<u8>>, Failure> {
        // Non-blocking, because an image may have a FIFO there.
        let file = match self.resolve(Path::new(path), OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY) {
            Ok(file) => file,
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::ENXIO) => return Ok(None),
            Err(error) => return Err(error).context(format!("open {path}")),
        };
        let kind = SFlag::from_bits_truncate(fstat(&file).context(format!("look at {path}"))?.st_mode);
        if kind & SFlag::S_IFMT != SFlag::S_IFREG {
            return Ok(None);
        }
        let mut content = Vec::new();
        File::from(file).take(max_bytes).read_to_end(&mut content).context(format!("read {path}"))?;
        Ok(Some(content))
    }

    /// Puts a regular file at an absolute path, in place of a file or symbolic link that is there. Directories on the
    /// way are made.
    pub fn write(&self, path: &str, content: &[u8], mode: u32) -> Result<(), Failure> {
        let (directories, name) = split(path)?;
        let name = name.ok_or_else(|| Failure::invalid(format!("{path} names no file")))?;
        let parent = self.make_directories(&directories)?;
        match unlinkat(&parent, name.as_os_str(), UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(Errno::EISDIR) => {
                return Err(Failure::invalid(format!("{path} is a directory in the image")));
            }
            Err(error) => return Err(error).context(format!("replace {path}")),
        }
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mode = Mode::from_bits_truncate(mode & 0o7777);
        let file = openat(&parent, name.as_os_str(), flags, mode).context(format!("create {path}"))?;
        // The mode as asked for, whatever the umask.
        fchmod(&file, mode).context(format!("create {path}"))?;
        File::from(file).write_all(content).context(format!("write {path}"))
    }

    /// Makes a directory with those above it; what exists stays.
    pub fn make_directory(&self, path: &Path) -> Result<(), Failure> {
        let (mut components, name) = split(&path.to_string_lossy())?;
        components.extend(name);
        self.make_directories(&components).map(drop)
    }

    fn make_directories(&self, names: &[PathBuf]) -> Result<OwnedFd, Failure> {
        let mut path = PathBuf::from("/");
        let mut directory = self.0.try_clone().context("open the root")?;
        for name in names {
            path.push(name);
            let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
            directory = match self.resolve(&path, flags) {
                Err(Errno::ENOENT) => {
                    let action = format!("create {}", path.display());
                    mkdirat(&directory, name.as_os_str(), Mode::from_bits_truncate(0o755)).context(&action)?;
                    self.resolve(&path, flags).context(&action)?
                }
                other => other.context(format!("open {}", path.display()))?,
            };
        }
        Ok(directory)
    }

    fn resolve(&self, path: &Path, flags: OFlag) -> nix::Result<OwnedFd> {
        let how = OpenHow::new()
            .flags(flags | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        openat2(&self.0, path, how)
    }
}

/// An absolute path without `.` and `..`, as if no name in it were a link.
pub fn clean(path: &Path) -> PathBuf {
    let mut cleaned = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(name) => cleaned.push(name),
            Component::ParentDir => drop(cleaned.pop()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    cleaned
}

/// Directories of an absolute path, and its last name.
fn split(path: &str) -> Result<(Vec<PathBuf>, Option<PathBuf>), Failure> {
    let mut names = Vec::new();
    for component in Path::new(path).components() {
        match component {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(name) => names.push(PathBuf::from(OsStr::new(name))),
            Component::ParentDir | Component::Prefix(_) => {
                return Err(Failure::invalid(format!("path {path} has '..'")));
            }
        }
    }
    if !path.starts_with('/') || path.contains('\0') || names.len() > MAX_DEPTH {
        return Err(Failure::invalid(format!("path {path:?} is not absolute or too deep")));
    }
    let name = names.pop();
    Ok((names, name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn root() -> (tempfile::TempDir, Root) {
        let directory = tempfile::tempdir().expect("directory");
        let root = Root::open(directory.path()).expect("open");
        (directory, root)
    }

    #[test]
    fn files_are_written_and_read_with_their_mode() {
        use std::os::unix::fs::PermissionsExt;
        let (directory, root) = root();
        root.write("/etc/hosts", b"127.0.0.1 localhost\n", 0o644).expect("write");
        assert_eq!(root.read("/etc/hosts", 9), Ok(Some(b"127.0.0.1".to_vec())));
        let mode = std::fs::metadata(directory.path().join("etc/hosts")).expect("stat").permissions().mode();
        assert_eq!(mode & 0o7777, 0o644);
        assert_eq!(root.read("/etc/none", 9), Ok(None));
    }

    #[test]
    fn links_lead_nowhere_outside() {
        let (directory, root) = root();
        let outside = tempfile::tempdir().expect("directory");
        std::fs::write(outside.path().join("passwd"), "secret").expect("write");
        symlink(outside.path(), directory.path().join("etc")).expect("link");
        assert_eq!(root.read("/etc/passwd", 99), Ok(None));
        // The link's target doesn't exist inside.
        assert!(root.write("/etc/hosts", b"x", 0o644).is_err());
        assert!(!outside.path().join("hosts").exists());
    }

    #[test]
    fn a_link_at_the_end_is_replaced_and_not_followed() {
        let (directory, root) = root();
        symlink("/etc/shadow", directory.path().join("resolv.conf")).expect("link");
        root.write("/resolv.conf", b"nameserver 1.1.1.1\n", 0o644).expect("write");
        assert!(directory.path().join("resolv.conf").symlink_metadata().expect("stat").is_file());
    }

    #[test]
    fn a_fifo_is_no_file_and_does_not_block() {
        let (directory, root) = root();
        nix::unistd::mkfifo(&directory.path().join("passwd"), Mode::from_bits_truncate(0o600)).expect("fifo");
        assert_eq!(root.read("/passwd", 99), Ok(None));
    }

    #[test]
    fn paths_are_cleaned() {
        for (path, cleaned) in
            [("/", "/"), ("/a/./b//c/", "/a/b/c"), ("/a/../b", "/b"), ("/../..", "/"), ("/a/b/../../../c", "/c")]
        {
            assert_eq!(clean(Path::new(path)), Path::new(cleaned), "{path}");
        }
    }

    #[test]
    fn wrong_paths_are_refused() {
        let (_directory, root) = root();
        for path in ["", "etc/hosts", "/../x", "/a/../../x", "/", "/a\0b"] {
            assert!(root.write(path, b"", 0o644).is_err(), "{path:?}");
        }
        assert!(root.write(&"/a".repeat(100), b"", 0o644).is_err());
    }
}
