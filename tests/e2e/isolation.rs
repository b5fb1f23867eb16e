//! What a container must not reach.

use crate::harness::{Hull, image};

#[test]
fn the_vms_own_disk_cannot_be_opened_after_mknod() {
    // 0xfe00 is looked up, not assumed: /sys shows the number of the disk.
    let run = Hull::new().sh(
        &["--cap-add", "SYS_ADMIN"],
        "dev=$(cat /sys/block/vda/dev) && mknod /tmp/disk b ${dev%:*} ${dev#*:}; \
         cat /tmp/disk >/dev/null && echo opened; true",
    );
    assert!(!run.text().contains("opened"), "{run:?}");
    assert!(run.stderr.to_lowercase().contains("not permitted"), "{run:?}");
}

#[test]
fn kernel_interfaces_are_masked_or_read_only() {
    let run = Hull::new().sh(
        &[],
        "cat /proc/kcore 2>/dev/null | head -c 1 | wc -c; \
         echo x 2>/dev/null > /proc/sysrq-trigger || echo ro; \
         echo 1 2>/dev/null > /sys/kernel/profiling || echo ro; \
         echo 1 2>/dev/null > /sys/fs/cgroup/pids.max || echo ro; \
         mount -t tmpfs x /mnt 2>/dev/null || echo no mount",
    );
    assert_eq!(run.ok(), "0\nro\nro\nro\nno mount\n");
}

#[test]
fn namespaces_are_the_containers_own() {
    let run = Hull::new().sh(&[], "ls /proc | grep -c '^[0-9]*$'; ls /sys/class/net; cat /proc/self/cgroup");
    let text = run.ok();
    let mut lines = text.lines();
    assert!(lines.next().unwrap().parse::<u32>().unwrap() <= 5, "{text}");
    assert_eq!(lines.collect::<Vec<_>>(), ["lo", "0::/"], "{text}");
}

/// The guest's half is Python, since busybox has no vsock.
#[test]
fn a_container_can_pose_neither_as_the_agent_nor_as_another_stream() {
    let script = r#"
import os, socket
def dial(port, data):
    s = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    s.settimeout(30)
    try:
        s.connect((2, port))
        s.sendall(data)
        s.shutdown(socket.SHUT_WR)
        got = s.recv(100)
        return "closed" if not got else "data"
    except OSError as e:
        return "closed" if e.errno in (104, 32) else "refused"
print("ready port", dial(1024, b"0" * 32))
print("stream port", dial(1025, os.urandom(16) + b"boo"))
print("short token", dial(1025, b"abc"))
token = open("/proc/cmdline").read().split("hull.boot_token=")[1].split()[0]
print("used token", dial(1024, bytes.fromhex(token)), dial(1025, bytes.fromhex(token)))
for cid in (1, 3):
    s = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    s.settimeout(30)
    try:
        s.connect((cid, 1024)); print("agent reached")
    except OSError:
        print("agent out of reach")
"#;
    let hull = Hull::new();
    // The default profile knows no vsock at all; what must hold without it is the token.
    let image = image("python");
    let run = hull.feed(&["run", "-i", &image, "python3", "-"], script.as_bytes().to_vec());
    assert!(run.stderr.contains("Operation not permitted"), "{run:?}");
    let flag = "--security-opt=seccomp=unconfined";
    let run = hull.feed(&["run", "-i", flag, &image, "python3", "-"], script.as_bytes().to_vec());
    let text = run.ok();
    assert!(!text.contains("data"), "{text}");
    assert!(!run.stderr.contains("boo"), "{run:?}");
    assert_eq!(text.matches("agent out of reach").count(), 2, "{text}");
    assert_eq!(text.lines().count(), 6, "{text}");
}
