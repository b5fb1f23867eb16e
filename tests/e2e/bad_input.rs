//! Wrong input: one line with a cause, the right exit code, nothing left behind.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::harness::{Hull, Run, binary, image, image_dir, prefix};

fn vmm(config: &Value) -> Run {
    vmm_text(&config.to_string())
}

fn vmm_text(config: &str) -> Run {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("vm.json");
    fs::write(&file, config).unwrap();
    let output = Command::new(binary("hull-vmm")).arg("run").arg("--config").arg(&file).output().unwrap();
    Run::from(output)
}

fn config() -> Value {
    json!({
        "boot-source": { "kernel_image_path": prefix().join("lib/hull/vmlinux") },
        "machine-config": { "vcpu_count": 1, "mem_size_mib": 64 },
    })
}

fn refused(run: &Run, words: &[&str]) {
    let code = run.code.expect("no signal");
    assert_ne!(code, 0, "{run:?}");
    run.fails(code, words);
}

#[test]
fn each_wrong_field_of_a_vm_configuration_is_named() {
    let cases: [(&str, Value, &[&str]); 9] = [
        ("/unknown", json!(1), &["unknown"]),
        ("/machine-config/vcpu_count", json!("two"), &["machine-config.vcpu_count"]),
        ("/machine-config/vcpu_count", json!(0), &["machine-config.vcpu_count"]),
        ("/machine-config/vcpu_count", json!(65), &["machine-config.vcpu_count", "64"]),
        ("/machine-config/mem_size_mib", json!(0), &["machine-config.mem_size_mib", "32"]),
        ("/machine-config/huge_pages", json!("3M"), &["machine-config.huge_pages"]),
        ("/boot-source/kernel_image_path", json!(""), &["boot-source.kernel_image_path"]),
        ("/drives", json!([{ "drive_id": "a/b", "path_on_host": "/dev/null" }]), &["drives", "drive_id"]),
        ("/vsock", json!({ "guest_cid": 2, "uds_path": "/tmp/x" }), &["vsock.guest_cid"]),
    ];
    for (pointer, value, words) in cases {
        let mut config = config();
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        let parent = if parent.is_empty() { &mut config } else { config.pointer_mut(parent).unwrap() };
        parent[key] = value;
        refused(&vmm(&config), words);
    }
    refused(&vmm_text("{"), &["line 1"]);
}

#[test]
fn a_kernel_that_is_none_is_refused() {
    let hull = Hull::new();
    hull.sh(&["--kernel", "/etc/passwd"], "true").fails(125, &["/etc/passwd", "kernel"]);
    hull.sh(&["--kernel", "/no/such/kernel"], "true").fails(125, &["/no/such/kernel"]);

    let kernel = fs::read(prefix().join("lib/hull/vmlinux")).unwrap();
    let truncated = tempfile::NamedTempFile::new().unwrap();
    fs::write(truncated.path(), &kernel[..kernel.len() / 2]).unwrap();
    hull.sh(&["--kernel", truncated.path().to_str().unwrap()], "true").fails(125, &["kernel"]);
}

#[test]
fn an_initramfs_larger_than_the_memory_is_refused() {
    let large = tempfile::NamedTempFile::new().unwrap();
    large.as_file().set_len(100 << 20).unwrap();
    let hull = Hull::new();
    hull.sh(&["--vm-memory", "64m", "--initrd", large.path().to_str().unwrap()], "true").fails(125, &["memory"]);
}

#[test]
fn wrong_sizes_and_flags_are_refused() {
    let hull = Hull::new();
    for (flag, value) in [
        ("--memory", "0"),
        ("--memory", "1"),
        ("--cpus", "0"),
        ("--cpus", "500"),
        ("--pids-limit", "-2"),
        ("--memory", "lots"),
        ("--vm-memory", "1m"),
        ("--vcpus", "0"),
        ("--vcpus", "65"),
        ("--cpus", "-1"),
        ("--pids-limit", "many"),
        ("--ulimit", "nofile"),
        ("--sysctl", "novalue"),
        ("--tmpfs", "relative"),
        ("--cap-add", "NO_SUCH"),
    ] {
        let run = hull.sh(&[&format!("{flag}={value}")], "true");
        assert_eq!(run.code, Some(125), "{flag} {value}: {run:?}");
        assert!(run.stderr.contains(flag.trim_start_matches('-')), "{flag} {value}: {run:?}");
        assert_eq!(run.stderr.lines().count(), 1, "{flag} {value}: {run:?}");
    }
}

