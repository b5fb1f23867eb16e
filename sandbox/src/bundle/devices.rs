//! Device nodes: those that the guest's kernel has as well, and block devices of the host, which are plugged into the VM.

use std::path::PathBuf;

use oci_spec::runtime::{Linux, LinuxDevice, LinuxDeviceCgroup, LinuxDeviceCgroupBuilder, LinuxDeviceType, Spec};

use super::{BundleError, check_count};
use crate::block_devices::{DeviceNumber, MAX_BLOCK_DEVICES};

/// Character devices with the same numbers everywhere (Documentation/admin-guide/devices.txt), which drivers in the guest
/// serve: null, zero, full, random, urandom, tty, console, ptmx, net/tun, fuse. `None` stands for every minor number.
const CHARACTER_DEVICES: [(i64, Option<i64>); 11] = [
    (1, Some(3)),
    (1, Some(5)),
    (1, Some(7)),
    (1, Some(8)),
    (1, Some(9)),
    (5, Some(0)),
    (5, Some(1)),
    (5, Some(2)),
    (10, Some(200)),
    (10, Some(229)),
    (136, None),
];

/// A block device that a container is to have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BlockDevice {
    /// In the container.
    pub(crate) path: PathBuf,
    /// On the host.
    pub(crate) number: DeviceNumber,
    /// What its rules allow, of `r`, `w` and `m`.
    access: String,
}

impl BlockDevice {
    /// No rule allows to write it.
    pub(crate) fn is_read_only(&self) -> bool {
        !self.access.contains('w')
    }
}

/// Refuses devices that only the host has, and finds those that can be plugged. From a privileged container they are taken away: it
/// lists all that the host has, and those that nobody asked for by a rule stay on the host. Rules that speak of one block device of the host
/// are taken out: in the guest the same number is another device.
pub(super) fn translate(linux: &mut Linux) -> Result<Vec<BlockDevice>, BundleError> {
    leave_host_devices(linux);
    let devices = linux.devices().as_deref().unwrap_or_default();
    check_count("linux.devices", devices.len())?;
    let rules = linux.resources().as_ref().and_then(|resources| resources.devices().as_deref()).unwrap_or_default();
    let mut blocks = Vec::new();
    for (index, device) in devices.iter().enumerate() {
        let error = |reason| BundleError::new(format!("linux.devices[{index}]"), reason);
        if device.typ() == LinuxDeviceType::B {
            blocks.push(block_device(device, rules).map_err(error)?);
        } else if !is_everywhere(device) {
            return Err(error(format!("the guest doesn't have the device {} of the host", describe(device))));
        }
    }
    if blocks.len() > MAX_BLOCK_DEVICES {
        let reason = format!("has {} block devices; at most {MAX_BLOCK_DEVICES} are possible", blocks.len());
        return Err(BundleError::new("linux.devices", reason));
    }
    let general = rules.iter().filter(|rule| !names_block_devices(rule)).cloned().collect::<Vec<_>>();
    if let Some(resources) = linux.resources_mut() {
        resources.set_devices(Some(general));
    }
    Ok(blocks)
}

/// What makes a container privileged, in Docker and in containerd, is a rule that allows every device.
fn leave_host_devices(linux: &mut Linux) {
    let rules = linux.resources().as_ref().and_then(|resources| resources.devices().clone()).unwrap_or_default();
    let any = |number: Option<i64>| number.is_none_or(|number| number == -1);
    let allows_all = |rule: &LinuxDeviceCgroup| {
        rule.allow() && matches!(rule.typ(), None | Some(LinuxDeviceType::A)) && any(rule.major()) && any(rule.minor())
    };
    if !rules.iter().any(allows_all) {
        return;
    }
    let is_asked_for = |device: &LinuxDevice| {
        let numbers = (Some(device.major()), Some(device.minor()));
        rules.iter().any(|rule| rule.typ() == Some(device.typ()) && (rule.major(), rule.minor()) == numbers)
    };
    if let Some(devices) = linux.devices_mut() {
        devices.retain(|device| is_everywhere(device) || is_asked_for(device));
    }
}

fn is_everywhere(device: &LinuxDevice) -> bool {
    let (major, minor) = (device.major(), device.minor());
    match device.typ() {
        LinuxDeviceType::P => true,
        LinuxDeviceType::C | LinuxDeviceType::U => CHARACTER_DEVICES
            .iter()
            .any(|(known, number)| *known == major && number.is_none_or(|number| number == minor)),
        LinuxDeviceType::A | LinuxDeviceType::B => false,
    }
}

fn describe(device: &LinuxDevice) -> String {
    format!("{} ({} {}:{})", device.path().display(), device.typ().as_str(), device.major(), device.minor())
}

fn block_device(device: &LinuxDevice, rules: &[LinuxDeviceCgroup]) -> Result<BlockDevice, String> {
    let number = DeviceNumber::new(device.major(), device.minor())
        .ok_or_else(|| format!("{} has a number that no device has", describe(device)))?;
    if !device.path().is_absolute() {
        return Err(format!("{} is not an absolute path", describe(device)));
    }
    let access = "rwm".chars().filter(|letter| is_allowed(device, rules, *letter)).collect();
    Ok(BlockDevice { path: device.path().clone(), number, access })
}

/// The last rule that speaks of an access decides.
fn is_allowed(device: &LinuxDevice, rules: &[LinuxDeviceCgroup], letter: char) -> bool {
    let fits = |wanted: Option<i64>, number: i64| wanted.is_none_or(|wanted| wanted == -1 || wanted == number);
    let speaks = |rule: &&LinuxDeviceCgroup| {
        matches!(rule.typ(), None | Some(LinuxDeviceType::A | LinuxDeviceType::B))
            && fits(rule.major(), device.major())
            && fits(rule.minor(), device.minor())
            && rule.access().as_ref().is_none_or(|access| access.contains(letter))
    };
    rules.iter().rev().find(speaks).is_some_and(LinuxDeviceCgroup::allow)
}

fn names_block_devices(rule: &LinuxDeviceCgroup) -> bool {
    rule.typ() == Some(LinuxDeviceType::B) && rule.major().is_some_and(|major| major != -1)
}

/// Gives devices the numbers that they have in the guest, and allows there what was allowed on the host.
pub(super) fn renumber(spec: &mut Spec, plugged: &[(BlockDevice, DeviceNumber)]) -> Result<(), BundleError> {
    let Some(linux) = spec.linux_mut() else { return Ok(()) };
    for device in linux.devices_mut().iter_mut().flatten().filter(|device| device.typ() == LinuxDeviceType::B) {
        let host = DeviceNumber::new(device.major(), device.minor());
        if let Some((_, guest)) = plugged.iter().find(|(block, _)| Some(block.number) == host) {
            device.set_major(guest.major.into()).set_minor(guest.minor.into());
        }
    }
    let rules: Result<Vec<_>, _> = plugged.iter().filter(|(block, _)| !block.access.is_empty()).map(allow).collect();
    let rules = rules.map_err(|error| BundleError::new("linux.resources.devices", error.to_string()))?;
    let resources = linux.resources_mut().get_or_insert_default();
    resources.devices_mut().get_or_insert_default().extend(rules);
    Ok(())
}

fn allow((block, guest): &(BlockDevice, DeviceNumber)) -> Result<LinuxDeviceCgroup, oci_spec::OciSpecError> {
    LinuxDeviceCgroupBuilder::default()
        .allow(true)
        .typ(LinuxDeviceType::B)
        .major(guest.major)
        .minor(guest.minor)
        .access(block.access.clone())
        .build()
}
