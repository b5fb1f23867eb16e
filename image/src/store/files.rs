//! Directories and files of the store.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, FlockOperation, OFlags};

const LOCK_POLL: Duration = Duration::from_millis(50);

/// The store's directories.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    root: PathBuf,
    /// How often a lock that somebody else holds is tried again.
    pub(super) poll: Duration,
}

impl Layout {
    /// Creates what is missing and removes what crashed builds left behind.
    pub(super) fn open(root: &Path) -> std::io::Result<Self> {
        let layout = Layout { root: std::path::absolute(root)?, poll: LOCK_POLL };
        for dir in
            [layout.erofs_dir(), layout.blobs_dir(), layout.images_dir(), layout.temporary_dir(), layout.locks_dir()]
        {
            // Images may be private; and others must not put theirs here.
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        }
        check_owner(&layout.root)?;
        for dir in [layout.temporary_dir(), layout.locks_dir()] {
            remove_unlocked(&dir)?;
        }
        Ok(layout)
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn erofs_dir(&self) -> PathBuf {
        self.root.join("erofs")
    }

    pub(super) fn erofs(&self, key: &str) -> PathBuf {
        self.erofs_dir().join(format!("{key}.erofs"))
    }

    /// Manifests and configurations, by their SHA-256.
    pub(super) fn blobs_dir(&self) -> PathBuf {
        self.root.join("blobs/sha256")
    }

    pub(super) fn images_dir(&self) -> PathBuf {
        self.root.join("images")
    }

    pub(super) fn temporary_dir(&self) -> PathBuf {
        self.root.join("tmp")
    }

    pub(super) fn locks_dir(&self) -> PathBuf {
        self.root.join("locks")
    }
}

/// Removes the files of processes that have died: those that nobody holds locked.
fn remove_unlocked(dir: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let Ok(file) = File::open(&path) else { continue };
        if try_lock(&file, FlockOperation::NonBlockingLockExclusive)? {
            ignore_missing(std::fs::remove_file(&path))?;
        }
    }
    Ok(())
}

/// A store that somebody else made, in /tmp for example, holds what they want to be run. Root may use anybody's.
fn check_owner(root: &Path) -> std::io::Result<()> {
    let user = rustix::process::geteuid().as_raw();
    let owner = std::fs::metadata(root)?.uid();
    if user == 0 || owner == 0 || owner == user {
        return Ok(());
    }
    let text = format!("it belongs to user {owner}");
    Err(std::io::Error::new(std::io::ErrorKind::PermissionDenied, text))
}

/// A file that disappears unless it is persisted: also when this process is killed, where the file system has files
/// without a name. Where not, it is locked, so that [`Layout::open`] leaves it alone as long as this process lives.
pub(super) struct TemporaryFile {
    dir: PathBuf,
    /// Its name, if it has one.
    path: Option<PathBuf>,
    file: File,
}

impl TemporaryFile {
    pub(super) fn create(dir: &Path) -> std::io::Result<Self> {
        match Self::unnamed(dir) {
            Ok(temporary) => Ok(temporary),
            Err(_) => Self::named(dir),
        }
    }

    fn unnamed(dir: &Path) -> std::io::Result<Self> {
        // The way to a name leads through /proc.
        std::fs::metadata("/proc/self/fd")?;
        let flags = OFlags::TMPFILE.bits().cast_signed();
        let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open(dir)?;
        let temporary = TemporaryFile { dir: dir.to_owned(), path: None, file };
        // For the moment in which it has a name and isn't where it belongs.
        try_lock(&temporary.file, FlockOperation::NonBlockingLockExclusive)?;
        Ok(temporary)
    }

    fn named(dir: &Path) -> std::io::Result<Self> {
        loop {
            let path = unique_path(dir);
            let file = match OpenOptions::new().read(true).write(true).create_new(true).open(&path) {
                Ok(file) => file,
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => continue,
                Err(error) => return Err(error),
            };
            let temporary = TemporaryFile { dir: dir.to_owned(), path: Some(path), file };
            // Somebody who opens the store may have removed the file before it was locked.
            if try_lock(&temporary.file, FlockOperation::NonBlockingLockExclusive)?
                && temporary.file.metadata()?.nlink() > 0
            {
                return Ok(temporary);
            }
        }
    }

    /// A descriptor that shares the lock.
    pub(super) fn file(&self) -> std::io::Result<File> {
        self.file.try_clone()
    }

