//! The devices of a VM: from their configuration to a slot on the bus, and back.

use std::fmt;
use std::sync::Arc;

use serde::Serialize;
use thiserror::Error;

use crate::config;
use crate::console::ConsoleLog;
use crate::pci::{PciRoot, PciSlot, PlugError};
use crate::virtio::blk::{Block, BlockConfig, BlockError};
use crate::virtio::console::Console;
use crate::virtio::counters::Counters;
use crate::virtio::device::VirtioDevice;
use crate::virtio::rng::Rng;
use crate::virtio::vsock::{Vsock, VsockError};

/// A device can't be made, found or plugged.
#[derive(Debug, Error)]
pub enum DeviceError {
    /// No slot.
    #[error(transparent)]
    Plug(#[from] PlugError),
    /// Block device.
    #[error(transparent)]
    Block(#[from] BlockError),
    /// Socket device.
    #[error(transparent)]
    Vsock(#[from] VsockError),
    /// Another one has the name.
    #[error("There is a {0} device {1} already")]
    Exists(Kind, String),
    /// None has the name.
    #[error("There is no {0} device {1}")]
    Unknown(Kind, String),
}

/// What a device is, as it is called in the control API and in metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// virtio console.
    Console,
    /// virtio block.
    Drive,
    /// virtio socket.
    Vsock,
    /// virtio entropy.
    Entropy,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Console => "console",
            Self::Drive => "drive",
            Self::Vsock => "vsock",
            Self::Entropy => "entropy",
        })
    }
}

/// A device on the bus.
pub struct Plugged {
    /// What it is.
    pub kind: Kind,
    /// Its name among those of its kind.
    pub id: String,
    /// Where it is.
    pub slot: PciSlot,
    /// What it has done so far.
    pub counters: Arc<Counters>,
}

/// All devices of a VM.
pub struct Devices {
    root: Arc<PciRoot>,
    plugged: Vec<Plugged>,
}

impl Devices {
    /// An empty bus.
    pub fn new(root: Arc<PciRoot>) -> Self {
        Self { root, plugged: Vec::new() }
    }

    /// The bus.
    pub fn root(&self) -> &Arc<PciRoot> {
        &self.root
    }

    /// What is plugged, in the order of plugging.
    pub fn iter(&self) -> impl Iterator<Item = &Plugged> {
        self.plugged.iter()
    }

    /// Plugs the console.
    pub fn plug_console(&mut self, log: &Arc<ConsoleLog>) -> Result<PciSlot, DeviceError> {
        self.plug(Kind::Console, "console", Box::new(Console::new(Box::new(Arc::clone(log)))))
    }

    /// Plugs a block device.
    pub fn plug_drive(&mut self, drive: &config::Drive) -> Result<PciSlot, DeviceError> {
        let block = Block::new(&BlockConfig {
            path: drive.path_on_host.clone(),
            id: drive.drive_id.clone(),
            read_only: drive.is_read_only,
        })?;
        self.plug(Kind::Drive, &drive.drive_id, Box::new(block))
    }

    /// Plugs the socket device.
    pub fn plug_vsock(&mut self, vsock: &config::Vsock) -> Result<PciSlot, DeviceError> {
        self.plug(Kind::Vsock, "vsock", Box::new(Vsock::new(vsock.guest_cid, &vsock.uds_path)?))
    }

    /// Plugs the random number device.
    pub fn plug_entropy(&mut self) -> Result<PciSlot, DeviceError> {
        self.plug(Kind::Entropy, "entropy", Box::new(Rng::new()))
    }

    /// Takes a device out of the bus. The guest should have let go of it before.
    pub fn unplug(&mut self, kind: Kind, id: &str) -> Result<(), DeviceError> {
        let at = self.plugged.iter().position(|device| device.kind == kind && device.id == id);
        let at = at.ok_or_else(|| DeviceError::Unknown(kind, id.to_owned()))?;
        let device = self.plugged.remove(at);
        self.root.unplug(device.slot);
        Ok(())
    }

    fn plug(&mut self, kind: Kind, id: &str, device: Box<dyn VirtioDevice>) -> Result<PciSlot, DeviceError> {
        if self.plugged.iter().any(|other| other.kind == kind && other.id == id) {
            return Err(DeviceError::Exists(kind, id.to_owned()));
        }
        let counters = Arc::clone(device.counters());
        let slot = self.root.plug(id, device)?;
        self.plugged.push(Plugged { kind, id: id.to_owned(), slot, counters });
        Ok(slot)
    }
}
