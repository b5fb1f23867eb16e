//! The devices of a VM: from their configuration to a slot on the bus, and back.

use std::fmt;
use std::io;
use std::sync::Arc;

use nix::sys::resource::{Resource, getrlimit};
use serde::Serialize;
use thiserror::Error;
use vm_memory::GuestAddress;

use crate::arch::layout;
use crate::config::{self, MachineConfig};
use crate::console::ConsoleLog;
use crate::device::Alarm;
use crate::memory::{GuestRam, HostRange, MemoryError, Reserve};
use crate::memory_slots::MemorySlots;
use crate::pci::{PciRoot, PciSlot, PlugError};
use crate::virtio::balloon::{self, Balloon, BalloonConfig};
use crate::virtio::blk::{self, Block, BlockConfig, BlockControl, BlockError};
use crate::virtio::console::{self, Console, ConsoleConfig, ConsoleError};
use crate::virtio::counters::Counters;
use crate::virtio::device::VirtioDevice;
use crate::virtio::fs::{Share, ShareError};
use crate::virtio::mem::{self, Mem, MemConfig};
use crate::virtio::net::{EngineKind, Net, NetConfig, NetControl, NetError};
use crate::virtio::pmem::{Pmem, PmemConfig, PmemError};
use crate::virtio::rng::Rng;
use crate::virtio::vsock::{self, Vsock, VsockError};
use crate::watchdog::VmWatchdog;

/// Name of the only balloon.
const BALLOON_ID: &str = "balloon";
/// Open files that aren't for shares: twice the most vsock connections, images, and the monitor's own.
const FILES_RESERVED: u64 = 6144;
/// On a host that allows few open files, shares get these all the same, and may run out of what is there.
const MIN_FILES_PER_SHARE: u64 = 512;
/// Name of the only console.
const CONSOLE_ID: &str = "console";
/// Name of the only socket device.
const VSOCK_ID: &str = "vsock";

/// Name of the only memory device.
const MEMORY_ID: &str = "memory";

