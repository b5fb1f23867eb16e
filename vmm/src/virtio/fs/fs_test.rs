//! A share through its rings: what a guest that follows the rules gets.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::cast_possible_truncation, reason = "tests")]

use std::io::Write as _;
use std::os::unix::fs::{MetadataExt, symlink};

use super::test_guest::{Guest, ROOT, config, create_body, mkdir_body, mknod_body, op, text, truncate_body, u64_at};
use super::{Share, ShareError};
use crate::config::IdRange;
use crate::virtio::testing::{Machine, Part};

const ENOENT: i32 = libc::ENOENT;
const EROFS: i32 = libc::EROFS;

#[test]
fn configuration_shows_tag_and_number_of_queues() {
    let guest = Guest::unmounted(10, |_| {});
    let bytes: [u8; 40] = guest.machine.device_read(guest.driver.device);
    assert_eq!(&bytes[..5], b"data\0");
    assert!(bytes[5..36].iter().all(|&b| b == 0));
    assert_eq!(bytes[36..], 1u32.to_le_bytes());
}

#[test]
fn files_are_made_written_and_read() {
    let mut guest = Guest::new(|_| {});
    let (node, handle) = guest.create(ROOT, "file").unwrap();
    guest.write(node, handle, 0, b"hello").unwrap();
    assert_eq!(std::fs::read(guest.share.join("file")).unwrap(), b"hello");
    std::fs::write(guest.share.join("file"), "changed").unwrap();
    assert_eq!(guest.read(node, handle, 0, 100).unwrap(), b"changed");
    assert_eq!(guest.read(node, handle, 3, 2).unwrap(), b"ng");
    assert_eq!(guest.lookup(ROOT, "file").unwrap(), node, "the same file is the same inode");
    let directory = guest.mkdir(ROOT, "d").unwrap();
    guest.create(directory, "inner").unwrap();
    assert!(guest.share.join("d/inner").is_file());
    assert_eq!(guest.lookup(ROOT, "nothing"), Err(ENOENT));
}

#[test]
fn a_large_write_in_pages_arrives_whole() {
    let mut guest = Guest::new(|_| {});
    let (node, handle) = guest.create(ROOT, "file").unwrap();
    let data: Vec<u8> = (0..1u32 << 20).map(|i| (i % 251) as u8).collect();
    let message = {
        let mut body = super::test_guest::io_body(handle, 4096, 1 << 20);
        body.extend(&data);
        guest.message(op::WRITE, node, &body)
    };
    let at = guest.machine.allocate(message.len() as u64);
    guest.machine.write(at, &message);
    let reply = guest.machine.allocate(64);
    // Headers, then pieces of a page, some of them odd.
    let mut parts = vec![Part { address: at, len: 80, writable: false }];
    parts.extend((0..256).map(|page| Part { address: at + 80 + page * 4096, len: 4096, writable: false }));
    parts.push(Part { address: reply, len: 64, writable: true });
    let queue = &mut guest.driver.queues[1];
    queue.add(&parts);
    queue.kick();
    assert_eq!(queue.wait_used().1, 24);
    let content = std::fs::read(guest.share.join("file")).unwrap();
    assert_eq!(content.len(), 4096 + (1 << 20));
    assert!(content[4096..] == data);
}

#[test]
fn a_buffer_may_cross_regions_of_memory() {
    let mut guest = Guest::new(|_| {});
    std::fs::write(guest.share.join("file"), vec![7; 4096]).unwrap();
    let node = guest.lookup(ROOT, "file").unwrap();
    let handle = guest.open(node, libc::O_RDONLY).unwrap();
    let message = guest.message(op::READ, node, &super::test_guest::io_body(handle, 0, 4096));
    let at = guest.machine.allocate(4096);
    guest.machine.write(at, &message);
    // The test machine has a hole behind 32 MiB: a buffer up to it, then one behind it.
    let parts = [
        Part { address: at, len: message.len() as u32, writable: false },
        Part { address: (32 << 20) - 100, len: 100, writable: true },
        Part { address: 64 << 20, len: 4012, writable: true },
    ];
    guest.driver.queues[1].add(&parts);
    guest.driver.queues[1].kick();
    assert_eq!(guest.driver.queues[1].wait_used().1, 4112);
    assert!(guest.machine.read((32 << 20) - 84, 84).iter().all(|&b| b == 7));
    assert!(guest.machine.read(64 << 20, 4012).iter().all(|&b| b == 7));
}

