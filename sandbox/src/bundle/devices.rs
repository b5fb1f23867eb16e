//! Device nodes: those that the guest's kernel has as well.

use oci_spec::runtime::{LinuxDevice, LinuxDeviceType};

use super::{BundleError, check_count};

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

/// Refuses devices that only the host has.
pub(super) fn check(devices: &[LinuxDevice]) -> Result<(), BundleError> {
    check_count("linux.devices", devices.len())?;
    devices.iter().enumerate().try_for_each(|(index, device)| {
        let (major, minor) = (device.major(), device.minor());
        let known = match device.typ() {
            LinuxDeviceType::P => true,
            LinuxDeviceType::C | LinuxDeviceType::U => CHARACTER_DEVICES
                .iter()
                .any(|(known, number)| *known == major && number.is_none_or(|number| number == minor)),
            LinuxDeviceType::A | LinuxDeviceType::B => false,
        };
        if known {
            return Ok(());
        }
        let reason = format!(
            "the guest doesn't have the device {} ({} {major}:{minor}) of the host",
            device.path().display(),
            device.typ().as_str()
        );
        Err(BundleError::new(format!("linux.devices[{index}]"), reason))
    })
}
