//! Block devices of the host in the guest: each is plugged once for all containers that have it, and unplugged after the last.

use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::future::join_all;
use hull_vmm::config::Drive;
use thiserror::Error;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep};

use crate::agent::AgentErrorKind;
use crate::error::SandboxError;
use crate::machine::Machine;

/// Most block devices of a sandbox, and of a container. The bus has 31 places.
pub const MAX_BLOCK_DEVICES: usize = 16;
/// What a container had mounted is let go of a little after the end of its last process. A device that is still in use after so
/// long is not tried again.
const UNPLUG_PATIENCE: Duration = Duration::from_secs(5);
const UNPLUG_PAUSE: Duration = Duration::from_millis(250);
/// What the kernel knows of block devices, by number.
const KNOWN: &str = "/sys/dev/block";
const NODES: &str = "/dev";

/// Number of a device, as in `7:0`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DeviceNumber {
    /// Which driver.
    pub major: u32,
    /// Which of its devices.
    pub minor: u32,
}

impl DeviceNumber {
    /// `None` for numbers that Linux doesn't have: 12 bits and 20 bits.
    pub(crate) fn new(major: i64, minor: i64) -> Option<Self> {
        let within = |number: i64, bits: u32| u32::try_from(number).ok().filter(|number| number >> bits == 0);
        Some(Self { major: within(major, 12)?, minor: within(minor, 20)? })
    }

    fn of_raw(raw: u64) -> Self {
        Self { major: libc::major(raw), minor: libc::minor(raw) }
    }
}

impl fmt::Display for DeviceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

/// A block device of the host can't be the guest's.
#[derive(Debug, Error)]
pub enum BlockDeviceError {
    /// The kernel doesn't know it.
    #[error("The host has no block device {number}, which {path} is to be")]
    Unknown {
        /// In the container.
        path: PathBuf,
        /// On the host.
        number: DeviceNumber,
        /// Why.
        source: io::Error,
    },
    /// Its node is missing, or is something else.
    #[error("{node} of the host is not the block device {number}, which {path} is to be")]
    OtherNode {
        /// In the container.
        path: PathBuf,
        /// On the host.
        node: PathBuf,
        /// On the host.
        number: DeviceNumber,
    },
    /// The VM has as many as it can have.
    #[error("{path} can't be plugged: the VM has {MAX_BLOCK_DEVICES} block devices already")]
    TooMany {
        /// In the container.
        path: PathBuf,
    },
    /// The VM did not get it.
    #[error("The host's {node} can't be plugged for {path}")]
    Plug {
        /// In the container.
        path: PathBuf,
        /// On the host.
        node: PathBuf,
        /// Why.
        source: Box<SandboxError>,
    },
}

/// What is plugged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    number: DeviceNumber,
    read_only: bool,
}

impl Key {
    /// Serial number.
    fn drive_id(self) -> String {
        let mode = if self.read_only { "ro" } else { "rw" };
        format!("b{}-{}-{mode}", self.number.major, self.number.minor)
    }
}

struct Plugged {
    /// In the guest.
    number: DeviceNumber,
    users: usize,
}

/// The block devices of a sandbox.
pub(crate) struct BlockDevices {
    machine: Machine,
    patience: Duration,
    /// Locked while one is plugged or unplugged.
    plugged: Mutex<HashMap<Key, Plugged>>,
}

impl BlockDevices {
    /// None is plugged yet.
    pub(crate) fn new(machine: Machine) -> Self {
        Self { machine, patience: UNPLUG_PATIENCE, plugged: Mutex::default() }
    }

