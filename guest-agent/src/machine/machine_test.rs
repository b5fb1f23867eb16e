//! With a directory that looks like /sys.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use hull_protocol::agent::{Device, DeviceKind, PlugDeviceRequest, UnplugDeviceRequest};
use tempfile::TempDir;
use ttrpc::Code;

use super::{Machine, Sys, cpus, devices};

fn put(root: &TempDir, path: &str, content: &str) {
    let path = root.path().join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

fn sys(root: &TempDir) -> Sys {
    Sys(root.path().to_owned())
}

/// A machine with a disk, an interface, a share, and a device without a driver.
fn machine() -> TempDir {
    let root = tempfile::tempdir().unwrap();
    let bus = "bus/pci/devices";
    put(&root, &format!("{bus}/0000:00:02.0/virtio1/device"), "0x0002\n");
    put(&root, &format!("{bus}/0000:00:02.0/virtio1/block/vda/serial"), "image\n");
    put(&root, &format!("{bus}/0000:00:02.0/virtio1/block/vda/dev"), "254:16\n");
    put(&root, &format!("{bus}/0000:00:03.0/virtio2/device"), "0x0001\n");
    put(&root, &format!("{bus}/0000:00:03.0/virtio2/net/eth0/address"), "52:54:00:00:00:01\n");
    put(&root, &format!("{bus}/0000:00:04.0/virtio3/device"), "0x001a\n");
    put(&root, "fs/virtiofs/1/tag", "work\n");
    symlink(root.path().join(format!("{bus}/0000:00:04.0/virtio3")), root.path().join("fs/virtiofs/1/device")).unwrap();
    put(&root, &format!("{bus}/0000:00:05.0/vendor"), "0x1af4\n");
    put(&root, &format!("{bus}/0000:00:06.0/virtio4/device"), "0x0013\n");
    put(&root, "bus/pci/rescan", "");
    root
}

fn brief(device: &Device) -> (&str, &str, &str) {
    (&device.pci_address, &device.name, &device.guest_name)
}

#[test]
fn devices_are_listed_by_address_with_what_their_drivers_call_them() {
    let root = machine();
    let listed = devices::list(&sys(&root)).unwrap();
    let brief: Vec<_> = listed.iter().map(brief).collect();
    assert_eq!(
        brief,
        [("0000:00:02.0", "image", "vda"), ("0000:00:03.0", "52:54:00:00:00:01", "eth0"), ("0000:00:04.0", "work", "")]
    );
    assert_eq!((listed[0].major, listed[0].minor), (254, 16));
}

#[test]
fn what_is_not_found_or_was_there_before_is_not_plugged() {
    let root = machine();
    let request = |address: &str, kind: DeviceKind| PlugDeviceRequest {
        kind: kind.into(),
        name: "image".into(),
        pci_address: address.into(),
        ..Default::default()
    };
    let code = |address, kind| devices::plug(&sys(&root), &request(address, kind)).unwrap_err().code;
    let drive = DeviceKind::DEVICE_KIND_DRIVE;
    assert_eq!(code("0000:00:09.0", drive), Code::NOT_FOUND);
    assert_eq!(fs::read_to_string(root.path().join("bus/pci/rescan")).unwrap(), "1");
    assert_eq!(code("0000:00:02.0", drive), Code::FAILED_PRECONDITION);
    assert_eq!(code("0000:00:09.0", DeviceKind::DEVICE_KIND_UNSPECIFIED), Code::INVALID_ARGUMENT);
    for address in ["", "../../../../x", "0000:00:/9.0", "0000:00:09.00"] {
        assert_eq!(code(address, drive), Code::INVALID_ARGUMENT, "{address}");
    }
}

#[test]
fn an_unknown_device_is_not_unplugged() {
    let root = machine();
    let request = UnplugDeviceRequest {
        kind: DeviceKind::DEVICE_KIND_DRIVE.into(),
        // There is one, of another kind.
        name: "work".into(),
        ..Default::default()
    };
    assert_eq!(devices::unplug(&sys(&root), &request).unwrap_err().code, Code::NOT_FOUND);
}

fn with_cpus(online: &str, present: &str, switches: &[u32]) -> TempDir {
    let root = tempfile::tempdir().unwrap();
    put(&root, "devices/system/cpu/online", online);
    put(&root, "devices/system/cpu/present", present);
    for cpu in switches {
        put(&root, &format!("devices/system/cpu/cpu{cpu}/online"), "");
    }
    root
}

fn switch(root: &Path, cpu: u32) -> String {
    fs::read_to_string(root.join(format!("devices/system/cpu/cpu{cpu}/online"))).unwrap()
}

#[test]
fn processors_come_from_below_and_go_from_above() {
    let root = with_cpus("0", "0-3", &[1, 2, 3]);
    cpus::set_online(&sys(&root), 3).unwrap();
    assert_eq!([1, 2, 3].map(|cpu| switch(root.path(), cpu)), ["1", "1", ""]);
    let root = with_cpus("0-3", "0-3", &[1, 2, 3]);
    cpus::set_online(&sys(&root), 2).unwrap();
    assert_eq!([1, 2, 3].map(|cpu| switch(root.path(), cpu)), ["", "0", "0"]);
}

#[test]
fn more_processors_than_there_are_or_none_are_refused() {
    let root = with_cpus("0", "0-3", &[1, 2, 3]);
    assert_eq!(cpus::set_online(&sys(&root), 5).unwrap_err().code, Code::FAILED_PRECONDITION);
    assert_eq!(cpus::set_online(&sys(&root), 0).unwrap_err().code, Code::INVALID_ARGUMENT);
    assert_eq!(switch(root.path(), 1), "");
}

#[test]
fn a_failure_puts_back_what_was_switched() {
    let root = with_cpus("0", "0-2", &[1]);
    // A directory can't be written to.
    fs::create_dir_all(root.path().join("devices/system/cpu/cpu2/online")).unwrap();
    assert_eq!(cpus::set_online(&sys(&root), 3).unwrap_err().code, Code::INTERNAL);
    assert_eq!(switch(root.path(), 1), "0");
}

#[tokio::test]
async fn nothing_piles_up_behind_a_change_that_does_not_end() {
    let root = machine();
    let machine = Machine { sys: sys(&root), limit: Duration::from_millis(50), ..Machine::new() };
    let (release, held) = std::sync::mpsc::channel::<()>();
    let stuck = machine.change(move |_| Ok(held.recv().is_ok()));
    let other = async {
        tokio::task::yield_now().await;
        machine.devices().await
    };
    let (stuck, other) = tokio::join!(stuck, other);
    assert_eq!(stuck.unwrap_err().code, Code::DEADLINE_EXCEEDED);
    assert_eq!(other.unwrap_err().code, Code::FAILED_PRECONDITION);
    drop(release);
}