    /// Gives the (synced) file its name, replacing what had it.
    pub(super) fn persist(mut self, path: &Path) -> std::io::Result<()> {
        std::fs::rename(self.link()?, path)?;
        self.path = None;
        if let Some(parent) = path.parent() {
            File::open(parent)?.sync_all()?;
        }
        Ok(())
    }

    /// The file's name, given now if it has none: a link can't replace a file, a rename can.
    fn link(&mut self) -> std::io::Result<&Path> {
        let descriptor = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        while self.path.is_none() {
            let path = unique_path(&self.dir);
            match rustix::fs::linkat(CWD, &descriptor, CWD, &path, AtFlags::SYMLINK_FOLLOW) {
                Ok(()) => self.path = Some(path),
                Err(rustix::io::Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(self.path.as_deref().unwrap_or(&self.dir))
    }
}

impl Drop for TemporaryFile {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            let _ = std::fs::remove_file(path);
        }
    }
}

fn unique_path(dir: &Path) -> PathBuf {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let number = COUNTER.fetch_add(1, Ordering::Relaxed);
    dir.join(format!("{}-{number}-{:x}", std::process::id(), nanoseconds()))
}

/// Writes a file so that it is either complete or not there.
pub(super) fn write_atomically(temporary_dir: &Path, path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let temporary = TemporaryFile::create(temporary_dir)?;
    let mut file = temporary.file()?;
    file.write_all(bytes)?;
    file.sync_data()?;
    temporary.persist(path)
}

/// Opens a file and holds it in use: it is not removed unless by force.
pub(super) fn open_leased(path: &Path) -> std::io::Result<File> {
    let file = File::open(path)?;
    retry_interrupted(|| rustix::fs::flock(&file, FlockOperation::LockShared))?;
    Ok(file)
}

/// Whether somebody uses the file.
pub(super) fn is_leased(path: &Path) -> std::io::Result<bool> {
    match File::open(path) {
        Ok(file) => Ok(!try_lock(&file, FlockOperation::NonBlockingLockExclusive)?),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

pub(super) fn ignore_missing(result: std::io::Result<()>) -> std::io::Result<()> {
    match result {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

pub(super) fn try_lock(file: &File, operation: FlockOperation) -> std::io::Result<bool> {
    match retry_interrupted(|| rustix::fs::flock(file, operation)) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(error),
    }
}

fn retry_interrupted(mut call: impl FnMut() -> rustix::io::Result<()>) -> std::io::Result<()> {
    loop {
        match call() {
            Err(rustix::io::Errno::INTR) => {}
            result => return result.map_err(Into::into),
        }
    }
}

fn nanoseconds() -> u128 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |time| time.as_nanos())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_new_store_is_private_and_what_the_dead_left_in_it_goes() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("a/store");
        let layout = Layout::open(&root).unwrap();
        assert_eq!(std::fs::metadata(&root).unwrap().permissions().mode() & 0o777, 0o700);
        let left = [layout.temporary_dir().join("x"), layout.locks_dir().join("y")];
        left.iter().for_each(|path| std::fs::write(path, "").unwrap());
        let held = TemporaryFile::named(&layout.temporary_dir()).unwrap();
        Layout::open(&root).unwrap();
        assert!(left.iter().all(|path| !path.exists()) && held.path.as_ref().unwrap().exists());
    }

    #[test]
    fn a_temporary_file_gets_its_name_when_it_is_complete_and_replaces_what_had_it() {
        let dir = tempfile::tempdir().unwrap();
        let (temporary_dir, path) = (dir.path().join("tmp"), dir.path().join("file"));
        std::fs::create_dir(&temporary_dir).unwrap();
        let names = || std::fs::read_dir(&temporary_dir).unwrap().count();
        type Create = fn(&Path) -> std::io::Result<TemporaryFile>;
        for (create, expected) in [(TemporaryFile::unnamed as Create, 0), (TemporaryFile::named, 1)] {
            for text in ["old", "new"] {
                let temporary = match create(&temporary_dir) {
                    Err(error) if error.kind() == std::io::ErrorKind::Unsupported => {
                        // Not by `eprintln`, which the test harness hides.
                        let _ = writeln!(std::io::stderr(), "SKIPPED: no unnamed files in {}", dir.path().display());
                        continue;
                    }
                    created => created.unwrap(),
                };
                assert_eq!(names(), expected);
                temporary.file().unwrap().write_all(text.as_bytes()).unwrap();
                temporary.persist(&path).unwrap();
                assert_eq!((std::fs::read_to_string(&path).unwrap().as_str(), names()), (text, 0));
            }
            drop(create(&temporary_dir));
            assert_eq!(names(), 0);
        }
    }
}
