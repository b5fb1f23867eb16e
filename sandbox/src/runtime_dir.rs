//! Where running sandboxes are recorded, locked and swept.
//!
//! Below the root, each sandbox has a directory named by its identifier, with its record and its sockets. The owner (the
//! process that created the sandbox) holds a `flock` on that directory as long as it lives; a directory that nobody holds
//! is stale and is removed when the next sandbox is created. The root itself is locked while names and directories change.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{env, thread};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use crate::error::SandboxError;
use crate::{random, shared_dir};

/// Variable that overrides the place of the runtime directory.
pub const RUNTIME_DIR_VARIABLE: &str = "HULL_RUNTIME_DIR";

const RECORD: &str = "sandbox.json";
/// The record while it is written.
const NEW_RECORD: &str = "sandbox.new";
/// So much of a command line is recorded, in characters: people read it, and the record has to stay small.
const MAX_COMMAND_CHARS: usize = 4096;
const MAX_RECORD_BYTES: u64 = 64 << 10;
const MAX_SANDBOXES: usize = 10_000;
/// How long the lock of all sandboxes is waited for.
pub const LOCK_PATIENCE: Duration = Duration::from_secs(10);
/// `sun_path` with its terminating zero.
const SOCKET_ADDRESS_BYTES: usize = 108;
/// The longest name of a socket in a sandbox's directory.
const SOCKET_NAME_BYTES: usize = 8;

/// What `hull ps` knows of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxRecord {
    /// Identifier: 12 hexadecimal digits.
    pub id: String,
    /// Name.
    pub name: String,
    /// Image as the user named it.
    pub image: String,
    /// Command line.
    pub command: Vec<String>,
    /// Seconds since the epoch.
    pub created_s: u64,
    /// Where it is on its way.
    pub status: SandboxStatus,
    /// Process that owns it.
    pub owner_pid: u32,
    /// Process of the monitor; 0 before it runs.
    #[serde(default)]
    pub monitor_pid: u32,
    /// Processors of the VM.
    pub vcpus: u8,
    /// Memory of the VM in MiB.
    pub memory_mib: u32,
    /// What it can grow to, in MiB; not above [`Self::memory_mib`] if it stays as it is.
    #[serde(default)]
    pub max_memory_mib: u32,
    /// Signal number that asks the container to stop.
    pub stop_signal: i32,
    /// Seconds between that signal and SIGKILL.
    pub stop_timeout_s: u32,
}

/// Where a sandbox is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SandboxStatus {
    /// The VM boots.
    Starting,
    /// The container runs.
    Running,
}

/// The directory that holds those of all sandboxes of one user.
#[derive(Debug, Clone)]
pub struct RuntimeRoot {
    path: PathBuf,
}

impl RuntimeRoot {
    /// `$HULL_RUNTIME_DIR`; else /run/hull for root, `$XDG_RUNTIME_DIR/hull` or /tmp/hull-UID for others.
    pub fn default_path() -> PathBuf {
        if let Some(path) = env::var_os(RUNTIME_DIR_VARIABLE).filter(|path| !path.is_empty()) {
            return path.into();
        }
        let uid = nix::unistd::geteuid();
        match env::var_os("XDG_RUNTIME_DIR").filter(|path| !path.is_empty()) {
            _ if uid.is_root() => "/run/hull".into(),
            Some(dir) => Path::new(&dir).join("hull"),
            None => format!("/tmp/hull-{uid}").into(),
        }
    }

