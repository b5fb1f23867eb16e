//! What a guest writes to a block device is what the host finds there, and the other way round.

use std::fs::{self, OpenOptions};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use crate::vmm_harness::{Vm, program_files};

const MIB: u64 = 1 << 20;

/// An image of zeros in a directory of its own, which outlives the monitor.
struct Image {
    dir: TempDir,
}

impl Image {
    fn new(mib: u64) -> Self {
        let image = Self { dir: TempDir::with_prefix_in("d", "/tmp").unwrap() };
        image.set_mib(mib);
        image
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("image")
    }

    fn set_mib(&self, mib: u64) {
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(self.path()).unwrap();
        file.set_len(mib * MIB).unwrap();
    }
}

/// A block device of the host over an image.
struct Loop(String);

impl Loop {
    fn new(image: &Path) -> Self {
        Self(host("losetup", &["--find", "--show", image.to_str().unwrap()]).trim().to_owned())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.0]).status();
    }
}

/// Runs a program of the host, which must succeed; returns what it printed.
fn host(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{program} {arguments:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

fn drive(id: &str, path: &Path, more: &Value) -> Value {
    let mut drive = json!({ "drive_id": id, "path_on_host": path });
    drive.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    drive
}

/// An EROFS image with fio and its libraries, all in one directory: they are too large for an initramfs.
fn fio_disk(dir: &Path) -> PathBuf {
    let (files, image) = (dir.join("fio"), dir.join("fio.erofs"));
    fs::create_dir(&files).unwrap();
    for file in program_files("fio") {
        fs::copy(&file, files.join(file.file_name().unwrap())).unwrap();
    }
    host("mkfs.erofs", &[image.to_str().unwrap(), files.to_str().unwrap()]);
    fs::remove_dir_all(&files).unwrap();
    image
}

#[test]
fn fio_finds_what_it_wrote() {
    let fio = TempDir::with_prefix_in("f", "/tmp").unwrap();
    let fio = fio_disk(fio.path());
    let init = "mkdir /mnt; mount -t erofs -o ro /dev/vdb /mnt
        /mnt/ld-linux-x86-64.so.2 --library-path /mnt /mnt/fio --name=verify --filename=/dev/vda --size=16m --bs=8k \\
            --rw=randwrite --ioengine=io_uring --iodepth=16 --direct=1 --thread --verify=crc32c --verify_fatal=1 \\
            >/tmp/fio 2>&1
        say fio ended: $?; cat /tmp/fio >/dev/console; poweroff -f";
    for more in [
        json!({ "io_engine": "Sync" }),
        json!({ "io_engine": "Async" }),
        json!({ "io_engine": "Async", "direct": true }),
    ] {
        let image = Image::new(16);
        // The testbed's files are in a tmpfs, which has no direct I/O; a loop device over one does.
        let device = Loop::new(&image.path());
        let drives =
            json!([drive("tested", Path::new(&device.0), &more), drive("fio", &fio, &json!({ "is_read_only": true }))]);
        let (run, console) = Vm::with_init(init).memory_mib(192).set("/drives", drives).run();
        run.ok();
        assert!(console.contains("fio ended: 0"), "{more}: {console}");
        assert!(console.contains("err= 0"), "{more}: {console}");
        drop(device);
        assert!(fs::read(image.path()).unwrap().chunks(8192).all(|block| block.iter().any(|&byte| byte != 0)));
    }
}

#[test]
fn a_file_system_is_whole_after_the_monitor_was_killed() {
    let init = "mkfs.ext4 -q /dev/vda || say no file system; mkdir /mnt; mount -t ext4 /dev/vda /mnt || say not mounted
        head -c 3000000 /dev/urandom >/mnt/file; sync; say sum $(sha256sum </mnt/file)
        while :; do for i in 1 2 3 4; do dd if=/dev/zero of=/mnt/$i bs=16k count=40 2>/dev/null; done; sync; rm /mnt/?; done";
    for engine in ["Sync", "Async"] {
        let image = Image::new(32);
        let path = image.path();
        let drives = json!([drive("disk", &path, &json!({ "io_engine": engine }))]);
        let mut vm = Vm::with_programs(&["mkfs.ext4"], init).set("/drives", drives).start();
        vm.wait_for("sum ");
        vm.wait_for(" -");
        let console = vm.console();
        let sum = console.split("sum ").nth(1).unwrap().split_whitespace().next().unwrap().to_owned();
        vm.signal(Signal::SIGKILL);
        vm.finish();
        let path = path.to_str().unwrap();
        // What the guest's kernel does when it mounts it again.
        host("e2fsck", &["-y", "-E", "journal_only", path]);
        host("e2fsck", &["-fn", path]);
        let copy = image.dir.path().join("copy");
        host("debugfs", &["-R", &format!("dump /file {}", copy.display()), path]);
        assert_eq!(sha256(&fs::read(copy).unwrap()), sum, "{engine}");
    }
}

#[test]
fn a_drive_that_grew_is_larger_in_the_guest() {
    let image = Image::new(8);
    let drives = json!([drive("disk", &image.path(), &json!({}))]);
    let init = "size() { cat /sys/block/vda/size; }
        say first $(size); until [ $(size) = 32768 ]; do usleep 50000; done; say then $(size)
        echo at the end | dd of=/dev/vda bs=512 seek=32767 conv=notrunc,fsync,sync 2>/dev/null; say written; sleep 1000";
    let mut vm = Vm::with_init(init).control().set("/drives", drives).start();
    vm.wait_for("first 16384");
    image.set_mib(16);
    let body = json!({ "drive_id": "disk", "path_on_host": image.path() }).to_string();
    assert_eq!(vm.request("PATCH", "/drives/disk", &body), (204, Value::Null));
    vm.wait_for("then 32768");
    vm.wait_for("written");
    assert_eq!(&fs::read(image.path()).unwrap()[32767 * 512..][..10], b"at the end");
    assert_eq!(vm.request("PUT", "/actions", r#"{"action_type": "Stop"}"#).0, 204);
    vm.finish().0.ok();
}

#[test]
fn a_qcow2_image_reads_as_what_it_was_made_of() {
    let image = Image::new(8);
    let path = image.path();
    // Random bytes between two holes, and something that compresses.
    let mut content = vec![0; usize::try_from(8 * MIB).unwrap()];
    fs::File::open("/dev/urandom").unwrap().read_exact(&mut content[1 << 20..3 << 20]).unwrap();
    content[6 << 20..7 << 20].fill(b'z');
    fs::write(&path, &content).unwrap();
    let convert = |name: &str, options: &[&str]| {
        let to = image.dir.path().join(name);
        let arguments =
            [&["convert", "-O", "qcow2"], options, &[path.to_str().unwrap(), to.to_str().unwrap()]].concat();
        host("qemu-img", &arguments);
        drive(name, &to, &json!({ "format": "qcow2", "is_read_only": true }))
    };
    let drives = json!([convert("plain", &[]), convert("compressed", &["-c"])]);
    let init =
        "for disk in vda vdb; do say $disk $(sha256sum </dev/$disk) $(cat /sys/block/$disk/ro); done; poweroff -f";
    let (run, console) = Vm::with_init(init).set("/drives", drives).run();
    run.ok();
    for disk in ["vda", "vdb"] {
        assert!(console.contains(&format!("{disk} {} - 1", sha256(&content))), "{console}");
    }
}
