//! Directories of the host in a guest.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::PathBuf;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::{PATIENCE, soak, wait_for};
use crate::vmm_harness::{Started, Vm};

/// What runs in the guest: `tests/guest/share`.
const PROGRAM: &str = env!("CARGO_BIN_EXE_share-guest");
/// Mounts the share and makes its program available; `go` waits for the host.
const MOUNT: &str = "mkdir /mnt; mount -t virtiofs data /mnt || say no mount
go() { while ! [ -e /mnt/go-$1 ]; do usleep 50000; done; }
each() { say \"$(/mnt/program \"$@\" 2>&1)\"; }
";

/// A VM with a share called `data` at `share`, where the guest's program is.
fn vm(init: &str, more: Value) -> Vm {
    let vm = Vm::with_init(&format!("{MOUNT}{init}")).memory_mib(192);
    fs::create_dir(vm.path("share")).unwrap();
    with_share(vm, more)
}

/// Shares what is at `share`.
fn with_share(vm: Vm, more: Value) -> Vm {
    let path = vm.path("share");
    fs::copy(PROGRAM, path.join("program")).unwrap();
    let mut share = json!({ "tag": "data", "path_on_host": path });
    share.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    vm.set("/shares", json!([share]))
}

fn share(vm: &Started) -> PathBuf {
    vm.path("share")
}

/// Says `ok` for each command, or what the guest wrote.
fn assert_ok(console: &str, commands: &[&str]) {
    for command in commands {
        assert!(console.contains(&format!("{command}: ok")), "{command}: {console}");
    }
}

#[test]
fn a_shared_directory_is_a_file_system() {
    for more in [json!({ "xattr": true }), json!({ "xattr": true, "cache": "never" })] {
        let init = "mkdir /mnt/c; each checks /mnt/c; say checked all; go end; poweroff -f";
        let vm = Vm::with_init(&format!("{MOUNT}{init}")).memory_mib(192);
        // The testbed's `/tmp` is an overlay, which makes no overlay marks.
        let directory = TempDir::with_prefix_in("hull-share-", "/dev/shm").unwrap();
        symlink(directory.path(), vm.path("share")).unwrap();
        let mut vm = with_share(vm, more).start();
        vm.wait_for("checked all");
        assert_ok(&vm.console(), &["checks"]);
        let at = |name: &str| directory.path().join("c").join(name);
        let owned = fs::metadata(at("attributes/file")).unwrap();
        assert_eq!((owned.uid(), owned.gid(), owned.permissions().mode() & 0o7777), (1234, 4321, 0o4711));
        assert_eq!(fs::read_to_string(at("append/file")).unwrap(), "12".repeat(100));
        assert_eq!(fs::read_link(at("links/d")).unwrap().to_str(), Some("c"));
        assert_eq!(&fs::read(at("mapped/file")).unwrap()[70_000..70_014], b"through a call");
        let mark = fs::metadata(at("special/whiteout")).unwrap();
        assert!(mark.file_type().is_char_device() && mark.rdev() == 0);
        assert!(fs::symlink_metadata(at("special/disk")).is_err(), "a device was made");
        fs::write(directory.path().join("go-end"), "").unwrap();
        vm.finish().0.ok();
    }
}

#[test]
fn random_operations_agree_with_a_copy_in_memory() {
    for more in [
        json!({}),
        json!({ "cache": "never" }),
        json!({ "cache": "always", "writeback": true }),
        json!({ "cache": "auto", "writeback": true }),
    ] {
        // Different every time; a failure names it.
        let seed = std::process::id() % 100_000;
        let init = format!("mkdir /mnt/x; each fsx /mnt/x {seed} 1500; each fsx /mnt/x {} 1500; poweroff -f", seed + 1);
        let (run, console) = vm(&init, more.clone()).run();
        run.ok();
        assert_eq!(console.matches("fsx: ok").count(), 2, "{more}: {console}");
    }
}

#[test]
fn many_files_and_a_storm_of_renames() {
    // 10,000 with `HULL_SOAK=5`. Under emulation each file's ten requests take 20 to 50 ms.
    let factor = soak();
    let init = format!(
        "mkdir /mnt/s /mnt/m; /mnt/program storm /mnt/s >/dev/console 2>&1
        /mnt/program many /mnt/m {} >/dev/console 2>&1; poweroff -f",
        2000 * factor
    );
    let mut vm = vm(&init, json!({})).set("/machine-config/vcpu_count", json!(2)).start();
    let patience = PATIENCE * u32::try_from(factor).unwrap();
    for step in ["storm: ok", "made", "listed"] {
        vm.wait_for_within(patience, step);
    }
    let (run, console) = vm.finish_within(patience);
    run.ok();
    assert_ok(&console, &["many"]);
}

#[test]
fn a_read_only_share_refuses_changes() {
    let init = "echo x >/mnt/new && say written; rm /mnt/program && say removed; mkdir /mnt/d && say made
        chmod 700 /mnt/program && say changed; touch /mnt/program && say touched; truncate -s 0 /mnt/program && say cut
        say size $(wc -c </mnt/program) $(mkdir /mnt/d 2>&1); poweroff -f";
    let vm = vm(init, json!({ "is_read_only": true }));
    let bytes = fs::metadata(vm.path("share/program")).unwrap().len();
    let (run, console) = vm.run();
    run.ok();
    for word in ["written", "removed", "made", "changed", "touched", "cut"] {
        assert!(!console.contains(word), "{console}");
    }
    assert!(console.contains(&format!("size {}", bytes)) && console.contains("Read-only file system"), "{console}");
}

#[test]
fn what_the_host_changes_is_seen() {
    for cache in ["never", "auto"] {
        let init = "cat /mnt/file >/dev/null; say ready; go 1; until grep -q second /mnt/file; do usleep 100000; done
            say seen $(cat /mnt/file) $(ls /mnt/made); until ! [ -e /mnt/made ]; do usleep 100000; done; say gone
            echo from the guest >/mnt/answer; go end; poweroff -f";
        let vm = vm(init, json!({ "cache": cache }));
        fs::write(vm.path("share/file"), "first").unwrap();
        let mut vm = vm.start();
        vm.wait_for("ready");
        let at = |name: &str| share(&vm).join(name);
        fs::write(at("file"), "second and longer").unwrap();
        fs::write(at("made"), "").unwrap();
        fs::write(at("go-1"), "").unwrap();
        vm.wait_for("seen second and longer /mnt/made");
        fs::remove_file(share(&vm).join("made")).unwrap();
        vm.wait_for("gone");
        wait_for("the guest's file", || {
            fs::read_to_string(share(&vm).join("answer")).is_ok_and(|text| text == "from the guest\n")
        });
        fs::write(share(&vm).join("go-end"), "").unwrap();
        vm.finish().0.ok();
    }
}

#[test]
fn a_pause_in_the_middle_of_a_copy_loses_nothing() {
    let init = "say start; for i in 1 2 3 4; do dd if=/mnt/program of=/mnt/copy-$i bs=64k 2>/dev/null; done
        for i in 1 2 3 4; do cmp /mnt/program /mnt/copy-$i && say same $i; done; poweroff -f";
    let mut vm = vm(init, json!({})).control().start();
    vm.wait_for("start");
    for _ in 0..5 {
        for state in ["Paused", "Resumed"] {
            assert_eq!(vm.request("PATCH", "/vm", &json!({ "state": state }).to_string()).0, 204);
        }
    }
    let (run, console) = vm.finish();
    run.ok();
    assert_eq!(console.matches("same").count(), 4, "{console}");
}

#[test]
fn a_driver_that_is_bound_anew_mounts_again() {
    let init = "d=$(basename $(ls -d /sys/bus/virtio/drivers/virtiofs/virtio*)); echo kept >/mnt/kept; umount /mnt
        for i in 1 2 3; do echo $d >/sys/bus/virtio/drivers/virtiofs/unbind; echo $d >/sys/bus/virtio/drivers/virtiofs/bind
        mount -t virtiofs data /mnt && say again $i $(cat /mnt/kept); umount /mnt; done; poweroff -f";
    let (run, console) = vm(init, json!({})).run();
    run.ok();
    assert!(console.contains("again 3 kept"), "{console}");
}

#[test]
fn a_stop_does_not_wait_for_a_busy_share() {
    let init = "say start; while :; do dd if=/dev/zero of=/mnt/f bs=1M count=8 2>/dev/null; done";
    let mut vm = vm(init, json!({})).control().start();
    vm.wait_for("start");
    assert_eq!(vm.request("PUT", "/actions", r#"{"action_type": "Stop"}"#).0, 204);
    vm.finish().0.ok();
}