    /// Has the guest have a block device of the host for one more container. The answer is what to release it by, and its number
    /// in the guest. `path` is the container's, for errors.
    pub(crate) async fn acquire(
        &self,
        path: &Path,
        number: DeviceNumber,
        read_only: bool,
    ) -> Result<(Key, DeviceNumber), SandboxError> {
        let mut plugged = self.plugged.lock().await;
        // A guest that may write a device for one container has it alone; for another one the container's rules say what it may.
        let writable = Key { number, read_only: false };
        let key = if plugged.contains_key(&writable) { writable } else { Key { number, read_only } };
        if let Some(known) = plugged.get_mut(&key) {
            known.users += 1;
            return Ok((key, known.number));
        }
        if plugged.len() >= MAX_BLOCK_DEVICES {
            return Err(BlockDeviceError::TooMany { path: path.to_owned() }.into());
        }
        let node = find(Path::new(KNOWN), Path::new(NODES), path, number)?;
        let guest = self.plug(key, &node).await.map_err(|error| BlockDeviceError::Plug {
            path: path.to_owned(),
            node,
            source: Box::new(error),
        })?;
        plugged.insert(key, Plugged { number: guest, users: 1 });
        Ok((key, guest))
    }

    async fn plug(&self, key: Key, node: &Path) -> Result<DeviceNumber, SandboxError> {
        let drive = Drive {
            drive_id: key.drive_id(),
            path_on_host: node.to_owned(),
            is_read_only: key.read_only,
            ..Drive::default()
        };
        let device = self.machine.plug_drive(&drive).await?;
        match device.number {
            Some(number) => Ok(number),
            None => {
                let _ = self.machine.unplug_drive(&drive.drive_id).await;
                Err(SandboxError::Nonsense("PlugDevice"))
            }
        }
    }

    /// One container less has it. What nobody has is unplugged, unless the guest still uses it: then it stays until another
    /// container has it or the VM ends. A guest that is slow makes this as slow as one device, however many there are.
    pub(crate) async fn release(&self, keys: &[Key]) {
        let mut plugged = self.plugged.lock().await;
        let mut unused = Vec::new();
        for key in keys {
            let Some(known) = plugged.get_mut(key) else { continue };
            known.users = known.users.saturating_sub(1);
            if known.users == 0 {
                unused.push(*key);
            }
        }
        let deadline = Instant::now() + self.patience;
        let unplugged = join_all(unused.iter().map(|key| self.unplug(*key, deadline))).await;
        for (key, result) in unused.iter().zip(unplugged) {
            match result {
                Ok(()) => drop(plugged.remove(key)),
                Err(error) => tracing::warn!(device = key.drive_id(), %error, "a block device stays plugged"),
            }
        }
    }

    /// After `deadline` there is no other attempt; one that is under way is not cut short, since then nobody would know who has
    /// the device.
    async fn unplug(&self, key: Key, deadline: Instant) -> Result<(), SandboxError> {
        loop {
            match self.machine.unplug_drive(&key.drive_id()).await {
                Err(SandboxError::Agent(error))
                    if error.kind == AgentErrorKind::FailedPrecondition && Instant::now() < deadline =>
                {
                    sleep(UNPLUG_PAUSE).await;
                }
                Err(SandboxError::NoDevice { .. }) => return Ok(()),
                result => return result,
            }
        }
    }
}

/// The node of a block device, checked to be that device. `known` and `nodes` are the kernel's directories.
fn find(known: &Path, nodes: &Path, path: &Path, number: DeviceNumber) -> Result<PathBuf, BlockDeviceError> {
    let unknown = |source| BlockDeviceError::Unknown { path: path.to_owned(), number, source };
    let event = fs::read_to_string(known.join(number.to_string()).join("uevent")).map_err(unknown)?;
    let name = event.lines().find_map(|line| line.strip_prefix("DEVNAME="));
    let name = name.ok_or_else(|| unknown(io::ErrorKind::InvalidData.into()))?;
    let node = nodes.join(name);
    let is_it = fs::symlink_metadata(&node).is_ok_and(|metadata| {
        metadata.file_type().is_block_device() && DeviceNumber::of_raw(metadata.rdev()) == number
    });
    if is_it { Ok(node) } else { Err(BlockDeviceError::OtherNode { path: path.to_owned(), node, number }) }
}

#[cfg(test)]
#[path = "block_devices_test.rs"]
mod tests;
