//! Disks of the host that are full: the container is told, whoever makes one is told, and nothing is left.

use std::fs;
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};

use super::engine::Engine;
use super::harness::{Containerd, HULL, IMAGE, RUNC, SMALL_DISK};

const NO_SPACE: &str = "no space left on device";
const PAGE_BYTES: usize = 4096;

/// A disk of a few MiB, mounted where containerd keeps something.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(path: PathBuf, size: &str) -> Self {
        fs::create_dir_all(&path).unwrap();
        let options = format!("mode=700,size={size}");
        mount(Some(SMALL_DISK), &path, Some("tmpfs"), MsFlags::empty(), Some(options.as_str())).unwrap();
        Self(path)
    }

    fn filling(&self) -> PathBuf {
        self.0.join("filling")
    }

    /// Fills it, but for some pages.
    fn fill(&self, free_pages: usize) {
        let mut file = fs::File::create(self.filling()).unwrap();
        let mut pages = 0;
        loop {
            match file.write_all(&[1; PAGE_BYTES]) {
                Ok(()) => pages += 1,
                Err(error) if error.kind() == ErrorKind::StorageFull => break,
                Err(error) => panic!("{error}"),
            }
        }
        file.set_len(((pages - free_pages) * PAGE_BYTES).try_into().unwrap()).unwrap();
    }

    fn clear(&self) {
        fs::remove_file(self.filling()).unwrap();
    }
}

/// containerd with one of its directories, or Hull's, on a small disk.
fn start_on(directory: &str, size: &str) -> (Containerd, SmallDisk) {
    let mut disk = None;
    let containerd = Containerd::start_with(Engine::Bookworm, |dir: &Path| {
        disk = Some(SmallDisk::mount(dir.join(directory), size));
        "disabled_plugins = [\"io.containerd.grpc.v1.cri\"]".into()
    });
    containerd.import("default", "busybox", IMAGE);
    (containerd, disk.unwrap())
}

#[test]
fn a_container_that_fills_the_disk_of_its_snapshot_is_told_and_goes_on() {
    let (containerd, disk) = start_on("root", "48m");
    let script = "dd if=/dev/zero of=/big bs=1M count=100 2>&1 | grep -o 'No space left on device'
        echo x > /more 2>/dev/null || echo refused; rm /big; echo still here > /small; cat /small";
    for runtime in [RUNC, HULL] {
        let run = containerd.run(runtime, &[], &["sh", "-c", script]);
        assert_eq!(run.ok(), "No space left on device\nrefused\nstill here\n", "{runtime}");
    }
    // containerd itself may have room enough for what it writes.
    disk.fill(0);
    for runtime in [RUNC, HULL] {
        let run = containerd.run(runtime, &[], &["sh", "-c", "{ echo x > /file; } 2>/dev/null || echo refused"]);
        let told = run.text() == "refused\n" || run.stderr.to_lowercase().contains(NO_SPACE);
        assert!(told, "{runtime}: {run:?}");
        containerd.assert_nothing_left();
    }
    disk.clear();
    assert_eq!(containerd.run(HULL, &[], &["echo", "fine"]).ok(), "fine\n");
}

#[test]
fn without_room_for_its_records_a_sandbox_is_refused() {
    let (containerd, disk) = start_on("h", "256k");
    disk.fill(0);
    let run = containerd.run(HULL, &[], &["true"]);
    assert!(run.code != Some(0) && run.stderr.to_lowercase().contains(NO_SPACE), "{run:?}");
    assert!(run.stderr.contains("The runtime directory"), "{run:?}");
    disk.clear();
    containerd.assert_nothing_left();
    assert_eq!(containerd.run(HULL, &[], &["echo", "fine"]).ok(), "fine\n");
}

#[test]
fn without_room_in_its_bundle_a_container_runs_or_is_refused_and_leaves_nothing() {
    let (containerd, disk) = start_on("state", "1m");
    let mut results = Vec::new();
    // The specification takes some pages, what the shim writes one each.
    for free_pages in 0..10 {
        disk.fill(free_pages);
        let run = containerd.run(HULL, &[], &["echo", "fine"]);
        let refused = run.code != Some(0);
        if refused {
            assert!(run.stderr.to_lowercase().contains(NO_SPACE), "{free_pages} pages: {run:?}");
        } else {
            assert_eq!(run.text(), "fine\n", "{free_pages} pages: {run:?}");
        }
        results.push(refused);
        disk.clear();
        containerd.assert_nothing_left();
    }
    assert!(results.first() == Some(&true) && results.last() == Some(&false), "{results:?}");
}
