//! Device nodes outside of `/dev`.
//!
//! libcontainer makes nodes below a container's `/dev` only, and a node in its root file system would be one on the host too. So
//! those that belong elsewhere are made in the guest's own `/dev` and bound to their places.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown};
use std::path::Path;

use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use oci_spec::runtime::{LinuxDevice, LinuxDeviceType, Mount, MountBuilder, Spec};

use crate::failure::{Context, Failure};
use crate::helper::specification::map_id;

const DEV: &str = "/dev";
/// What a node without permissions in the specification has.
const DEFAULT_MODE: u32 = 0o666;

/// Makes the nodes of the specification that are not below `/dev` in `directory`, and mounts of them.
pub fn bind_elsewhere(spec: &mut Spec, directory: &Path) -> Result<(), Failure> {
    let Some(mut linux) = spec.linux().clone() else { return Ok(()) };
    let devices = linux.devices_mut().take().unwrap_or_default();
    let (below, elsewhere): (Vec<_>, Vec<_>) = devices.into_iter().partition(|device| device.path().starts_with(DEV));
    if elsewhere.is_empty() {
        return Ok(());
    }
    DirBuilder::new().recursive(true).mode(0o711).create(directory).context("make a directory for devices")?;
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    for (number, device) in elsewhere.iter().enumerate() {
        let node = directory.join(number.to_string());
        let owner = (
            map_id(linux.uid_mappings().as_ref(), device.uid().unwrap_or(0)),
            map_id(linux.gid_mappings().as_ref(), device.gid().unwrap_or(0)),
        );
        make(device, &node, owner).context(format!("make the device {}", device.path().display()))?;
        mounts.push(bind(&node, device.path())?);
    }
    linux.set_devices(Some(below));
    spec.set_linux(Some(linux)).set_mounts(Some(mounts));
    Ok(())
}

/// Removes the nodes of a container, if there are any.
pub fn remove(directory: &Path) -> std::io::Result<()> {
    fs::remove_dir_all(directory)
}

fn make(device: &LinuxDevice, node: &Path, (uid, gid): (u32, u32)) -> std::io::Result<()> {
    let kind = match device.typ() {
        LinuxDeviceType::B => SFlag::S_IFBLK,
        LinuxDeviceType::P => SFlag::S_IFIFO,
        LinuxDeviceType::C | LinuxDeviceType::U | LinuxDeviceType::A => SFlag::S_IFCHR,
    };
    let number = |number: i64| u64::try_from(number).unwrap_or_default();
    mknod(node, kind, Mode::empty(), makedev(number(device.major()), number(device.minor())))?;
    chown(node, Some(uid), Some(gid))?;
    let mode = device.file_mode().unwrap_or(DEFAULT_MODE) & 0o7777;
    fs::set_permissions(node, fs::Permissions::from_mode(mode))
}

fn bind(node: &Path, destination: &Path) -> Result<Mount, Failure> {
    MountBuilder::default()
        .destination(destination)
        .typ("bind")
        .source(node)
        .options(vec!["bind".to_owned(), "nosuid".to_owned()])
        .build()
        .map_err(Failure::internal)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};

    use serde_json::json;

    use super::*;

    fn spec(devices: serde_json::Value) -> Spec {
        let spec = json!({ "ociVersion": "1.0.2", "mounts": [], "linux": { "devices": devices } });
        serde_json::from_value(spec).unwrap()
    }

    #[test]
    fn what_belongs_elsewhere_is_made_and_bound() {
        let dir = tempfile::tempdir().unwrap();
        let nodes = dir.path().join("c1");
        let (uid, gid) = (nix::unistd::getuid().as_raw(), nix::unistd::getgid().as_raw());
        // A pipe, because that everybody may make.
        let pipe = json!({ "path": "/mnt/pipe", "type": "p", "fileMode": 0o640, "uid": uid, "gid": gid });
        let usual = json!({ "path": "/dev/null", "type": "c", "major": 1, "minor": 3 });
        let mut spec = spec(json!([usual, pipe]));
        bind_elsewhere(&mut spec, &nodes).unwrap();
        let left = spec.linux().as_ref().unwrap().devices().as_ref().unwrap();
        assert_eq!(left.iter().map(|device| device.path().to_str().unwrap()).collect::<Vec<_>>(), ["/dev/null"]);
        let mounts = spec.mounts().as_ref().unwrap();
        assert_eq!((mounts.len(), mounts[0].destination().to_str()), (1, Some("/mnt/pipe")));
        let node = fs::metadata(mounts[0].source().as_ref().unwrap()).unwrap();
        assert!(node.file_type().is_fifo());
        assert_eq!((node.mode() & 0o7777, node.uid(), node.gid()), (0o640, uid, gid));
        remove(&nodes).unwrap();
        assert!(!nodes.exists());
    }

    #[test]
    fn without_such_devices_nothing_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let mut spec = spec(json!([{ "path": "/dev/null", "type": "c", "major": 1, "minor": 3 }]));
        let before = spec.clone();
        bind_elsewhere(&mut spec, &dir.path().join("c1")).unwrap();
        assert_eq!(spec, before);
        assert!(!dir.path().join("c1").exists());
    }
}
