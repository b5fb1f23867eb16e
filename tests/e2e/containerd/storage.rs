//! Where root file systems are stored: snapshotters whose snapshots are block devices or images of them, and disks that are full.

use std::fs;
use std::path::{Path, PathBuf};

use super::grpc;
use super::harness::{Containerd, HULL, IMAGE, RUNC};
use super::message::{bytes, message, text};
use crate::loop_device::{LoopDevice, attached, file_in, make_ext4};

/// A mount as a snapshotter describes it (`containerd.types.Mount`).
struct Root<'a> {
    fs_type: &'a str,
    source: &'a Path,
    options: &'a [&'a str],
}

/// An ext4 image with busybox in it.
fn image(containerd: &Containerd) -> PathBuf {
    let (tree, image) = (containerd.path("tree"), containerd.path("image.ext4"));
    fs::create_dir_all(tree.join("bin")).unwrap();
    for directory in ["dev", "proc", "sys", "run"] {
        fs::create_dir(tree.join(directory)).unwrap();
    }
    fs::copy("/bin/busybox", tree.join("bin/busybox")).unwrap();
    std::os::unix::fs::symlink("busybox", tree.join("bin/sh")).unwrap();
    make_ext4(&image, &tree, 24 << 20);
    image
}

/// A container whose task is made with `root` instead of a snapshot, as a snapshotter of another kind would have it.
struct OnRoot<'a> {
    containerd: &'a Containerd,
    id: String,
}

impl<'a> OnRoot<'a> {
    fn new(containerd: &'a Containerd, script: &str) -> Self {
        let id = containerd.id();
        let create = ["container", "create", "--runtime", HULL, "--", IMAGE, &id, "/bin/sh", "-c", script];
        containerd.ctr(create).ok();
        Self { containerd, id }
    }

    /// `containerd.services.tasks.v1.Tasks/Create`.
    fn create(&self, root: &Root) -> Result<(), String> {
        let options: Vec<u8> = root.options.iter().flat_map(|option| text(4, option)).collect();
        let mount = message(&[text(1, root.fs_type), text(2, root.source.to_str().unwrap()), options]);
        let request = message(&[text(1, &self.id), bytes(3, &mount)]);
        grpc::call(self.containerd, "default", "containerd.services.tasks.v1.Tasks/Create", &request).map(drop)
    }

    /// Runs it to its end and deletes the task; returns its status.
    fn finish(&self) -> i32 {
        grpc::call(self.containerd, "default", "containerd.services.tasks.v1.Tasks/Start", &text(1, &self.id)).unwrap();
        self.containerd.wait_for_status(&self.id, "STOPPED");
        self.containerd.delete_task(&self.id).unwrap_or(0)
    }
}

impl Drop for OnRoot<'_> {
    fn drop(&mut self) {
        self.containerd.ctr(["container", "rm", &self.id]);
    }
}

#[test]
fn a_root_file_system_is_an_image_or_a_block_device() {
    let containerd = Containerd::start();
    let image = image(&containerd);
    let on_loop = Root { fs_type: "ext4", source: &image, options: &["loop"] };

    let written = OnRoot::new(&containerd, "echo $0 from the guest > /written; exit 7");
    written.create(&on_loop).unwrap();
    assert_eq!(attached(&containerd.path("")).len(), 1);
    // The image is in use, but others may have it too, as with any mount.
    assert_eq!(written.finish(), 7);
    assert_eq!(attached(&containerd.path("")), Vec::<String>::new(), "the loop device is free");
    assert_eq!(file_in(&image, "/written"), "/bin/sh from the guest\n");

    let read_only = OnRoot::new(&containerd, "echo x > /more || exit 30");
    read_only.create(&Root { options: &["loop", "ro"], ..on_loop }).unwrap();
    assert_eq!(read_only.finish(), 30);

    // A device that is there already, as those of devmapper.
    let device = LoopDevice::attach(&image);
    let on_device = Root { fs_type: "ext4", source: &device.path, options: &["rw"] };
    let again = OnRoot::new(&containerd, "read line < /written && echo $line again > /again");
    again.create(&on_device).unwrap();
    assert_eq!(again.finish(), 0);
    drop(device);
    assert_eq!(file_in(&image, "/again"), "/bin/sh from the guest again\n");
    containerd.assert_nothing_left();
}

#[test]
fn an_image_that_is_none_is_refused_and_its_device_is_free() {
    let containerd = Containerd::start();
    let image = containerd.path("none.ext4");
    fs::write(&image, vec![0; 1 << 20]).unwrap();
    let container = OnRoot::new(&containerd, "true");
    let refused = container.create(&Root { fs_type: "ext4", source: &image, options: &["loop"] }).unwrap_err();
    assert!(refused.contains("ext4 file system") && refused.contains("none.ext4"), "{refused}");
    let missing = containerd.path("missing.ext4");
    let refused = container.create(&Root { fs_type: "ext4", source: &missing, options: &["loop"] }).unwrap_err();
    assert!(refused.contains("missing.ext4") && refused.contains("No such file"), "{refused}");
    assert_eq!(attached(&containerd.path("")), Vec::<String>::new());
    containerd.assert_nothing_left();
}

#[test]
fn a_device_that_is_asked_for_is_the_containers() {
    let containerd = Containerd::start();
    for runtime in [RUNC, HULL] {
        let disk = containerd.path("disk");
        fs::write(&disk, [b"of the host\n".as_slice(), &[0; 1 << 20]].concat()).unwrap();
        let device = LoopDevice::attach(&disk);
        let path = device.path.to_str().unwrap();
        let script = format!("head -n 1 {path}; echo of the guest | dd of={path} conv=notrunc 2>/dev/null; exit 3");
        let run = containerd.run(runtime, &["--device", path], &["sh", "-c", &script]);
        assert_eq!((run.code, run.text().as_str()), (Some(3), "of the host\n"), "{runtime}: {run:?}");
        // Nothing of it is left in a cache, and nobody has it open.
        drop(device);
        assert!(fs::read(&disk).unwrap().starts_with(b"of the guest\n"), "{runtime}");
    }
    let refused = containerd.run(HULL, &["--device", "/dev/kvm"], &["true"]);
    assert!(refused.code != Some(0) && refused.stderr.contains("/dev/kvm (c 10:232)"), "{refused:?}");
    containerd.assert_nothing_left();
}