    /// Makes the directory if it is missing, with mode 0700, and checks that it belongs to this user alone.
    pub fn open(path: &Path) -> Result<Self, SandboxError> {
        let failed = |source| SandboxError::RuntimeDir { path: path.to_owned(), source };
        let path = std::path::absolute(path).map_err(failed)?;
        if path.as_os_str().len() + 1 + ID_LENGTH + 1 + SOCKET_NAME_BYTES >= SOCKET_ADDRESS_BYTES {
            return Err(SandboxError::PathTooLong(path));
        }
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&path);
        made.map_err(failed)?;
        let metadata = fs::symlink_metadata(&path).map_err(failed)?;
        let ours = metadata.is_dir() && metadata.uid() == nix::unistd::geteuid().as_raw();
        if !ours || metadata.mode() & 0o022 != 0 {
            let text = "it is not a directory that belongs to this user and that only this user can write";
            return Err(failed(io::Error::new(io::ErrorKind::PermissionDenied, text)));
        }
        Ok(Self { path })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes and locks the directory of a new sandbox, after stale ones are gone; its name must be free.
    pub fn create(&self, record: &SandboxRecord) -> Result<RuntimeDir, SandboxError> {
        let _lock = self.lock(LOCK_PATIENCE)?;
        self.sweep_locked();
        if let Some(other) = self.records().find(|other| other.name == record.name) {
            return Err(SandboxError::NameTaken { name: other.name, id: other.id });
        }
        let path = self.path.join(&record.id);
        let failed = |source| SandboxError::RuntimeDir { path: path.clone(), source };
        DirBuilder::new().mode(0o700).create(&path).map_err(failed)?;
        let lock = File::open(&path)
            .and_then(|dir| Flock::lock(dir, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| errno.into()))
            .map_err(failed)?;
        let dir = RuntimeDir { path: path.clone(), _lock: lock };
        dir.write_record(record)?;
        Ok(dir)
    }

    /// Running sandboxes, oldest first.
    pub fn list(&self) -> Result<Vec<SandboxRecord>, SandboxError> {
        let _lock = self.lock(LOCK_PATIENCE)?;
        let mut records: Vec<_> = self.records().collect();
        records.sort_by(|a, b| (a.created_s, &a.id).cmp(&(b.created_s, &b.id)));
        Ok(records)
    }

    /// Changes the record of a sandbox, also of one that another process owns, once it runs: from then on its owner leaves the
    /// record alone. Blocks while others have the lock.
    pub fn change_record(&self, id: &str, change: impl FnOnce(&mut SandboxRecord)) -> Result<(), SandboxError> {
        let path = self.path.join(id);
        let _lock = self.lock(LOCK_PATIENCE)?;
        let Some(mut record) = read_record(&path).filter(|_| is_id(id) && is_held(&path)) else { return Ok(()) };
        if record.status == SandboxStatus::Running {
            change(&mut record);
            write_record(&path, &record)?;
        }
        Ok(())
    }

    /// Removes what dead owners left. `patience` is how long it may wait for the lock; [`LOCK_PATIENCE`] is what others take.
    pub fn sweep(&self, patience: Duration) -> Result<(), SandboxError> {
        let _lock = self.lock(patience)?;
        self.sweep_locked();
        Ok(())
    }

    fn sweep_locked(&self) {
        for path in self.directories() {
            let ours = path.join(RECORD).exists() || is_unfinished(&path);
            if ours && !is_held(&path) {
                tracing::debug!(path = %path.display(), "removing what a dead owner left");
                remove(&path);
            }
        }
    }

    fn records(&self) -> impl Iterator<Item = SandboxRecord> {
        self.directories().filter(|path| is_held(path)).filter_map(|path| read_record(&path))
    }

    fn directories(&self) -> impl Iterator<Item = PathBuf> + use<> {
        fs::read_dir(&self.path)
            .into_iter()
            .flatten()
            .take(MAX_SANDBOXES)
            .filter_map(Result::ok)
            .filter(|entry| entry.file_name().to_str().is_some_and(is_id))
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .map(|entry| entry.path())
    }

    /// Others hold this lock for moments only; one that is stopped in that moment must not stop everybody.
    fn lock(&self, patience: Duration) -> Result<Flock<File>, SandboxError> {
        let failed = |source| SandboxError::RuntimeDir { path: self.path.clone(), source };
        let mut dir = File::open(&self.path).map_err(failed)?;
        let deadline = Instant::now() + patience;
        loop {
            match Flock::lock(dir, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => return Ok(lock),
                Err((unlocked, Errno::EWOULDBLOCK | Errno::EINTR)) if Instant::now() < deadline => {
                    dir = unlocked;
                    thread::sleep(Duration::from_millis(5));
                }
                Err((_, errno)) => return Err(failed(errno.into())),
            }
        }
    }
}

/// The directory of one sandbox, held by its owner. Dropping removes it.
#[derive(Debug)]
pub struct RuntimeDir {
    path: PathBuf,
    _lock: Flock<File>,
}

