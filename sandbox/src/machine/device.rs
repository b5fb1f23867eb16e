//! Devices that are plugged and unplugged.

use std::fmt;

use hull_protocol::agent::{self, Empty, PlugDeviceRequest, UnplugDeviceRequest};
use hull_vmm::config::{Drive, MacAddress, NetworkInterface, Share, is_identifier};
use serde::Serialize;
use serde_json::Value;

use super::Machine;
use crate::agent::AgentErrorKind;
use crate::block_devices::DeviceNumber;
use crate::control::ControlError;
use crate::error::SandboxError;
use crate::random;
use crate::text::one_line;

/// The guest lists at most as many devices as the bus has places.
const MAX_DEVICES: usize = 32;
const MAX_NAME_BYTES: usize = 64;

/// What a device is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceKind {
    /// A disk.
    Drive,
    /// A network interface.
    Network,
    /// A shared directory.
    Share,
}

impl DeviceKind {
    /// Where the monitor keeps them.
    const fn path(self) -> &'static str {
        match self {
            Self::Drive => "/drives",
            Self::Network => "/network-interfaces",
            Self::Share => "/shares",
        }
    }

    const fn message(self) -> agent::DeviceKind {
        match self {
            Self::Drive => agent::DeviceKind::DEVICE_KIND_DRIVE,
            Self::Network => agent::DeviceKind::DEVICE_KIND_NETWORK,
            Self::Share => agent::DeviceKind::DEVICE_KIND_SHARE,
        }
    }
}

impl fmt::Display for DeviceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Drive => "drive",
            Self::Network => "network interface",
            Self::Share => "share",
        })
    }
}

/// A device as the guest sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Device {
    /// What it is.
    pub kind: DeviceKind,
    /// Serial number, hardware address or tag.
    pub name: String,
    /// Its place on the bus, as in `0000:00:05.0`.
    pub pci_address: String,
    /// What the guest calls it, as in `vdb`; empty for a share.
    pub guest_name: String,
    /// Number of its node in the guest, if it is a drive.
    #[serde(skip)]
    pub number: Option<DeviceNumber>,
}

impl Device {
    /// What an agent says, in bounded single lines. `None` for a kind that isn't known here.
    fn from_message(message: agent::Device) -> Option<Self> {
        let kind = match message.kind.enum_value().ok()? {
            agent::DeviceKind::DEVICE_KIND_DRIVE => DeviceKind::Drive,
            agent::DeviceKind::DEVICE_KIND_NETWORK => DeviceKind::Network,
            agent::DeviceKind::DEVICE_KIND_SHARE => DeviceKind::Share,
            agent::DeviceKind::DEVICE_KIND_UNSPECIFIED => return None,
        };
        let short = |text: &str| one_line(text, MAX_NAME_BYTES);
        let number = DeviceNumber::new(message.major.into(), message.minor.into()).filter(|number| number.major > 0);
        Some(Self {
            kind,
            name: short(&message.name),
            pci_address: short(&message.pci_address),
            guest_name: short(&message.guest_name),
            number: number.filter(|_| kind == DeviceKind::Drive),
        })
    }
}

impl Machine {
    /// The devices that can be plugged and unplugged, those from the start too, as the guest sees them.
    pub async fn devices(&self) -> Result<Vec<Device>, SandboxError> {
        let request = Empty::default();
        let answer = self.call("ListDevices", self.agent.list_devices(self.context(), &request)).await?;
        Ok(answer.devices.into_iter().take(MAX_DEVICES).filter_map(Device::from_message).collect())
    }

    /// Plugs a drive. If the guest doesn't take it, it is unplugged again.
    pub async fn plug_drive(&self, drive: &Drive) -> Result<Device, SandboxError> {
        self.plug(DeviceKind::Drive, &drive.drive_id, &drive.drive_id, drive).await
    }

    /// Unplugs a drive that the guest doesn't use.
    pub async fn unplug_drive(&self, id: &str) -> Result<(), SandboxError> {
        self.unplug(DeviceKind::Drive, id, id).await
    }

    /// Plugs a network interface. The guest knows it by its hardware address: without one it gets one made up. If the guest
    /// doesn't take it, it is unplugged again.
    pub async fn plug_network(&self, interface: NetworkInterface) -> Result<Device, SandboxError> {
        let address = match interface.guest_mac {
            Some(address) => address,
            None => made_up_address()?,
        };
        let interface = NetworkInterface { guest_mac: Some(address), ..interface };
        self.plug(DeviceKind::Network, &interface.iface_id, &address.to_string(), &interface).await
    }

    /// Unplugs a network interface, given the monitor's name and the hardware address of it.
    pub async fn unplug_network(&self, id: &str, address: &str) -> Result<(), SandboxError> {
        self.unplug(DeviceKind::Network, id, address).await
    }