/// A device can't be made, found or plugged.
#[derive(Debug, Error)]
pub enum DeviceError {
    /// No slot.
    #[error(transparent)]
    Plug(#[from] PlugError),
    /// Block device.
    #[error(transparent)]
    Block(#[from] BlockError),
    /// Network device.
    #[error(transparent)]
    Net(#[from] NetError),
    /// Share.
    #[error(transparent)]
    Share(#[from] ShareError),
    /// Console.
    #[error(transparent)]
    Console(#[from] ConsoleError),
    /// Socket device.
    #[error(transparent)]
    Vsock(#[from] VsockError),
    /// Balloon.
    #[error("Can't make the balloon")]
    Balloon(#[source] io::Error),
    /// The balloon can't be so large.
    #[error("The balloon can have at most the VM's {0} MiB")]
    BalloonTooLarge(u32),
    /// The size of an image can't be had.
    #[error("Can't get the size of drive {id}")]
    Resize {
        /// Drive.
        id: String,
        /// What the host says.
        source: io::Error,
    },
    /// Memory device.
    #[error("Can't make the memory device")]
    Memory(#[source] io::Error),
    /// Memory of a device can't be had.
    #[error(transparent)]
    Mapping(#[from] MemoryError),
    /// Persistent memory.
    #[error(transparent)]
    Pmem(#[from] PmemError),
    /// The memory device can't have so much.
    #[error("requested_size_mib must be a multiple of {block_size_mib} and at most {total_size_mib}")]
    RequestedSize {
        /// Unit.
        block_size_mib: u64,
        /// Limit.
        total_size_mib: u64,
    },
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
    /// virtio network.
    Network,
    /// virtio file system.
    Share,
    /// virtio socket.
    Vsock,
    /// virtio entropy.
    Entropy,
    /// virtio balloon.
    Balloon,
    /// virtio memory.
    Memory,
    /// virtio persistent memory.
    Pmem,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Console => "console",
            Self::Drive => "drive",
            Self::Network => "network",
            Self::Share => "share",
            Self::Vsock => "vsock",
            Self::Entropy => "entropy",
            Self::Balloon => "balloon",
            Self::Memory => "memory",
            Self::Pmem => "pmem",
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
    control: Control,
}

/// What can be asked of a plugged device, and the guest memory that it has brought.
enum Control {
    Nothing,
    Console(Arc<console::Control>),
    Drive(Arc<BlockControl>),
    Network(NetControl),
    Vsock(Arc<vsock::Control>),
    Balloon(Arc<balloon::Control>),
    Memory(Arc<mem::Control>, HostRange),
    Pmem(HostRange),
}

/// All devices of a VM.
pub struct Devices {
    root: Arc<PciRoot>,
    plugged: Vec<Plugged>,
    watchdog: Option<VmWatchdog>,
    vcpus: u8,
}

impl Devices {
    /// An empty bus of a VM with `vcpus` processors.
    pub fn new(root: Arc<PciRoot>, vcpus: u8) -> Self {
        Self { root, plugged: Vec::new(), watchdog: None, vcpus }
    }

    /// The bus.
    pub fn root(&self) -> &Arc<PciRoot> {
        &self.root
    }

    /// What is plugged, in the order of plugging.
    pub fn iter(&self) -> impl Iterator<Item = &Plugged> {
        self.plugged.iter()
    }

    /// The device with this name.
    pub fn find(&self, kind: Kind, id: &str) -> Option<&Plugged> {
        self.plugged.iter().find(|device| device.kind == kind && device.id == id)
    }

    /// Plugs the console.
    pub fn plug_console(&mut self, config: &config::Console, log: &Arc<ConsoleLog>) -> Result<PciSlot, DeviceError> {
        let console = Console::new(ConsoleConfig {
            sink: Box::new(Arc::clone(log)),
            socket: config.socket_path.as_deref(),
            size: (config.cols, config.rows),
            ports: config.ports.iter().map(|port| (port.name.as_str(), port.socket_path.as_path())).collect(),
        })?;
        let control = Control::Console(Arc::clone(console.control()));
        self.plug(Kind::Console, CONSOLE_ID, Box::new(console), control)
    }

    /// Tells the guest how many columns and rows its console has.
    pub fn set_console_size(&self, cols: u16, rows: u16) -> Result<(), DeviceError> {
        let (slot, control) = self.control(Kind::Console, CONSOLE_ID, |control| match control {
            Control::Console(control) => Some(control),
            _ => None,
        })?;
        control.set_size((cols, rows));
        self.root.config_changed(slot);
        Ok(())
    }

    /// Plugs a block device with a queue for each of the VM's processors, up to its limit.
    pub fn plug_drive(&mut self, drive: &config::Drive) -> Result<PciSlot, DeviceError> {
        let block = Block::new(&BlockConfig {
            path: drive.path_on_host.clone(),
            id: drive.drive_id.clone(),
            read_only: drive.is_read_only,
            direct: drive.direct,
            format: match drive.format {
                config::DriveFormat::Raw => blk::Format::Raw,
                config::DriveFormat::Qcow2 => blk::Format::Qcow2,
            },
            asynchronous: drive.io_engine == config::IoEngine::Async,
            queues: u16::from(self.vcpus),
            limits: drive.rate_limiter,
        })?;
        let control = Control::Drive(Arc::clone(block.control()));
        self.plug(Kind::Drive, &drive.drive_id, Box::new(block), control)
    }

    /// Looks at the size of a drive's image anew, shows it to the guest and returns it in bytes.
    pub fn resize_drive(&self, id: &str) -> Result<u64, DeviceError> {
        let (slot, control) = self.drive_in_slot(id)?;
        let bytes = control.resize().map_err(|source| DeviceError::Resize { id: id.to_owned(), source })?;
        self.root.config_changed(slot);
        Ok(bytes)
    }

    /// Changes the limits of a drive that `limits` has; the others stay.
    pub fn update_drive_limiter(&self, id: &str, limits: &config::RateLimiter) -> Result<(), DeviceError> {
        self.drive(id)?.limit(limits);
        Ok(())
    }

    /// What can be asked of a drive.
    pub fn drive(&self, id: &str) -> Result<&Arc<BlockControl>, DeviceError> {
        Ok(self.drive_in_slot(id)?.1)
    }

    fn drive_in_slot(&self, id: &str) -> Result<(PciSlot, &Arc<BlockControl>), DeviceError> {
        self.control(Kind::Drive, id, |control| match control {
            Control::Drive(control) => Some(control),
            _ => None,
        })
    }

    /// Plugs a network device with a queue pair for each of `vcpus` processors, as far as its backend has them.
    pub fn plug_interface(&mut self, interface: &config::NetworkInterface, vcpus: u8) -> Result<PciSlot, DeviceError> {
        self.refuse_twice(Kind::Network, &interface.iface_id)?;
        let net = Net::new(&NetConfig::new(interface, vcpus))?;
        let control = Control::Network(net.control());
        self.plug(Kind::Network, &interface.iface_id, Box::new(net), control)
    }

    /// Pulls the cable of a network interface out, or puts it in. A link whose other side is lost stays down.
    pub fn set_link(&self, id: &str, up: bool) -> Result<(), DeviceError> {
        let (slot, control) = self.interface(id)?;
        if control.set_link(up) {
            self.root.config_changed(slot);
        }
        Ok(())
    }

    /// Changes the limits of a network interface that are given.
    pub fn set_network_limits(
        &self,
        id: &str,
        rx: Option<&config::RateLimiter>,
        tx: Option<&config::RateLimiter>,
    ) -> Result<(), DeviceError> {
        self.interface(id)?.1.set_limits(rx, tx);
        Ok(())
    }

    /// Who moves the frames of a network interface.
    pub fn network_engine(&self, id: &str) -> Result<EngineKind, DeviceError> {
        Ok(self.interface(id)?.1.engine())
    }

    fn interface(&self, id: &str) -> Result<(PciSlot, &NetControl), DeviceError> {
        self.control(Kind::Network, id, |control| match control {
            Control::Network(control) => Some(control),
            _ => None,
        })
    }

    /// Plugs a directory, by its tag.
    pub fn plug_share(&mut self, share: &config::Share) -> Result<PciSlot, DeviceError> {
        self.plug(Kind::Share, &share.tag, Box::new(Share::new(share, files_per_share())?), Control::Nothing)
    }

    /// Plugs the socket device.
    pub fn plug_vsock(&mut self, vsock: &config::Vsock) -> Result<PciSlot, DeviceError> {
        let (rx, tx) = (vsock.rx_rate_limiter.as_ref(), vsock.tx_rate_limiter.as_ref());
        let device = Vsock::new(vsock.guest_cid, &vsock.uds_path, rx, tx)?;
        let control = Control::Vsock(Arc::clone(device.control()));
        self.plug(Kind::Vsock, VSOCK_ID, Box::new(device), control)
    }

    /// The socket device: what became of its streams, and its limits.
    pub fn vsock(&self) -> Result<&Arc<vsock::Control>, DeviceError> {
        let (_, control) = self.control(Kind::Vsock, VSOCK_ID, |control| match control {
            Control::Vsock(control) => Some(control),
            _ => None,
        })?;
        Ok(control)
    }

    /// Plugs the random number device.
    pub fn plug_entropy(&mut self) -> Result<PciSlot, DeviceError> {
        self.plug(Kind::Entropy, "entropy", Box::new(Rng::new()), Control::Nothing)
    }

    /// Plugs the balloon.
    pub fn plug_balloon(&mut self, config: &config::Balloon) -> Result<PciSlot, DeviceError> {
        let balloon = Balloon::new(BalloonConfig {
            amount_mib: config.amount_mib,
            deflate_on_oom: config.deflate_on_oom,
            stats_polling_interval_s: config.stats_polling_interval_s,
            free_page_reporting: config.free_page_reporting,
        })
        .map_err(DeviceError::Balloon)?;
        let control = Control::Balloon(Arc::clone(balloon.control()));
        self.plug(Kind::Balloon, BALLOON_ID, Box::new(balloon), control)
    }

    /// The balloon's state.
    pub fn balloon(&self) -> Result<&Arc<balloon::Control>, DeviceError> {
        let (_, control) = self.control(Kind::Balloon, BALLOON_ID, |control| match control {
            Control::Balloon(control) => Some(control),
            _ => None,
        })?;
        Ok(control)
    }

    /// Asks the guest to give back `amount_mib` of its `mem_size_mib`.
    pub fn set_balloon(&self, amount_mib: u32, mem_size_mib: u32) -> Result<(), DeviceError> {
        if amount_mib > mem_size_mib {
            return Err(DeviceError::BalloonTooLarge(mem_size_mib));
        }
        self.balloon()?.set_target_mib(amount_mib);
        self.config_changed(Kind::Balloon, BALLOON_ID);
        Ok(())
    }

    /// Plugs the memory device, behind the RAM of a `machine`.
    pub fn plug_memory(
        &mut self,
        config: &config::MemoryHotplug,
        machine: &MachineConfig,
        ram: &GuestRam,
        slots: Arc<dyn MemorySlots>,
    ) -> Result<PciSlot, DeviceError> {
        let bytes = |mib: u32| u64::from(mib) << 20;
        let ram_bytes = bytes(machine.mem_size_mib);
        let config = MemConfig {
            start: self.free_address(ram_bytes),
            total_bytes: bytes(config.total_size_mib),
            block_bytes: bytes(config.block_size_mib),
            slot_bytes: bytes(config.slot_size_mib),
            usable_unit_bytes: layout::memory_block_bytes(ram_bytes).max(bytes(config.slot_size_mib)),
        };
        let reserve = Reserve::new(config.start, config.total_bytes, machine.huge_pages)?;
        let range = reserve.host_range();
        let device = Mem::new(config, reserve, ram.clone(), slots).map_err(DeviceError::Memory)?;
        let control = Control::Memory(Arc::clone(device.control()), range);
        self.plug(Kind::Memory, MEMORY_ID, Box::new(device), control)
    }

    /// The memory device's state.
    pub fn memory(&self) -> Result<&Arc<mem::Control>, DeviceError> {
        let (_, control) = self.control(Kind::Memory, MEMORY_ID, |control| match control {
            Control::Memory(control, _) => Some(control),
            _ => None,
        })?;
        Ok(control)
    }

    /// Asks the guest to plug or unplug memory until it has so much.
    pub fn request_memory(&self, requested_size_mib: u64) -> Result<(), DeviceError> {
        let control = self.memory()?;
        if !requested_size_mib.checked_mul(1 << 20).is_some_and(|bytes| control.request(bytes)) {
            let mem::Status { block_size_mib, total_size_mib, .. } = control.status();
            return Err(DeviceError::RequestedSize { block_size_mib, total_size_mib });
        }
        // A device with a driver tells it by itself.
        if !self.find(Kind::Memory, MEMORY_ID).is_some_and(|device| self.root.is_active(device.slot)) {
            self.config_changed(Kind::Memory, MEMORY_ID);
        }
        Ok(())
    }

    /// Plugs a persistent memory device, behind the RAM of a `machine` and what is there already.
    pub fn plug_pmem(
        &mut self,
        config: &config::Pmem,
        machine: &MachineConfig,
        slots: Arc<dyn MemorySlots>,
    ) -> Result<PciSlot, DeviceError> {
        let config = PmemConfig {
            id: config.id.clone(),
            path: config.path_on_host.clone(),
            read_only: config.read_only,
            start: self.free_address(u64::from(machine.mem_size_mib) << 20),
        };
        let device = Pmem::new(&config, slots)?;
        let control = Control::Pmem(device.range());
        self.plug(Kind::Pmem, &config.id, Box::new(device), control)
    }

    /// Plugs the watchdog, which stays. Whoever waits for `alarm` calls [`VmWatchdog::check`].
    pub fn plug_watchdog(&mut self, config: &config::Watchdog, alarm: Arc<Alarm>) -> Result<(), DeviceError> {
        self.watchdog = Some(VmWatchdog::plug(&self.root, config.action, alarm)?);
        Ok(())
    }

    /// The watchdog, if there is one.
    pub fn watchdog(&self) -> Option<&VmWatchdog> {
        self.watchdog.as_ref()
    }

    /// Where the next device may have memory: never adjacent to what is there.
    fn free_address(&self, ram_bytes: u64) -> GuestAddress {
        let unit = layout::memory_block_bytes(ram_bytes);
        let behind = |range: HostRange| (range.guest.0.saturating_add(range.size) + 1).next_multiple_of(unit);
        let first = layout::hotplug_start(ram_bytes).0;
        GuestAddress(self.mapped().map(behind).max().unwrap_or(first))
    }

    /// Mappings of guest memory that devices have brought.
    pub fn mapped(&self) -> impl Iterator<Item = HostRange> + '_ {
        self.plugged.iter().filter_map(|device| match device.control {
            Control::Memory(_, range) | Control::Pmem(range) => Some(range),
            _ => None,
        })
    }

    fn config_changed(&self, kind: Kind, id: &str) {
        if let Some(device) = self.find(kind, id) {
            self.root.config_changed(device.slot);
        }
    }

    /// What can be asked of a device, as `pick` takes it out, and where it is.
    fn control<'a, T>(
        &'a self,
        kind: Kind,
        id: &str,
        pick: impl FnOnce(&'a Control) -> Option<&'a T>,
    ) -> Result<(PciSlot, &'a T), DeviceError> {
        self.find(kind, id)
            .and_then(|device| Some((device.slot, pick(&device.control)?)))
            .ok_or_else(|| DeviceError::Unknown(kind, id.to_owned()))
    }

    /// Takes a device out of the bus. The guest should have let go of it before.
    pub fn unplug(&mut self, kind: Kind, id: &str) -> Result<(), DeviceError> {
        let at = self.plugged.iter().position(|device| device.kind == kind && device.id == id);
        let at = at.ok_or_else(|| DeviceError::Unknown(kind, id.to_owned()))?;
        let device = self.plugged.remove(at);
        self.root.unplug(device.slot);
        Ok(())
    }

    fn plug(
        &mut self,
        kind: Kind,
        id: &str,
        device: Box<dyn VirtioDevice>,
        control: Control,
    ) -> Result<PciSlot, DeviceError> {
        self.refuse_twice(kind, id)?;
        let counters = Arc::clone(device.counters());
        let slot = self.root.plug(id, device)?;
        self.plugged.push(Plugged { kind, id: id.to_owned(), slot, counters, control });
        Ok(slot)
    }

    fn refuse_twice(&self, kind: Kind, id: &str) -> Result<(), DeviceError> {
        if self.find(kind, id).is_some() {
            return Err(DeviceError::Exists(kind, id.to_owned()));
        }
        Ok(())
    }
}

/// How many files a share may hold open: an equal part of what the process may, with room left for everything else.
fn files_per_share() -> u64 {
    let soft = getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft);
    let shares = config::MAX_SHARES as u64;
    (soft.saturating_sub(FILES_RESERVED) / shares).max(MIN_FILES_PER_SHARE)
}