#[test]
fn a_read_only_share_changes_nothing() {
    let mut guest = Guest::new(|share| share.is_read_only = true);
    std::fs::write(guest.share.join("file"), "content").unwrap();
    std::fs::create_dir(guest.share.join("d")).unwrap();
    symlink("file", guest.share.join("link")).unwrap();
    let before = std::fs::metadata(guest.share.join("file")).unwrap();
    let node = guest.lookup(ROOT, "file").unwrap();
    for flags in [libc::O_WRONLY, libc::O_RDWR, libc::O_TRUNC, libc::O_RDWR | libc::O_TMPFILE] {
        assert_eq!(guest.open(node, flags), Err(EROFS), "{flags:#o}");
    }
    let handle = guest.open(node, libc::O_RDONLY).unwrap();
    assert_eq!(guest.read(node, handle, 0, 100).unwrap(), b"content");
    let directory = guest.lookup(ROOT, "d").unwrap();
    // An unnamed file would be a change too: the flag is dropped, so this opens the directory itself.
    let tmpfile = libc::O_TMPFILE;
    assert!(guest.open(directory, tmpfile).is_ok());

    let rename = [&ROOT.to_le_bytes()[..], &text("file"), &text("other")].concat();
    let rename2 = [&ROOT.to_le_bytes()[..], &[0; 8], &text("file"), &text("other")].concat();
    let link = [&node.to_le_bytes()[..], &text("hard")].concat();
    let setxattr = [&1u32.to_le_bytes()[..], &[0; 4], &text("user.a"), b"x"].concat();
    let fallocate = [&handle.to_le_bytes()[..], &[0; 8], &4096u64.to_le_bytes(), &[0; 8]].concat();
    let copy = [handle, 0, node, handle, 100, 7, 0].map(u64::to_le_bytes).concat();
    let changes: [(u32, u64, Vec<u8>); 14] = [
        (op::MKDIR, ROOT, mkdir_body("new")),
        (op::MKNOD, ROOT, mknod_body(0o100_644, 0, "new")),
        (op::SYMLINK, ROOT, [text("new"), text("target")].concat()),
        (op::CREATE, ROOT, create_body(libc::O_RDWR, "new")),
        (op::UNLINK, ROOT, text("file")),
        (op::RMDIR, ROOT, text("d")),
        (op::RENAME, ROOT, rename),
        (op::RENAME2, ROOT, rename2),
        (op::LINK, ROOT, link),
        (op::SETATTR, node, truncate_body(0)),
        (op::SETXATTR, node, setxattr),
        (op::REMOVEXATTR, node, text("user.a")),
        (op::FALLOCATE, node, fallocate),
        (op::COPY_FILE_RANGE, node, copy),
    ];
    for (opcode, node, body) in changes {
        assert_eq!(guest.ask(opcode, node, &body), Err(EROFS), "request {opcode}");
    }
    assert_eq!(guest.write(node, handle, 0, b"x"), Err(EROFS));
    let names = std::fs::read_dir(&guest.share).unwrap().count();
    let after = std::fs::metadata(guest.share.join("file")).unwrap();
    assert_eq!(names, 3);
    assert_eq!((before.len(), before.mtime_nsec(), before.nlink()), (after.len(), after.mtime_nsec(), after.nlink()));
}

#[test]
fn open_files_are_bounded_and_come_back() {
    // The root directory takes one.
    let mut guest = Guest::with_limit(11, |_| {});
    let mut known = Vec::new();
    for n in 0..5 {
        // A file that is known and open takes two.
        known.push(guest.create(ROOT, &format!("file{n}")).unwrap());
    }
    std::fs::write(guest.share.join("more"), "").unwrap();
    assert_eq!(guest.lookup(ROOT, "more"), Err(libc::ENFILE));
    let (node, handle) = known[0];
    let release = [&handle.to_le_bytes()[..], &[0; 16]].concat();
    guest.ask(18, node, &release).unwrap();
    assert!(guest.lookup(ROOT, "more").is_ok());
    // After a new mount all are free again.
    guest.mount();
    for n in 0..5 {
        let node = guest.lookup(ROOT, &format!("file{n}")).unwrap();
        guest.open(node, libc::O_RDONLY).unwrap();
    }
}

#[test]
fn a_reset_closes_everything_and_the_next_driver_starts_afresh() {
    let mut guest = Guest::new(|_| {});
    let (node, handle) = guest.create(ROOT, "file").unwrap();
    let path = guest.share.join("file");
    assert_eq!(open_at(&path), 2, "known and open");
    guest.driver.start();
    assert_eq!(open_at(&path), 0, "still open after a reset");
    assert_eq!(guest.read(node, handle, 0, 1), Err(libc::EBADF), "a handle of the last driver's");
    guest.mount();
    assert!(guest.lookup(ROOT, "file").is_ok());
}

#[test]
fn a_pause_waits_and_a_resume_goes_on() {
    let mut guest = Guest::new(|_| {});
    let (node, handle) = guest.create(ROOT, "file").unwrap();
    guest.machine.root.pause_devices();
    let mut body = super::test_guest::io_body(handle, 0, 4);
    body.extend(b"data");
    let message = guest.message(op::WRITE, node, &body);
    let at = guest.machine.allocate(4096);
    guest.machine.write(at, &message);
    let queue = &mut guest.driver.queues[1];
    queue.add(&[
        Part { address: at, len: message.len() as u32, writable: false },
        Part { address: at + 2048, len: 64, writable: true },
    ]);
    queue.kick();
    assert_eq!(std::fs::read(guest.share.join("file")).unwrap(), b"", "a paused device does nothing");
    assert!(queue.poll_used().is_none());
    guest.machine.root.resume_devices();
    queue.wait_used();
    assert_eq!(std::fs::read(guest.share.join("file")).unwrap(), b"data");
}