    /// Plugs a shared directory, which the guest can mount then. If the guest doesn't take it, it is unplugged again.
    pub async fn plug_share(&self, share: &Share) -> Result<Device, SandboxError> {
        self.plug(DeviceKind::Share, &share.tag, &share.tag, share).await
    }

    /// Unplugs a shared directory that is mounted nowhere in the guest.
    pub async fn unplug_share(&self, tag: &str) -> Result<(), SandboxError> {
        self.unplug(DeviceKind::Share, tag, tag).await
    }

    /// `id` is the monitor's name of the device, `name` the guest's.
    async fn plug(
        &self,
        kind: DeviceKind,
        id: &str,
        name: &str,
        config: &impl Serialize,
    ) -> Result<Device, SandboxError> {
        let path = resource(kind, id)?;
        let answer = self.control.put(&path, config).await?;
        let address = answer.get("pci_address").and_then(Value::as_str).unwrap_or_default();
        let error = match self.acknowledge(kind, name, address).await {
            Ok(device) => return Ok(device),
            Err(error) => error,
        };
        let what = format!("{kind} {id}");
        match self.take_back(kind, name, &path).await {
            Ok(()) => Err(SandboxError::NotTaken { what, source: Box::new(error) }),
            Err(left) => {
                tracing::warn!(%left, "an undone change is not undone");
                Err(SandboxError::NotTakenBack { what, source: Box::new(error) })
            }
        }
    }

    async fn acknowledge(&self, kind: DeviceKind, name: &str, pci_address: &str) -> Result<Device, SandboxError> {
        let request = PlugDeviceRequest {
            kind: kind.message().into(),
            name: name.into(),
            pci_address: pci_address.into(),
            ..Default::default()
        };
        let answer = self.call("PlugDevice", self.agent.plug_device(self.context(), &request)).await?;
        let device = Device::from_message(answer).filter(|device| device.kind == kind && device.name == name);
        device.ok_or(SandboxError::Nonsense("PlugDevice"))
    }

    /// Undoes the monitor's side. A guest that was only slow may have the device by now: it has to let go of it, and gets no
    /// say if it doesn't answer.
    async fn take_back(&self, kind: DeviceKind, name: &str, path: &str) -> Result<(), ControlError> {
        let in_use = |error: &ControlError| error.status == Some(409);
        match self.control.delete(path).await {
            Err(error) if in_use(&error) => {
                let _ = self.let_go(kind, name).await;
                self.control.delete(&format!("{path}?force=true")).await.map(drop)
            }
            // Gone already.
            Err(ControlError { status: Some(404), .. }) => Ok(()),
            other => other.map(drop),
        }
    }

    async fn unplug(&self, kind: DeviceKind, id: &str, name: &str) -> Result<(), SandboxError> {
        let path = resource(kind, id)?;
        let device = match self.let_go(kind, name).await {
            Ok(device) => Some(device),
            // The guest may have let go of it on its own; the monitor knows whether there is one.
            Err(SandboxError::Agent(error)) if error.kind == AgentErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        match (self.control.delete(&path).await, device) {
            (Ok(_), _) => Ok(()),
            (Err(ControlError { status: Some(404), .. }), _) => {
                Err(SandboxError::NoDevice { what: format!("{kind} {id}") })
            }
            (Err(error), device) => {
                if let Some(device) = device {
                    // It stays: the guest shall have it as before.
                    let _ = self.acknowledge(kind, name, &device.pci_address).await;
                }
                Err(error.into())
            }
        }
    }

    async fn let_go(&self, kind: DeviceKind, name: &str) -> Result<agent::Device, SandboxError> {
        let request = UnplugDeviceRequest { kind: kind.message().into(), name: name.into(), ..Default::default() };
        self.call("UnplugDevice", self.agent.unplug_device(self.context(), &request)).await
    }
}

/// A locally administered unicast address.
fn made_up_address() -> Result<MacAddress, SandboxError> {
    let mut bytes = [0; 6];
    random::fill(&mut bytes)?;
    let [first, rest @ ..] = bytes;
    let [b, c, d, e, f] = rest;
    Ok(MacAddress([first & 0xfc | 2, b, c, d, e, f]))
}

/// The device's path in the control API. Its name becomes a part of it.
fn resource(kind: DeviceKind, id: &str) -> Result<String, SandboxError> {
    if !is_identifier(id, MAX_NAME_BYTES) {
        return Err(SandboxError::NoDevice { what: format!("{kind} {:?}", one_line(id, MAX_NAME_BYTES)) });
    }
    Ok(format!("{}/{id}", kind.path()))
}
