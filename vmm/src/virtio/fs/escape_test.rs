//! Guests that want out of their share, or harm the monitor.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::cast_possible_truncation, reason = "tests")]

use std::os::unix::fs::{FileTypeExt, symlink};
use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;

use super::test_guest::{
    Guest, HEADER, ROOT, create_body, io_body, mkdir_body, mknod_body, op, text, truncate_body, u32_at,
};
use crate::virtio::testing::Part;

const EINVAL: i32 = libc::EINVAL;
const NAMES: &[&str] = &[
    "",
    ".",
    "..",
    "/",
    "../outside",
    "../outside/secret",
    "/no-such-directory/file",
    "d/../../outside/secret",
    "d/file",
    "./file",
    "file/",
    "link/secret",
];

fn guest() -> Guest {
    let guest = Guest::new(|_| {});
    std::fs::write(guest.share.join("file"), "content").unwrap();
    std::fs::create_dir(guest.share.join("d")).unwrap();
    std::fs::write(guest.share.join("d/file"), "deep").unwrap();
    symlink("../outside", guest.share.join("link")).unwrap();
    symlink("../outside/secret", guest.share.join("secret")).unwrap();
    symlink("/no-such-directory/file", guest.share.join("absolute")).unwrap();
    guest
}

#[test]
fn names_that_are_paths_are_refused_everywhere() {
    let mut guest = guest();
    let file = guest.lookup(ROOT, "file").unwrap();
    let directory = guest.lookup(ROOT, "d").unwrap();
    for name in NAMES {
        for parent in [ROOT, directory] {
            let to = |new: &str| [&parent.to_le_bytes()[..], &text(name), &text(new)].concat();
            let from = |old: &str| [&parent.to_le_bytes()[..], &text(old), &text(name)].concat();
            let to2 = |new: &str| [&parent.to_le_bytes()[..], &[0; 8], &text(name), &text(new)].concat();
            let from2 = |old: &str| [&parent.to_le_bytes()[..], &[0; 8], &text(old), &text(name)].concat();
            let link = [&file.to_le_bytes()[..], &text(name)].concat();
            let requests = [
                (op::LOOKUP, text(name)),
                (op::MKDIR, mkdir_body(name)),
                (op::MKNOD, mknod_body(0o100_644, 0, name)),
                (op::SYMLINK, [text(name), text("target")].concat()),
                (op::CREATE, create_body(libc::O_RDWR, name)),
                (op::CREATE, create_body(libc::O_RDWR | libc::O_TRUNC, name)),
                (op::UNLINK, text(name)),
                (op::RMDIR, text(name)),
                (op::LINK, link),
                (op::RENAME, to("new")),
                (op::RENAME, from("file")),
                (op::RENAME2, to2("new")),
                (op::RENAME2, from2("file")),
            ];
            for (opcode, body) in requests {
                assert_eq!(guest.ask(opcode, parent, &body), Err(EINVAL), "request {opcode} with {name:?}");
            }
        }
    }
    assert_eq!(std::fs::read_dir(&guest.share).unwrap().count(), 5);
    guest.assert_untouched();
}

#[test]
fn links_out_of_the_share_are_not_followed() {
    let mut guest = guest();
    for name in ["link", "secret", "absolute"] {
        let node = guest.lookup(ROOT, name).unwrap();
        assert!(guest.ask(op::READLINK, node, &[]).is_ok(), "the link itself is the guest's to read");
        assert!(guest.open(node, libc::O_RDONLY).is_err(), "open {name}");
        assert!(guest.ask(op::OPENDIR, node, &[0; 8]).is_err(), "opendir {name}");
        assert!(guest.lookup(node, "secret").is_err(), "a step beyond {name}");
        assert!(guest.create(node, "new").is_err(), "a file beyond {name}");
        assert!(guest.ask(op::SETATTR, node, &truncate_body(0)).is_err(), "truncate {name}");
        let body = create_body(libc::O_RDWR | libc::O_TRUNC, name);
        assert!(guest.ask(op::CREATE, ROOT, &body).is_err(), "create over {name}");
    }
    guest.assert_untouched();
}

#[test]
fn a_name_that_becomes_a_link_in_between_leads_nowhere() {
    let mut guest = guest();
    let share = guest.share.clone();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Also when an assertion fails.
        let _stop = Stop(&stop);
        scope.spawn(|| {
            // A directory and a link to the outside take turns under one name.
            while !stop.load(Ordering::Relaxed) {
                std::fs::create_dir(share.join("race")).unwrap();
                std::fs::rename(share.join("race"), share.join("aside")).unwrap();
                symlink("../outside", share.join("race")).unwrap();
                std::fs::remove_file(share.join("race")).unwrap();
                // The guest may make its file between the look into the directory and the end of it.
                while let Err(error) = std::fs::remove_dir_all(share.join("aside")) {
                    assert_eq!(error.kind(), std::io::ErrorKind::DirectoryNotEmpty);
                }
            }
        });
        for _ in 0..2000 {
            if let Ok(node) = guest.lookup(ROOT, "race") {
                assert!(guest.lookup(node, "secret").is_err());
                let _ = guest.create(node, "made");
                let forget = guest.message(op::FORGET, node, &1u64.to_le_bytes());
                guest.exchange(&forget, 0);
            }
        }
    });
    guest.assert_untouched();
}

struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn directories_moved_away_take_nobody_out() {
    let mut guest = guest();
    let inner = guest.mkdir(ROOT, "inner").unwrap();
    // The host moves a directory that the guest holds out of the share, and back.
    let (here, there) = (guest.share.join("inner"), guest.share.join("../outside/inner"));
    std::fs::rename(&here, &there).unwrap();
    for name in ["..", "../secret", "secret"] {
        assert!(guest.lookup(inner, name).is_err(), "{name}");
    }
    std::fs::rename(&there, &here).unwrap();
    guest.assert_untouched();
}

#[test]
fn devices_are_not_made_and_special_files_not_opened() {
    let mut guest = guest();
    let device = |mode: u32, number: u32| mknod_body(mode | 0o666, number, "device");
    for (mode, number) in [(libc::S_IFBLK, 0x0800), (libc::S_IFCHR, 0x0101), (libc::S_IFBLK, 0), (libc::S_IFDIR, 0)] {
        assert_eq!(guest.ask(op::MKNOD, ROOT, &device(mode, number)), Err(libc::EPERM), "{mode:#o}");
    }
    guest.ask(op::MKNOD, ROOT, &mknod_body(libc::S_IFIFO | 0o600, 0, "fifo")).unwrap();
    assert!(std::fs::symlink_metadata(guest.share.join("fifo")).unwrap().file_type().is_fifo());
    let node = guest.lookup(ROOT, "fifo").unwrap();
    // A pipe without a writer would hold the thread for ever.
    assert!(guest.open(node, libc::O_RDONLY).is_err());
    assert!(guest.lookup(ROOT, "file").is_ok());
}

#[test]
fn headers_that_lie_get_an_error_or_nothing() {
    let mut guest = guest();
    let good = guest.message(op::LOOKUP, ROOT, &text("file"));
    for len in [0u32, 1, 39, 40, 41, 44, 46, 100, 1 << 20, (1 << 20) + 5000, u32::MAX] {
        let mut message = good.clone();
        message[..4].copy_from_slice(&len.to_le_bytes());
        let reply = guest.exchange(&message, 4096);
        assert!(reply.is_empty() || u32_at(&reply, 4) != 0, "a length of {len}");
    }
    for cut in [0, 1, 4, 39] {
        assert!(guest.exchange(&good[..cut.max(1)], 4096).is_empty(), "{cut} bytes");
    }
    // A name without its end, and one that ends early.
    for name in [&b"file"[..], b"fi\0le\0", b"", b"\0\0"] {
        let message = guest.message(op::LOOKUP, ROOT, name);
        let reply = guest.exchange(&message, 4096);
        assert!(reply.is_empty() || u32_at(&reply, 4) != 0, "{name:?}");
    }
    assert_eq!(guest.lookup(ROOT, &"n".repeat(256)), Err(libc::ENAMETOOLONG));
    assert_eq!(guest.lookup(ROOT, &"n".repeat(60000)), Err(libc::ENAMETOOLONG));
    assert!(guest.lookup(ROOT, "file").is_ok());
}

#[test]
fn every_request_survives_too_little_room() {
    let mut guest = guest();
    let node = guest.lookup(ROOT, "file").unwrap();
    let handle = guest.open(node, libc::O_RDONLY).unwrap();
    for opcode in 0..70 {
        if opcode == 38 {
            continue; // DESTROY: forgets the mount, which the last check needs.
        }
        for room in [0, 1, 15, 16, 17, 40, 100] {
            for body in [vec![], vec![0; 64], io_body(handle, 0, 0), io_body(handle, 0, 1 << 20)] {
                let message = guest.message(opcode, node, &body);
                guest.exchange(&message, room);
            }
        }
    }
    guest.mount();
    assert!(guest.lookup(ROOT, "file").is_ok());
    guest.assert_untouched();
}

