//! Devices on the PCI bus that come and go: what the kernel says of them in sysfs.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hull_protocol::agent::{Device, DeviceKind, PlugDeviceRequest, UnplugDeviceRequest};
use ttrpc::Code;

use super::Sys;
use super::uevents::Uevents;
use super::usage;
use crate::failure::{Context, Failure};

/// How long a driver may take to serve a device, or to let go of it.
const DRIVER_TIMEOUT: Duration = Duration::from_secs(10);
/// Most entries of a directory that are looked at: a bus has 32 devices.
const MAX_ENTRIES: usize = 256;

// Device types of virtio 1.2, section 5.
const VIRTIO_ID_NET: u32 = 1;
const VIRTIO_ID_BLOCK: u32 = 2;
const VIRTIO_ID_FS: u32 = 26;

/// Finds the device that the host has put at an address, and waits for its driver.
pub fn plug(sys: &Sys, request: &PlugDeviceRequest) -> Result<Device, Failure> {
    let kind = known(request.kind.enum_value_or_default())?;
    let address = checked_address(&request.pci_address)?;
    let place = sys.pci_device(address);
    if place.exists() {
        return Err(Failure::precondition(format!("there was a device at {address} before")));
    }
    let events = Uevents::listen()?;
    let rescan = sys.0.join("bus/pci/rescan");
    fs::write(&rescan, "1").context("look for new devices")?;
    let served = await_driver(sys, &events, address).and_then(|device| {
        if device.kind.enum_value_or_default() == kind && device.name == request.name {
            return Ok(device);
        }
        Err(Failure::precondition(format!("the device at {address} is {:?}, not {:?}", device.name, request.name)))
    });
    if served.is_err() && place.exists() {
        let _ = remove(&events, &place);
    }
    served
}

fn await_driver(sys: &Sys, events: &Uevents, address: &str) -> Result<Device, Failure> {
    let place = sys.pci_device(address);
    let served = events.wait(DRIVER_TIMEOUT, || match place.exists() {
        true => Ok(look(sys, &place)),
        // The kernel has looked everywhere when the write is done.
        false => Err(Failure::not_found(format!("there is no device at {address}"))),
    })?;
    served.ok_or_else(|| {
        let text = format!("no driver serves the device at {address} after {} s", DRIVER_TIMEOUT.as_secs());
        Failure::new(Code::DEADLINE_EXCEEDED, text)
    })
}

/// Lets go of a device that isn't in use.
pub fn unplug(sys: &Sys, request: &UnplugDeviceRequest) -> Result<Device, Failure> {
    let kind = known(request.kind.enum_value_or_default())?;
    let device = list(sys)?
        .into_iter()
        .find(|device| device.kind.enum_value_or_default() == kind && device.name == request.name)
        .ok_or_else(|| Failure::not_found(format!("the guest has no such device {:?}", request.name)))?;
    // Holding the claim until the device is gone keeps others from beginning to use it.
    let _claim = usage::claim(kind, &device)?;
    let events = Uevents::listen()?;
    remove(&events, &sys.pci_device(checked_address(&device.pci_address)?))?;
    Ok(device)
}

fn remove(events: &Uevents, place: &Path) -> Result<(), Failure> {
    fs::write(place.join("remove"), "1").context("let go of the device")?;
    let gone = events.wait(DRIVER_TIMEOUT, || Ok((!place.exists()).then_some(())))?;
    gone.ok_or_else(|| Failure::new(Code::DEADLINE_EXCEEDED, "the driver does not let go of the device"))
}

/// All devices that have a driver and are of a kind that can come and go, by address.
pub fn list(sys: &Sys) -> Result<Vec<Device>, Failure> {
    let bus = sys.0.join("bus/pci/devices");
    let mut devices: Vec<_> =
        entries(&bus).context("list devices")?.iter().filter_map(|place| look(sys, place)).collect();
    devices.sort_by(|a, b| a.pci_address.cmp(&b.pci_address));
    Ok(devices)
}

fn known(kind: DeviceKind) -> Result<DeviceKind, Failure> {
    match kind {
        DeviceKind::DEVICE_KIND_UNSPECIFIED => Err(Failure::invalid("no such kind of device can come and go")),
        kind => Ok(kind),
    }
}

/// As Linux writes it; nothing else may become a part of a path.
fn checked_address(address: &str) -> Result<&str, Failure> {
    let digits = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    let right = address.len() == 12
        && address.bytes().enumerate().all(|(index, byte)| match index {
            4 | 7 => byte == b':',
            10 => byte == b'.',
            _ => digits(byte),
        });
    if right { Ok(address) } else { Err(Failure::invalid(format!("{address:?} is no PCI address"))) }
}

/// What the driver of the PCI device in the directory `place` says, once there is one.
fn look(sys: &Sys, place: &Path) -> Option<Device> {
    let pci_address = place.file_name()?.to_str()?.to_owned();
    let virtio = entries(place).ok()?.into_iter().find(|path| named(path, "virtio"))?;
    let mut number = (0, 0);
    let (kind, name, guest_name) = match hexadecimal(&read(&virtio.join("device"))?)? {
        VIRTIO_ID_BLOCK => {
            let disk = only_entry(&virtio.join("block"))?;
            number = device_number(&read(&disk.join("dev"))?)?;
            (DeviceKind::DEVICE_KIND_DRIVE, read(&disk.join("serial"))?, file_name(&disk)?)
        }
        VIRTIO_ID_NET => {
            let interface = only_entry(&virtio.join("net"))?;
            (DeviceKind::DEVICE_KIND_NETWORK, read(&interface.join("address"))?, file_name(&interface)?)
        }
        VIRTIO_ID_FS => (DeviceKind::DEVICE_KIND_SHARE, tag(sys, &virtio)?, String::new()),
        _ => return None,
    };
    let (major, minor) = number;
    Some(Device { kind: kind.into(), name, pci_address, guest_name, major, minor, ..Default::default() })
}

/// As the kernel writes it: "254:16".
fn device_number(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// The tag of a shared file system stands with the file system, which names its device.
fn tag(sys: &Sys, virtio: &Path) -> Option<String> {
    let device = fs::canonicalize(virtio).ok()?;
    let systems = entries(&sys.0.join("fs/virtiofs")).ok()?;
    let of_device = |system: &&PathBuf| fs::canonicalize(system.join("device")).is_ok_and(|other| other == device);
    read(&systems.iter().find(of_device)?.join("tag"))
}

impl Sys {
    fn pci_device(&self, address: &str) -> PathBuf {
        self.0.join("bus/pci/devices").join(address)
    }
}

fn entries(directory: &Path) -> std::io::Result<Vec<PathBuf>> {
    Ok(fs::read_dir(directory)?.take(MAX_ENTRIES).flatten().map(|entry| entry.path()).collect())
}

fn only_entry(directory: &Path) -> Option<PathBuf> {
    entries(directory).ok()?.into_iter().next()
}

fn named(path: &Path, prefix: &str) -> bool {
    path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(prefix.as_bytes()))
}

fn file_name(path: &Path) -> Option<String> {
    Some(path.file_name()?.to_str()?.to_owned())
}

fn read(path: &Path) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim_end().to_owned())
}

fn hexadecimal(text: &str) -> Option<u32> {
    u32::from_str_radix(text.strip_prefix("0x")?, 16).ok()
}
