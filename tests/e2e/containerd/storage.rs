//! Where root file systems are stored: snapshotters whose snapshots are block devices or images of them, and disks that are full.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::grpc::{self, bytes, message, text};
use super::harness::{Containerd, HULL, IMAGE};

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
    fs::File::create(&image).unwrap().set_len(24 << 20).unwrap();
    let mut command = Command::new("mkfs.ext4");
    command.args(["-q", "-d"]).arg(&tree).arg(&image);
    assert!(command.env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin").status().unwrap().success());
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

/// Loop devices over files below a directory.
fn loop_devices(directory: &Path) -> Vec<String> {
    let blocks = fs::read_dir("/sys/block").unwrap().flatten();
    let files = blocks.filter_map(|block| fs::read_to_string(block.path().join("loop/backing_file")).ok());
    files.filter(|file| Path::new(file.trim_end()).starts_with(directory)).collect()
}

fn content(image: &Path, file: &str) -> String {
    let mut command = Command::new("debugfs");
    command.args(["-R", &format!("cat {file}")]).arg(image).env("PATH", "/usr/sbin:/sbin");
    String::from_utf8(command.output().unwrap().stdout).unwrap()
}

#[test]
fn a_root_file_system_is_an_image_or_a_block_device() {
    let containerd = Containerd::start();
    let image = image(&containerd);
    let on_loop = Root { fs_type: "ext4", source: &image, options: &["loop"] };

    let written = OnRoot::new(&containerd, "echo $0 from the guest > /written; exit 7");
    written.create(&on_loop).unwrap();
    assert_eq!(loop_devices(&containerd.path("")).len(), 1);
    // The image is in use, but others may have it too, as with any mount.
    assert_eq!(written.finish(), 7);
    assert_eq!(loop_devices(&containerd.path("")), Vec::<String>::new(), "the loop device is free");
    assert_eq!(content(&image, "/written"), "/bin/sh from the guest\n");

    let read_only = OnRoot::new(&containerd, "echo x > /more || exit 30");
    read_only.create(&Root { options: &["loop", "ro"], ..on_loop }).unwrap();
    assert_eq!(read_only.finish(), 30);

    // A device that is there already, as those of devmapper.
    let device = attach(&image);
    let on_device = Root { fs_type: "ext4", source: Path::new(&device), options: &["rw"] };
    let again = OnRoot::new(&containerd, "read line < /written && echo $line again > /again");
    again.create(&on_device).unwrap();
    assert_eq!(again.finish(), 0);
    assert!(losetup(&["-d", &device]).status().unwrap().success());
    assert_eq!(content(&image, "/again"), "/bin/sh from the guest again\n");
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
    assert_eq!(loop_devices(&containerd.path("")), Vec::<String>::new());
    containerd.assert_nothing_left();
}

fn losetup(args: &[&str]) -> Command {
    let mut command = Command::new("losetup");
    command.args(args).env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin");
    command
}

/// Puts a file on a loop device; returns the device.
fn attach(image: &Path) -> String {
    let output = losetup(&["--find", "--show", image.to_str().unwrap()]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
}
