//! Files of the host as memory of the guest, with direct access.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::harness::{noise, prefix};
use crate::vmm_harness::{Started, Vm};

const FILE_BYTES: usize = 16 << 20;

/// Prints the guest's page cache in KiB.
const CACHED: &str = "cached() { awk '/^Cached:/ { print $2 }' /proc/meminfo; }\n";

/// Makes an EROFS image of the directory `dir`.
fn erofs(dir: &Path, image: &Path) {
    let mut command = Command::new("mkfs.erofs");
    let status = command.arg(image).arg(dir).stdout(Stdio::null()).stderr(Stdio::null()).status();
    assert!(status.expect("mkfs.erofs is there (Debian package erofs-utils)").success());
}

/// A directory of the VM that becomes an image.
fn tree(vm: &Vm) -> PathBuf {
    let tree = vm.path("tree");
    fs::create_dir(&tree).unwrap();
    tree
}

fn checksum(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// Requests that the only pmem device has served.
fn flushes(vm: &Started) -> u64 {
    let stats = vm.get("/stats");
    let device = stats["devices"].as_array().unwrap().iter().find(|device| device["kind"] == "pmem").unwrap();
    assert_eq!(device["counters"]["errors"], 0, "{device}");
    device["counters"]["requests"].as_u64().unwrap()
}

fn stop(vm: Started) {
    assert_eq!(vm.request("PUT", "/actions", r#"{"action_type": "Stop"}"#).0, 204);
    vm.finish().0.ok();
}

#[test]
fn an_erofs_image_is_read_from_the_hosts_pages_without_a_copy_in_the_guest() {
    let script = format!(
        "{CACHED} mkdir /m; mount -t erofs -o ro,dax=always /dev/pmem0 /m || say no mount
        say options $(awk '$2 == \"/m\" {{ print $4 }}' /proc/mounts)
        before=$(cached); sum=$(sha256sum </m/file); after=$(cached)
        say sum $sum; say cached $((after - before)) KiB
        echo x 2>/dev/null >/m/file && say written
        dd if=/dev/zero of=/dev/pmem0 bs=4k count=1 conv=fsync 2>/dev/null; say end; sleep 1000"
    );
    let vm = Vm::with_init(&script).control();
    let content = noise(FILE_BYTES);
    let (tree, image) = (tree(&vm), vm.path("image"));
    fs::write(tree.join("file"), &content).unwrap();
    erofs(&tree, &image);
    let before = checksum(&fs::read(&image).unwrap());
    let mut vm = vm.set("/pmem", json!([{ "id": "image", "path_on_host": image, "read_only": true }])).start();
    vm.wait_for("end");
    let console = vm.console();
    let word = |name: &str| {
        let line =
            console.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("{name}: {console}"));
        line.split_whitespace().next().unwrap().to_owned()
    };
    assert!(word("options ").contains("dax=always"), "{console}");
    assert_eq!(word("sum "), checksum(&content));
    let cached: u64 = word("cached ").parse().unwrap();
    assert!(cached < 1024, "the guest's page cache grew by {cached} KiB");
    assert!(!console.contains("written"), "{console}");
    assert_eq!(before, checksum(&fs::read(&image).unwrap()), "a read-only image has changed");
    stop(vm);
}

#[test]
fn what_the_guest_flushed_outlives_the_monitor() {
    let script = "mkdir /m; mount -t ext4 -o dax=always /dev/pmem0 /m || say no mount
        say options $(awk '$2 == \"/m\" { print $4 }' /proc/mounts)
        until [ -e /m/go ]; do sleep 1; done; head -c 4194304 /m/go >/m/file; sync /m/file; say synced; sleep 1000";
    let vm = Vm::with_init(script).control();
    let content = noise(4 << 20);
    let (tree, image) = (tree(&vm), vm.path("image"));
    fs::write(tree.join("go"), &content).unwrap();
    let status =
        Command::new("mke2fs").args(["-q", "-t", "ext4", "-b", "4096", "-d"]).arg(tree).arg(&image).arg("32m").status();
    assert!(status.expect("mke2fs is there (Debian package e2fsprogs)").success());
    let mut vm = vm.set("/pmem", json!([{ "id": "data", "path_on_host": image }])).start();
    vm.wait_for("synced");
    assert!(vm.console().contains("dax=always"), "{}", vm.console());
    assert!(flushes(&vm) > 0, "no flush arrived");
    vm.signal(Signal::SIGKILL);
    let dump = vm.path("dump");
    // The journal is replayed as after a power failure.
    let status = Command::new("e2fsck").args(["-p"]).arg(vm.path("image")).stdout(Stdio::null()).status().unwrap();
    assert!(matches!(status.code(), Some(0 | 1)), "{status}");
    let request = format!("dump /file {}", dump.display());
    let status = Command::new("debugfs").args(["-R", &request]).arg(vm.path("image")).stderr(Stdio::null()).status();
    assert!(status.unwrap().success());
    assert!(fs::read(dump).unwrap() == content, "the file is not what the guest wrote");
}

#[test]
fn a_guest_starts_from_persistent_memory_that_the_control_api_added() {
    let (vm, config) = Vm::with_kernel(&prefix().join("lib/hull/vmlinux")).start_with_api();
    let tree = vm.path("tree");
    for dir in ["bin", "sbin", "dev", "proc"] {
        fs::create_dir_all(tree.join(dir)).unwrap();
    }
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].map(Path::new).into_iter().find(|path| path.exists());
    fs::copy(busybox.expect("busybox is there (Debian package busybox-static)"), tree.join("bin/busybox")).unwrap();
    symlink("busybox", tree.join("bin/sh")).unwrap();
    let init = "#!/bin/sh\nbusybox mount -t devtmpfs devtmpfs /dev\nexec >/dev/console\n\
        busybox mount -t proc proc /proc\necho started on $(busybox awk '$2 == \"/\" { print $1, $3, $4 }' /proc/mounts)\n\
        busybox poweroff -f\n";
    let path = tree.join("sbin/init");
    fs::write(&path, init).unwrap();
    fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    erofs(&tree, &vm.path("image"));

    let put = |path: &str, body: &Value| assert_eq!(vm.request("PUT", path, &body.to_string()).0, 204, "{path} {body}");
    let mut boot = config["boot-source"].clone();
    boot["boot_args"] = json!("rootfstype=erofs rootflags=dax=always");
    put("/boot-source", &boot);
    put("/console", &config["console"]);
    let pmem = json!({ "id": "root", "path_on_host": vm.path("image"), "root_device": true, "read_only": true });
    put("/pmem/root", &pmem);
    put("/actions", &json!({ "action_type": "InstanceStart" }));
    let (run, console) = vm.finish();
    run.ok();
    let mounted =
        console.lines().find_map(|line| line.strip_prefix("started on ")).unwrap_or_else(|| panic!("{console}"));
    assert!(mounted.contains("erofs") && mounted.contains("dax=always"), "{mounted}");
}
