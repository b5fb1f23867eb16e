use super::*;
use crate::machine::tests::{Manners, Scene, World};

fn number(major: u32, minor: u32) -> DeviceNumber {
    DeviceNumber { major, minor }
}

/// What the kernel would show of one device.
fn known(dir: &Path, number: DeviceNumber, event: &str) {
    let place = dir.join(number.to_string());
    fs::create_dir_all(&place).unwrap();
    fs::write(place.join("uevent"), event).unwrap();
}

#[test]
fn a_node_that_is_something_else_is_told_from_the_device() {
    let dir = tempfile::tempdir().unwrap();
    let path = Path::new("/dev/disk");
    let find = |number| find(dir.path(), dir.path(), path, number).unwrap_err().to_string();
    let other = |node: &str| {
        let node = dir.path().join(node);
        format!("{} of the host is not the block device 7:0, which /dev/disk is to be", node.display())
    };
    assert_eq!(find(number(7, 9)), "The host has no block device 7:9, which /dev/disk is to be");
    known(dir.path(), number(7, 0), "MAJOR=7\nMINOR=0\nDEVNAME=disk\nDEVTYPE=disk\n");
    assert_eq!(find(number(7, 0)), other("disk"));
    fs::write(dir.path().join("disk"), "a file").unwrap();
    assert_eq!(find(number(7, 0)), other("disk"));
    fs::remove_file(dir.path().join("disk")).unwrap();
    std::os::unix::fs::symlink("/dev/null", dir.path().join("disk")).unwrap();
    assert_eq!(find(number(7, 0)), other("disk"));
    known(dir.path(), number(7, 0), "MAJOR=7\n");
    assert!(find(number(7, 0)).starts_with("The host has no block device 7:0"));
}

#[test]
fn names_fit_into_a_serial_number_and_tell_devices_apart() {
    let longest = Key { number: number(4095, (1 << 20) - 1), read_only: true };
    assert_eq!(longest.drive_id(), "b4095-1048575-ro");
    assert!(longest.drive_id().len() <= hull_vmm::config::MAX_DRIVE_ID_BYTES);
    assert_ne!(longest.drive_id(), Key { read_only: false, ..longest }.drive_id());
}

#[test]
fn numbers_are_those_of_linux() {
    assert_eq!(DeviceNumber::new(4095, 1_048_575), Some(number(4095, 1_048_575)));
    for (major, minor) in [(-1, 0), (0, -1), (4096, 0), (0, 1 << 20), (i64::MAX, 0)] {
        assert_eq!(DeviceNumber::new(major, minor), None);
    }
    assert_eq!(DeviceNumber::of_raw(libc::makedev(259, 70_000)), number(259, 70_000));
}

#[tokio::test]
async fn a_guest_that_never_lets_go_is_asked_for_all_devices_in_the_time_of_one() {
    let scene = Scene::new(World::with(Manners::Busy)).await;
    let keys: Vec<_> = (0..4).map(|minor| Key { number: number(7, minor), read_only: false }).collect();
    let plugged = keys.iter().map(|key| (*key, Plugged { number: number(254, 0), users: 1 })).collect();
    // One attempt at the start, and one after each pause that began before the end.
    let (pauses, machine) = (2, scene.machine().await);
    let devices = BlockDevices { machine, patience: UNPLUG_PAUSE * pauses, plugged: Mutex::new(plugged) };
    devices.release(&keys).await;
    let attempts = scene.log().len();
    assert!((keys.len()..=keys.len() * 3).contains(&attempts), "{attempts}");
    assert!(devices.plugged.lock().await.values().all(|device| device.users == 0), "they stay plugged");
    scene.behave(Manners::Good);
    devices.release(&keys[..1]).await;
    assert_eq!(devices.plugged.lock().await.len(), 3);
}