impl RuntimeDir {
    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Replaces the record.
    pub fn write_record(&self, record: &SandboxRecord) -> Result<(), SandboxError> {
        write_record(&self.path, record)
    }
}

impl Drop for RuntimeDir {
    fn drop(&mut self) {
        remove(&self.path);
    }
}

/// Number of hexadecimal digits of an identifier.
pub const ID_LENGTH: usize = 12;

/// A new identifier.
pub fn new_id() -> Result<String, SandboxError> {
    let mut bytes = [0; ID_LENGTH / 2];
    random::fill(&mut bytes)?;
    Ok(hex::encode(bytes))
}

fn is_id(name: &str) -> bool {
    let digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    name.len() == ID_LENGTH && name.bytes().all(digit)
}

/// Another process, or another sandbox of this one, holds the directory.
fn is_held(path: &Path) -> bool {
    File::open(path)
        .is_ok_and(|dir| matches!(Flock::lock(dir, FlockArg::LockExclusiveNonblock), Err((_, Errno::EWOULDBLOCK))))
}

/// Its owner died before the first record was complete, or its monitor, which removes files only, has left directories in which
/// the owner had mounted.
fn is_unfinished(path: &Path) -> bool {
    let known = |name: &OsStr| name == NEW_RECORD || shared_dir::DIRECTORIES.iter().any(|directory| name == *directory);
    fs::read_dir(path).is_ok_and(|mut entries| entries.all(|entry| entry.is_ok_and(|entry| known(&entry.file_name()))))
}

fn write_record(dir: &Path, record: &SandboxRecord) -> Result<(), SandboxError> {
    let temporary = dir.join(NEW_RECORD);
    let record = SandboxRecord { command: shortened(&record.command), ..record.clone() };
    let write = || -> io::Result<()> {
        let json = serde_json::to_vec(&record)?;
        File::create(&temporary)?.write_all(&json)?;
        fs::rename(&temporary, dir.join(RECORD))
    };
    write().map_err(|source| SandboxError::RuntimeDir { path: dir.to_owned(), source })
}

/// The beginning of a command line.
fn shortened(command: &[String]) -> Vec<String> {
    let mut left = MAX_COMMAND_CHARS;
    let mut words = Vec::new();
    for word in command {
        let short: String = word.chars().take(left).collect();
        // Each word counts a little, also an empty one.
        left = left.saturating_sub(short.chars().count() + 1);
        words.push(short);
        if left == 0 {
            break;
        }
    }
    words
}

fn read_record(dir: &Path) -> Option<SandboxRecord> {
    let mut json = Vec::new();
    let file = File::open(dir.join(RECORD)).ok()?;
    file.take(MAX_RECORD_BYTES).read_to_end(&mut json).ok()?;
    serde_json::from_slice(&json).ok()
}

