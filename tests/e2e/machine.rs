//! The virtual machine below the container: processors, memory, kernel.

use crate::harness::Hull;

#[test]
fn one_two_and_eight_processors_come_up() {
    let hull = Hull::new();
    for count in ["1", "2", "8"] {
        assert_eq!(hull.sh(&["--vcpus", count], "nproc").ok().trim(), count);
    }
}

#[test]
fn memory_from_64_mib_to_beyond_the_4_gib_hole_is_there() {
    let hull = Hull::new();
    for (size, mib) in [("64m", 64), ("512m", 512), ("5g", 5 * 1024)] {
        let text = hull.sh(&["--vm-memory", size], "grep MemTotal /proc/meminfo").ok();
        let kib: u64 = text.split_whitespace().nth(1).unwrap().parse().unwrap();
        let total = kib / 1024;
        assert!(total < mib && total >= mib * 60 / 100, "{size}: {text}");
    }
}

#[test]
fn five_gibibytes_can_be_used_across_the_hole() {
    let run = Hull::new().sh(
        &["--vm-memory", "5g", "--tmpfs", "/big:size=4g"],
        "dd if=/dev/zero of=/big/f bs=1M count=3600 2>/dev/null; stat -c %s /big/f",
    );
    assert_eq!(run.ok(), "3774873600\n");
}

#[test]
fn the_container_runs_on_hulls_kernel() {
    let hull = Hull::new();
    let kernel = hull.sh(&[], "uname -r").ok();
    assert!(kernel.starts_with("6.12."), "{kernel}");
    assert!(!kernel.trim().is_empty() && kernel != std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap());
}

#[test]
fn boot_phases_are_shown_on_request() {
    let run = Hull::new().sh(&["--timings"], "echo hi");
    assert_eq!(run.ok(), "hi\n");
    for phase in ["monitor", "memory", "kernel", "agent", "container"] {
        assert!(run.stderr.to_lowercase().contains(phase), "{phase}: {run:?}");
    }
}