/// Ten requests in the ring at once, of which the device may have done any number when it is taken away.
#[test]
fn a_device_that_is_taken_away_while_it_works_leaves_nothing_open() {
    for wait_for_one in [false, true] {
        let mut guest = Guest::new(|_| {});
        let (node, handle) = guest.create(ROOT, "file").unwrap();
        let at = guest.machine.allocate(1 << 20);
        for number in 0..10u64 {
            let mut body = super::test_guest::io_body(handle, number * 65536, 65536);
            body.extend([7; 65536]);
            let message = guest.message(op::WRITE, node, &body);
            let start = at + number * 0x18000;
            guest.machine.write(start, &message);
            guest.driver.queues[1].add(&[
                Part { address: start, len: message.len() as u32, writable: false },
                Part { address: start + 0x14000, len: 64, writable: true },
            ]);
        }
        guest.driver.queues[1].kick();
        if wait_for_one {
            guest.driver.queues[1].wait_used();
        }
        let path = guest.share.join("file");
        assert!(guest.machine.root.unplug(guest.driver.slot));
        assert_eq!(open_at(&path), 0, "still open");
        let written = std::fs::read(&path).unwrap();
        assert!(
            written.len().is_multiple_of(65536) && written.iter().all(|&byte| byte == 7),
            "half a request was done"
        );
        assert!(!wait_for_one || !written.is_empty());
        assert!(!guest.machine.root.unplug(guest.driver.slot), "it is gone");
        // A driver that doesn't know yet: nothing listens.
        guest.driver.queues[1].kick();
        assert_eq!(std::fs::read(&path).unwrap(), written, "something still works");
    }
}

/// How many file descriptors the monitor has for a file.
fn open_at(path: &std::path::Path) -> usize {
    let target = std::fs::canonicalize(path).unwrap();
    let open = std::fs::read_dir("/proc/self/fd").unwrap().filter_map(Result::ok);
    open.filter(|fd| std::fs::read_link(fd.path()).is_ok_and(|link| link == target)).count()
}

#[test]
fn identifiers_are_mapped() {
    if !nix::unistd::geteuid().is_root() {
        let _ = writeln!(std::io::stderr(), "SKIPPED: only root can give files to others");
        return;
    }
    let range = |guest, host| vec![IdRange { guest, host, count: 10 }];
    let mut guest = Guest::new(|share| {
        share.uid_map = range(0, 5000);
        share.gid_map = range(0, 6000);
    });
    // Owner and group 0 of the header are 5000 and 6000 on the host, who have to be able to write there.
    std::os::unix::fs::chown(&guest.share, Some(5000), Some(6000)).unwrap();
    guest.create(ROOT, "file").unwrap();
    let file = std::fs::metadata(guest.share.join("file")).unwrap();
    assert_eq!((file.uid(), file.gid()), (5000, 6000));
    let entry = guest.ask(op::LOOKUP, ROOT, &text("file")).unwrap();
    assert_eq!((u64_at(&entry, 0) > 1, &entry[40 + 64 + 4..40 + 64 + 12]), (true, &[0; 8][..]), "seen as root's");
    // Not in the map; and the number that means "as it is".
    for id in [10u32, 4999, u32::MAX] {
        let mut message = guest.message(op::MKDIR, ROOT, &mkdir_body("d"));
        message[24..28].copy_from_slice(&id.to_le_bytes());
        let reply = guest.exchange(&message, 4096);
        let error = super::test_guest::u32_at(&reply, 4).cast_signed();
        assert!(error == -libc::EPERM || error == -libc::EINVAL, "{id}: {error}");
    }
    assert!(!guest.share.join("d").exists());
}

#[test]
fn what_is_no_directory_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    std::fs::write(&file, "").unwrap();
    for path in [file, directory.path().join("missing"), "/dev/null".into()] {
        assert!(matches!(Share::new(&config(&path), 10), Err(ShareError::Open { .. })), "{}", path.display());
    }
}

#[test]
fn two_shares_keep_to_themselves() {
    let directory = tempfile::tempdir().unwrap();
    let machine = Machine::new();
    for name in ["a", "b"] {
        std::fs::create_dir(directory.path().join(name)).unwrap();
        let share = config(&directory.path().join(name));
        machine.plug(Box::new(Share::new(&share, 10).unwrap())).start();
    }
    let here = std::env::current_dir().unwrap();
    assert!(here.is_dir(), "the process stays where it is");
}
