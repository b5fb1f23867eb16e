//! Directories, locks and temporary files of the store.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::fs::FlockOperation;

/// How often a lock that somebody else holds is tried again.
const LOCK_POLL: Duration = Duration::from_millis(50);

/// The store's directories.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    root: PathBuf,
}

impl Layout {
    /// Creates what is missing and removes what crashed builds left behind.
    pub(super) fn open(root: &Path) -> std::io::Result<Self> {
        let layout = Layout { root: std::path::absolute(root)? };
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

    fn locks_dir(&self) -> PathBuf {
        self.root.join("locks")
    }

    /// Waits for its turn to build an image. Whoever waits finds the image built when its turn comes.
    pub(super) async fn lock_build(&self, key: &str, waiting: impl Fn()) -> std::io::Result<BuildLock> {
        let path = self.locks_dir().join(key);
        let mut told = false;
        loop {
            let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path)?;
            if try_lock(&file, FlockOperation::NonBlockingLockExclusive)? {
                // The holder before us removed the file: others lock another one now.
                if file.metadata()?.nlink() > 0 {
                    return Ok(BuildLock { path, _file: file });
                }
                continue;
            }
            if !told {
                waiting();
                told = true;
            }
            tokio::time::sleep(LOCK_POLL).await;
        }
    }

    /// Keeps images from being removed (shared) or used and added (exclusive). Held for moments only.
    pub(super) fn lock_store(&self, exclusive: bool) -> std::io::Result<StoreLock> {
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(self.root.join("lock"))?;
        let operation = if exclusive { FlockOperation::LockExclusive } else { FlockOperation::LockShared };
        retry_interrupted(|| rustix::fs::flock(&file, operation))?;
        Ok(StoreLock { _file: file })
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

/// The right to build one image.
pub(super) struct BuildLock {
    path: PathBuf,
    _file: File,
}

impl Drop for BuildLock {
    fn drop(&mut self) {
        // Removed while still locked, so that nobody else can hold the same file.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// See [`Layout::lock_store`].
pub(super) struct StoreLock {
    _file: File,
}

/// A file that disappears unless it is persisted. Locked, so that [`Layout::open`] leaves it alone.
pub(super) struct TemporaryFile {
    path: PathBuf,
    file: File,
    persisted: bool,
}

impl TemporaryFile {
    pub(super) fn create(dir: &Path) -> std::io::Result<Self> {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        loop {
            let number = COUNTER.fetch_add(1, Ordering::Relaxed);
            let path = dir.join(format!("{}-{number}-{:x}", std::process::id(), nanoseconds()));
            let file = match OpenOptions::new().read(true).write(true).create_new(true).open(&path) {
                Ok(file) => file,
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => continue,
                Err(error) => return Err(error),
            };
            let temporary = TemporaryFile { path, file, persisted: false };
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
        std::fs::rename(&self.path, path)?;
        self.persisted = true;
        if let Some(parent) = path.parent() {
            File::open(parent)?.sync_all()?;
        }
        Ok(())
    }
}

impl Drop for TemporaryFile {
    fn drop(&mut self) {
        if !self.persisted {
            let _ = std::fs::remove_file(&self.path);
        }
    }
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

fn try_lock(file: &File, operation: FlockOperation) -> std::io::Result<bool> {
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
        let held = TemporaryFile::create(&layout.temporary_dir()).unwrap();
        Layout::open(&root).unwrap();
        assert!(left.iter().all(|path| !path.exists()) && held.path.exists());
    }
}