/// The monitor removes the directory too when its owner dies, so what is gone already is no error.
fn remove(path: &Path) {
    // What is mounted in it must be gone before: files of others, which would be removed otherwise.
    let removed = shared_dir::remove(path).and_then(|()| fs::remove_dir_all(path));
    match removed {
        Ok(()) => (),
        Err(error) if error.kind() == io::ErrorKind::NotFound => (),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "a runtime directory stays behind")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn record(id: &str, name: &str) -> SandboxRecord {
        SandboxRecord {
            id: id.into(),
            name: name.into(),
            image: "busybox".into(),
            command: vec!["sh".into()],
            created_s: 1,
            status: SandboxStatus::Starting,
            owner_pid: std::process::id(),
            monitor_pid: 0,
            vcpus: 1,
            memory_mib: 128,
            max_memory_mib: 128,
            stop_signal: 15,
            stop_timeout_s: 10,
        }
    }

    #[test]
    fn a_name_is_taken_while_its_sandbox_lives_and_free_afterwards() {
        let dir = tempfile::tempdir().unwrap();
        let root = RuntimeRoot::open(dir.path()).unwrap();
        let first = root.create(&record("0123456789ab", "one")).unwrap();
        let clash = root.create(&record("0123456789ac", "one")).unwrap_err();
        assert!(matches!(clash, SandboxError::NameTaken { .. }));
        assert_eq!(root.list().unwrap().len(), 1);
        drop(first);
        assert!(root.list().unwrap().is_empty());
        root.create(&record("0123456789ac", "one")).unwrap();
        assert!(fs::read_dir(dir.path()).unwrap().next().is_none());
    }

    #[test]
    fn what_dead_owners_left_is_swept_and_what_is_foreign_stays() {
        let dir = tempfile::tempdir().unwrap();
        let root = RuntimeRoot::open(dir.path()).unwrap();
        let stale = dir.path().join("00000000000a");
        let foreign = dir.path().join("00000000000b");
        let unfinished = dir.path().join("00000000000c");
        let left = dir.path().join("00000000000d");
        let other = dir.path().join("notes");
        for path in [&stale, &foreign, &unfinished, &left, &other] {
            fs::create_dir(path).unwrap();
        }
        fs::create_dir(left.join("shared")).unwrap();
        fs::create_dir(left.join("export")).unwrap();
        fs::write(stale.join(RECORD), "{}").unwrap();
        fs::write(foreign.join("letter"), "dear").unwrap();
        fs::write(unfinished.join(NEW_RECORD), "{").unwrap();
        let held = root.create(&record("0123456789ab", "one")).unwrap();
        assert!(!stale.exists() && !unfinished.exists() && !left.exists());
        assert!(foreign.exists() && other.exists() && held.path().exists());
    }

    #[test]
    fn a_directory_that_others_can_write_or_that_is_too_deep_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
        assert!(RuntimeRoot::open(dir.path()).is_err());
        let deep = dir.path().join("x".repeat(100));
        assert!(matches!(RuntimeRoot::open(&deep), Err(SandboxError::PathTooLong(_))));
    }

    #[test]
    fn a_container_with_a_huge_command_line_is_listed() {
        let dir = tempfile::tempdir().unwrap();
        let root = RuntimeRoot::open(dir.path()).unwrap();
        let command = vec!["sh".into(), "\u{1}".repeat(1 << 20), "end".into()];
        let _held = root.create(&SandboxRecord { command, ..record("0123456789ab", "one") }).unwrap();
        let listed = root.list().unwrap();
        assert_eq!(listed[0].command[0], "sh");
        assert!(listed[0].command[1].len() <= MAX_COMMAND_CHARS);
    }

    #[test]
    fn one_record_is_changed_while_its_sandbox_runs_and_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let root = RuntimeRoot::open(dir.path()).unwrap();
        let running = |id: &str| SandboxRecord { status: SandboxStatus::Running, ..record(id, id) };
        let [ours, other] = ["0123456789ab", "0123456789ac"].map(running);
        let _held = [root.create(&ours).unwrap(), root.create(&other).unwrap()];
        let starting = root.create(&record("0123456789ad", "new")).unwrap();
        for id in [ours.id.as_str(), "0123456789ad", "0123456789ae", "../0123456789ab", ""] {
            root.change_record(id, |record| record.vcpus = 7).unwrap();
        }
        let vcpus: Vec<_> = root.list().unwrap().into_iter().map(|record| (record.id, record.vcpus)).collect();
        let unchanged = |id: &str| (id.to_owned(), 1);
        assert_eq!(vcpus, [(ours.id, 7), unchanged(&other.id), unchanged("0123456789ad")]);
        drop(starting);
    }

    #[test]
    fn who_is_in_a_hurry_does_not_wait_for_the_lock() {
        let dir = tempfile::tempdir().unwrap();
        let root = RuntimeRoot::open(dir.path()).unwrap();
        let lock = root.lock(LOCK_PATIENCE).unwrap();
        assert!(matches!(root.sweep(Duration::ZERO), Err(SandboxError::RuntimeDir { .. })));
        drop(lock);
        root.sweep(Duration::ZERO).unwrap();
    }

    #[test]
    fn a_spoilt_record_is_skipped() {
        let dir = tempfile::tempdir().unwrap();
        let root = RuntimeRoot::open(dir.path()).unwrap();
        let held = root.create(&record("0123456789ab", "one")).unwrap();
        fs::write(held.path().join(RECORD), "not json").unwrap();
        assert!(root.list().unwrap().is_empty());
    }

    #[test]
    fn identifiers_are_twelve_digits_and_differ() {
        let (a, b) = (new_id().unwrap(), new_id().unwrap());
        assert!(is_id(&a) && is_id(&b) && a != b);
    }
}
