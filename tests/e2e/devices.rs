//! Block devices of the host in the containers of a bundle.

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, symlink};
use std::path::PathBuf;

use hull_sandbox::SandboxError;
use hull_sandbox::machine::DeviceKind;
use serde_json::{Value, json};

use crate::bundle_harness::{Pod, block_on, finish};
use crate::loop_device::{LoopDevice, file_in, make_ext4};

/// A file with a name at its start, on a loop device.
fn disk(pod: &Pod, name: &str) -> (PathBuf, LoopDevice) {
    let file = pod.host(name);
    fs::write(&file, [format!("{name}\n").as_bytes(), &[0; 1 << 20]].concat()).unwrap();
    let device = LoopDevice::attach(&file);
    (file, device)
}

/// A device and a rule for it.
fn with_device<'a>(device: &LoopDevice, path: &'a str, access: &'a str) -> impl Fn(&mut Value) + use<'a> {
    let (major, minor) = device.number();
    move |spec| {
        let node =
            json!({ "path": path, "type": "b", "major": major, "minor": minor, "fileMode": 0o640, "uid": 1, "gid": 2 });
        let rule = json!({ "allow": true, "type": "b", "major": major, "minor": minor, "access": access });
        push(&mut spec["linux"]["devices"], node);
        push(&mut spec["linux"]["resources"]["devices"], rule);
    }
}

fn push(list: &mut Value, item: Value) {
    if list.is_null() {
        *list = json!([]);
    }
    list.as_array_mut().unwrap().push(item);
}

fn with_capability(spec: &mut Value, name: &str) {
    for set in ["bounding", "effective", "permitted"] {
        push(&mut spec["process"]["capabilities"][set], json!(name));
    }
}

/// Drives of the VM, as the guest sees them.
async fn drives(pod: &Pod) -> usize {
    let devices = pod.sandbox.machine().devices().await.unwrap();
    devices.iter().filter(|device| device.kind == DeviceKind::Drive).count()
}

/// The first bytes of a device.
fn start_of(device: &str) -> String {
    format!("dd if={device} bs=4 count=1 2>/dev/null")
}

#[test]
fn containers_read_and_write_block_devices_of_the_host() {
    block_on(async {
        let pod = Pod::start().await;
        let (file, one) = disk(&pod, "one");
        let (other_file, two) = disk(&pod, "two");
        let script = format!(
            "exec 2>/dev/null; stat -c '%a %u %g' /dev/disk; {}; {}
            echo changed | dd of=/dev/disk conv=notrunc; echo x | dd of=/dev/look conv=notrunc || echo refused
            busybox mknod /tmp/vda b 254 32; cat /tmp/vda || echo no other one",
            start_of("/dev/disk"),
            start_of("/dev/look")
        );
        let change = |spec: &mut Value| {
            with_device(&one, "/dev/disk", "rwm")(spec);
            with_device(&two, "/dev/look", "rm")(spec);
            with_capability(spec, "CAP_MKNOD");
        };
        let (first, streams) = pod.create("first", &script, change).await.unwrap();
        assert_eq!(drives(&pod).await, 2);

        // The same device under another name, for a container that comes and goes meanwhile.
        let script = format!("stat -c '%a %u %g %F' /mnt/same; {}", start_of("/mnt/same"));
        let second = pod.run("second", &script, with_device(&one, "/mnt/same", "rwm")).await;
        assert_eq!((second.as_str(), drives(&pod).await), ("640 1 2 block special file\none\n", 2));
        assert!(!pod.host("image/mnt/same").metadata().unwrap().file_type().is_block_device());

        // And once more, for one that may only read it.
        let script = format!("{}; echo x 2>/dev/null > /dev/same || echo refused", start_of("/dev/same"));
        let third = pod.run("third", &script, with_device(&one, "/dev/same", "r")).await;
        assert_eq!((third.as_str(), drives(&pod).await), ("one\nrefused\n", 2));

        let output = finish(&first, streams).await;
        assert_eq!(output, "640 1 2\none\ntwo\nrefused\nno other one\n");
        assert_eq!(drives(&pod).await, 0);
        drop((one, two));
        assert!(fs::read(&file).unwrap().starts_with(b"changed\n"));
        assert!(fs::read(&other_file).unwrap().starts_with(b"two\n"));
        pod.end().await;
    });
}

#[test]
fn a_file_system_that_a_container_leaves_mounted_is_whole_on_the_host() {
    block_on(async {
        let pod = Pod::start().await;
        let image = pod.host("image.ext4");
        make_ext4(&image, &pod.directory("empty"), 8 << 20);
        let device = LoopDevice::attach(&image);
        let change = |spec: &mut Value| {
            with_device(&device, "/dev/disk", "rwm")(spec);
            with_capability(spec, "CAP_SYS_ADMIN");
        };
        let script = "busybox mount -t ext4 /dev/disk /tmp && echo of the guest > /tmp/file";
        assert_eq!(pod.run("c", script, change).await, "");
        assert_eq!(drives(&pod).await, 0);
        drop(device);
        assert_eq!(file_in(&image, "/file"), "of the guest\n");
        pod.end().await;
    });
}

#[test]
fn a_container_that_is_not_made_leaves_nothing_plugged() {
    block_on(async {
        let pod = Pod::start().await;
        let (_file, device) = disk(&pod, "disk");
        let no_command = |spec: &mut Value| {
            with_device(&device, "/dev/disk", "rwm")(spec);
            spec["process"]["args"] = json!(["nothing"]);
        };
        let Err(error) = pod.create("c", "true", no_command).await else { panic!("it has no such command") };
        assert!(error.to_string().contains("nothing"), "{error}");
        assert_eq!(drives(&pod).await, 0);

        let missing = |spec: &mut Value| {
            with_device(&device, "/dev/disk", "rwm")(spec);
            push(&mut spec["linux"]["devices"], json!({ "path": "/dev/none", "type": "b", "major": 7, "minor": 1000 }));
        };
        let Err(error) = pod.create("c", "true", missing).await else { panic!("the host has no such device") };
        assert!(matches!(error, SandboxError::BlockDevice(_)), "{error}");
        assert_eq!(error.to_string(), "The host has no block device 7:1000, which /dev/none is to be");
        assert_eq!(drives(&pod).await, 0);

        // Something else is in its place.
        let moved = device.path.with_extension("moved");
        fs::rename(&device.path, &moved).unwrap();
        symlink("/dev/null", &device.path).unwrap();
        let other = pod.create("c", "true", with_device(&device, "/dev/disk", "rwm")).await;
        fs::rename(&moved, &device.path).unwrap();
        let Err(error) = other else { panic!("it is another device") };
        let expected = format!("{} of the host is not the block device", device.path.display());
        assert!(error.to_string().starts_with(&expected), "{error}");

        let script = start_of("/dev/disk");
        assert_eq!(pod.run("c", &script, with_device(&device, "/dev/disk", "r")).await, "disk");
        assert_eq!(drives(&pod).await, 0);
        drop(device);
        pod.end().await;
    });
}
