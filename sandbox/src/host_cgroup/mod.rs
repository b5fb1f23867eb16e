//! A cgroup of the host for a VM's processes, so that what the VM costs is counted where its container, or its pod, belongs.
//!
//! No limit is set there: a VM's size is its limit. But limits that stand above, such as Kubernetes' of a pod, hold for it.

mod hierarchy;
mod path;

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use hierarchy::Hierarchy;

/// File with the processes of a cgroup; who is written there is moved.
const PROCESSES: &str = "cgroup.procs";
/// How long processes that end may take to leave.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(1);
const LEAVE_INTERVAL: Duration = Duration::from_millis(10);

/// A cgroup can't be used.
#[derive(Debug, Error)]
pub enum HostCgroupError {
    /// The text is no path of a cgroup.
    #[error("linux.cgroupsPath {0:?} names no cgroup")]
    Path(String),
    /// The system does not say where cgroups are.
    #[error("The host's cgroups can't be found")]
    Hierarchies(#[source] io::Error),
    /// A directory can't be made, or a process not moved there.
    #[error("cgroup {path}")]
    Use {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A cgroup: a directory in the one hierarchy of cgroup v2, or in each of v1 that counts something.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostCgroup {
    hierarchies: Vec<Hierarchy>,
    /// Relative to the hierarchies.
    path: PathBuf,
}

impl HostCgroup {
    /// The one that `linux.cgroupsPath` of an OCI runtime specification names, in either of its forms: a path, or systemd's
    /// `SLICE:PREFIX:NAME`. One that exists is somebody's, and may be one that can't have processes because it has cgroups in it:
    /// then it is `own_name` in there. `None` on a host without cgroups.
    ///
    /// Slices and scopes are directories to Hull; systemd is not asked. It leaves directories alone that it has not made.
    pub fn locate(cgroups_path: &str, own_name: &str) -> Result<Option<Self>, HostCgroupError> {
        let path = path::relative(cgroups_path).ok_or_else(|| HostCgroupError::Path(cgroups_path.into()))?;
        let hierarchies = hierarchy::of_this_host().map_err(HostCgroupError::Hierarchies)?;
        Ok((!hierarchies.is_empty()).then(|| Self { hierarchies, path }.of_its_own(own_name)))
    }

    fn of_its_own(mut self, name: &str) -> Self {
        if self.directories().any(|directory| directory.exists()) {
            self.path.push(name);
        }
        self
    }

    /// Makes what is missing of it. What is above it stays, as with other runtimes: it belongs to others too.
    pub fn create(&self) -> Result<(), HostCgroupError> {
        for hierarchy in &self.hierarchies {
            let mut directory = hierarchy.mount.clone();
            for part in &self.path {
                hierarchy.hand_down(&directory);
                directory.push(part);
                match DirBuilder::new().create(&directory) {
                    Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
                        return Err(HostCgroupError::Use { path: directory, source });
                    }
                    _ => hierarchy.inherit(&directory),
                }
            }
        }
        Ok(())
    }

    /// Moves the process `pid` into it, with all of its threads. One that has ended already is nobody's to count.
    pub fn enter(&self, pid: u32) -> Result<(), HostCgroupError> {
        for directory in self.directories() {
            match move_to(&directory, pid) {
                Err(source) if source.raw_os_error() != Some(libc::ESRCH) => {
                    return Err(HostCgroupError::Use { path: directory, source });
                }
                _ => (),
            }
        }
        Ok(())
    }

    /// Where a process is in the hierarchies of this one, so that it can be brought back there.
    pub fn places(&self, pid: u32) -> Vec<PathBuf> {
        let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        self.hierarchies.iter().map(|hierarchy| hierarchy.place_in(&text)).collect()
    }

    /// Moves the process `pid` to `places`; where that is not possible any more, to the top.
    pub fn leave(&self, pid: u32, places: &[PathBuf]) {
        for (hierarchy, place) in self.hierarchies.iter().zip(places) {
            if let Err(error) = move_to(place, pid).or_else(|_| move_to(&hierarchy.mount, pid)) {
                tracing::debug!(%error, place = %place.display(), "a process stays in its cgroup");
            }
        }
    }

    /// Removes it, as soon as the last process has left, but waits for that only a moment. It stays if it is still used.
    pub fn remove(&self) -> Result<(), HostCgroupError> {
        let deadline = Instant::now() + LEAVE_TIMEOUT;
        for directory in self.directories() {
            loop {
                match fs::remove_dir(&directory) {
                    Ok(()) => break,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                    Err(_) if Instant::now() < deadline => sleep(LEAVE_INTERVAL),
                    Err(source) => return Err(HostCgroupError::Use { path: directory, source }),
                }
            }
        }
        Ok(())
    }

    fn directories(&self) -> impl Iterator<Item = PathBuf> {
        self.hierarchies.iter().map(|hierarchy| hierarchy.mount.join(&self.path))
    }
}

fn move_to(directory: &Path, pid: u32) -> io::Result<()> {
    // One write is one process.
    OpenOptions::new().write(true).open(directory.join(PROCESSES))?.write_all(pid.to_string().as_bytes())
}

#[cfg(test)]
#[path = "host_cgroup_test.rs"]
mod tests;