#[test]
fn numbers_at_the_edge_are_errors() {
    let mut guest = guest();
    let node = guest.lookup(ROOT, "file").unwrap();
    let handle = guest.open(node, libc::O_RDWR).unwrap();
    for offset in [u64::MAX, 1 << 63, (1 << 63) - 1, (1 << 63) - 2] {
        assert_eq!(guest.read(node, handle, offset, 4096), Err(EINVAL), "read at {offset:#x}");
        assert!(guest.write(node, handle, offset, b"x").is_err(), "write at {offset:#x}");
        let copy = [handle, 0, node, handle, offset, 100, 0].map(u64::to_le_bytes).concat();
        assert!(guest.ask(op::COPY_FILE_RANGE, node, &copy).is_err());
        let allocate = [handle, offset, 4096, 0].map(u64::to_le_bytes).concat();
        assert!(guest.ask(op::FALLOCATE, node, &allocate).is_err());
        let seek = [handle, offset, 0].map(u64::to_le_bytes).concat();
        let _ = guest.ask(op::LSEEK, node, &seek);
        let _ = guest.ask(op::SETATTR, node, &truncate_body(offset));
    }
    let directory = guest.ask(op::OPENDIR, ROOT, &[0; 8]).map(|open| super::test_guest::u64_at(&open, 0)).unwrap();
    for opcode in [op::READDIR, op::READDIRPLUS] {
        assert!(guest.ask(opcode, ROOT, &io_body(directory, u64::MAX, 4096)).is_err());
        // A file's handle is none of a directory.
        assert!(guest.ask(opcode, node, &io_body(handle, 0, 4096)).is_err());
    }
    let many = [&u32::MAX.to_le_bytes()[..], &[0; 4]].concat();
    assert!(guest.ask(op::BATCH_FORGET, ROOT, &many).is_err());
    assert_eq!(guest.ask(op::TMPFILE, ROOT, &create_body(libc::O_RDWR, "")), Err(libc::ENOSYS));
    assert!(guest.lookup(ROOT, "file").is_ok());
}

#[test]
fn handles_and_inodes_of_others_are_unknown() {
    let mut guest = guest();
    let (file, other) = (guest.lookup(ROOT, "file").unwrap(), guest.lookup(ROOT, "d").unwrap());
    let handle = guest.open(file, libc::O_RDONLY).unwrap();
    assert_eq!(guest.read(other, handle, 0, 10), Err(libc::EBADF));
    for node in [0, 999, u64::MAX] {
        assert!(guest.lookup(node, "file").is_err());
        assert!(guest.ask(op::GETATTR, node, &[0; 16]).is_err());
    }
    // References that were never given: the root may go, and then comes back with the next mount.
    for (node, count) in [(file, u64::MAX), (ROOT, u64::MAX), (12345, 1)] {
        let message = guest.message(op::FORGET, node, &count.to_le_bytes());
        assert!(guest.exchange(&message, 0).is_empty());
    }
    assert!(guest.lookup(ROOT, "file").is_err());
    guest.mount();
    assert!(guest.lookup(ROOT, "file").is_ok());
}

#[test]
fn nothing_is_served_before_a_mount() {
    let mut guest = Guest::unmounted(100, |_| {});
    std::fs::write(guest.share.join("file"), "content").unwrap();
    assert!(guest.lookup(ROOT, "file").is_err());
    guest.mount();
    assert!(guest.lookup(ROOT, "file").is_ok());
}

#[test]
fn requests_that_are_too_big_are_not_looked_at() {
    let mut guest = guest();
    let message = guest.message(op::LOOKUP, ROOT, &text("file"));
    let at = guest.machine.allocate(4096);
    guest.machine.write(at, &message);
    let huge = Part { address: 0, len: 16 << 20, writable: true };
    let queue = &mut guest.driver.queues[1];
    queue.add(&[Part { address: at, len: message.len() as u32, writable: false }, huge]);
    queue.kick();
    assert_eq!(queue.wait_used().1, 0);
    assert!(guest.lookup(ROOT, "file").is_ok());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: std::env::var("HULL_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(100), max_shrink_iters: 100, ..ProptestConfig::default() })]

    #[test]
    fn no_sequence_of_requests_hurts(
        requests in prop::collection::vec(
            (0..60u32, 0..8u64, prop::collection::vec(any::<u8>(), 0..120), 0..9u64, prop_oneof![Just(4096u32), 0..HEADER * 3], 0..20usize),
            1..80,
        )
    ) {
        let mut guest = guest();
        let directory = guest.mkdir(ROOT, "held").unwrap();
        guest.create(directory, "inner").unwrap();
        for (opcode, node, mut body, handle, room, name) in requests {
            // A handle that may exist where most requests have one, and a name where all have theirs.
            if let Some(space) = body.get_mut(..8) {
                space.copy_from_slice(&handle.to_le_bytes());
            }
            body.extend(text(NAMES.get(name).copied().unwrap_or("file")));
            let message = guest.message(opcode, node, &body);
            guest.exchange(&message, room);
        }
        guest.assert_untouched();
        guest.mount();
        prop_assert_eq!(guest.lookup(ROOT, "nothing"), Err(libc::ENOENT));
    }
}