/// A copy of the busybox layout to spoil.
fn spoilt_layout(spoil: impl FnOnce(&Path)) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    let status =
        Command::new("cp").arg("-r").arg(image_dir("busybox")).arg(copy.path().join("layout")).status().unwrap();
    assert!(status.success());
    spoil(&copy.path().join("layout"));
    copy
}

fn blob(layout: &Path, digest: &Value) -> std::path::PathBuf {
    layout.join("blobs").join(digest.as_str().unwrap().replace(':', "/"))
}

fn read(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn manifest(layout: &Path) -> Value {
    let index = read(&layout.join("index.json"));
    read(&blob(layout, &index["manifests"][0]["digest"]))
}

/// What is wrong, how to make it so, and words of the answer.
type Spoilt = (&'static str, fn(&Path), &'static [&'static str]);

#[test]
fn a_spoilt_image_is_refused_and_leaves_no_store_entry() {
    let cases: [Spoilt; 3] = [
        (
            "no configuration",
            |layout| fs::remove_file(blob(layout, &manifest(layout)["config"]["digest"])).unwrap(),
            &["sha256"],
        ),
        (
            "digest mismatch",
            |layout| {
                let path = blob(layout, &manifest(layout)["layers"][0]["digest"]);
                let mut bytes = fs::read(&path).unwrap();
                let middle = bytes.len() / 2;
                bytes[middle] ^= 1;
                fs::write(path, bytes).unwrap();
            },
            &["sha256"],
        ),
        ("no index", |layout| fs::remove_file(layout.join("index.json")).unwrap(), &["index.json"]),
    ];
    for (what, spoil, words) in cases {
        let layout = spoilt_layout(spoil);
        let store = tempfile::tempdir().unwrap();
        let hull = Hull::with_store(store.path());
        let reference = format!("oci:{}", layout.path().join("layout").display());
        let run = hull.hull(["run", &reference, "true"]);
        println!("{what}: {}", run.stderr);
        run.fails(125, words);
        assert_eq!(hull.hull(["images", "-q"]).ok(), "", "{what}");
    }
}

#[test]
fn a_full_disk_is_reported_and_leaves_nothing() {
    let mount = tempfile::tempdir().unwrap();
    let target = mount.path().to_str().unwrap();
    let status = Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m", "tmpfs", target]).status().unwrap();
    assert!(status.success());
    let hull = Hull::with_store(mount.path());
    let run = hull.hull(["run", &image("busybox"), "true"]);
    let used = Command::new("du").args(["-s", target]).output().unwrap();
    Command::new("umount").arg(target).status().unwrap();
    run.fails(125, &["no space"]);
    let used = String::from_utf8_lossy(&used.stdout).into_owned();
    let kib: u32 = used.split_whitespace().next().unwrap().parse().unwrap();
    assert!(kib < 64, "left on the disk: {used}");
}

#[test]
fn a_missing_dev_kvm_is_named_with_a_hint() {
    let hull = Hull::new();
    let image = image("busybox");
    let inner = hull.command(["run", &image, "true"]);
    let mut command = Command::new("unshare");
    command
        .args(["-m", "sh", "-c", "mount -t tmpfs none /mnt && cp -a /dev/null /dev/urandom /mnt && mount --move /mnt /dev && exec \"$0\" \"$@\""])
        .arg(inner.get_program())
        .args(inner.get_args());
    for (key, value) in inner.get_envs() {
        command.env(key, value.unwrap());
    }
    Run::from(command.output().unwrap()).fails(125, &["/dev/kvm"]);
}

#[test]
fn doctor_says_that_vms_can_run_here() {
    let run = Hull::new().hull(["doctor", "--json"]);
    let report: Value = serde_json::from_str(&run.ok()).unwrap();
    assert!(report["checks"].as_array().unwrap().len() > 5, "{report}");
}
