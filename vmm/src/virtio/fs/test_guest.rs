//! A guest that speaks FUSE to a share, correctly or not.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "tests stop at the first surprise"
)]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tempfile::TempDir;

use super::Share;
use crate::config::{self, ShareCache};
use crate::virtio::testing::{Driver, Machine, Part};

/// Requests (`enum fuse_opcode`).
pub mod op {
    pub const LOOKUP: u32 = 1;
    pub const FORGET: u32 = 2;
    pub const GETATTR: u32 = 3;
    pub const SETATTR: u32 = 4;
    pub const READLINK: u32 = 5;
    pub const SYMLINK: u32 = 6;
    pub const MKNOD: u32 = 8;
    pub const MKDIR: u32 = 9;
    pub const UNLINK: u32 = 10;
    pub const RMDIR: u32 = 11;
    pub const RENAME: u32 = 12;
    pub const LINK: u32 = 13;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const WRITE: u32 = 16;
    pub const SETXATTR: u32 = 21;
    pub const REMOVEXATTR: u32 = 24;
    pub const INIT: u32 = 26;
    pub const OPENDIR: u32 = 27;
    pub const READDIR: u32 = 28;
    pub const CREATE: u32 = 35;
    pub const BATCH_FORGET: u32 = 42;
    pub const FALLOCATE: u32 = 43;
    pub const READDIRPLUS: u32 = 44;
    pub const RENAME2: u32 = 45;
    pub const LSEEK: u32 = 46;
    pub const COPY_FILE_RANGE: u32 = 47;
    pub const TMPFILE: u32 = 51;
}

/// The root directory's inode.
pub const ROOT: u64 = 1;
pub const HEADER: u32 = 16;
const AREA: u64 = 2 << 20;
const SECRET: &str = "nobody may read this";

/// A guest with a share, and files beside the share.
pub struct Guest {
    pub machine: Arc<Machine>,
    pub driver: Driver,
    pub share: PathBuf,
    outside: PathBuf,
    send: u64,
    receive: u64,
    unique: u64,
    _directory: TempDir,
}

/// A reply: error number, or what is behind the header.
pub type Reply = Result<Vec<u8>, i32>;

pub fn config(path: &Path) -> config::Share {
    config::Share {
        tag: "data".to_owned(),
        path_on_host: path.to_owned(),
        is_read_only: false,
        cache: ShareCache::Auto,
        writeback: false,
        xattr: true,
        uid_map: Vec::new(),
        gid_map: Vec::new(),
    }
}

impl Guest {
    /// Mounts a share.
    pub fn new(change: impl FnOnce(&mut config::Share)) -> Self {
        Self::with_limit(1000, change)
    }

    pub fn with_limit(max_open_files: u64, change: impl FnOnce(&mut config::Share)) -> Self {
        let mut this = Self::unmounted(max_open_files, change);
        this.mount();
        this
    }

    pub fn unmounted(max_open_files: u64, change: impl FnOnce(&mut config::Share)) -> Self {
        let directory = TempDir::new().unwrap();
        let (share, outside) = (directory.path().join("share"), directory.path().join("outside"));
        std::fs::create_dir(&share).unwrap();
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(outside.join("secret"), SECRET).unwrap();
        let mut config = config(&share);
        change(&mut config);
        let machine = Machine::new();
        let (send, receive) = (machine.allocate(AREA), machine.allocate(AREA));
        let mut driver = machine.plug(Box::new(Share::new(&config, max_open_files).unwrap()));
        driver.start();
        Self { machine, driver, share, outside, send, receive, unique: 0, _directory: directory }
    }

    /// Everything outside is as it was.
    pub fn assert_untouched(&self) {
        let entries = |path: &Path| -> Vec<_> {
            let mut names: Vec<_> = std::fs::read_dir(path).unwrap().map(|e| e.unwrap().file_name()).collect();
            names.sort();
            names
        };
        assert_eq!(entries(&self.outside), ["secret"]);
        assert_eq!(std::fs::read_to_string(self.outside.join("secret")).unwrap(), SECRET);
        assert_eq!(entries(self.outside.parent().unwrap()), ["outside", "share"]);
    }

    pub fn mount(&mut self) {
        let mut body = [7u32, 38, 65536, !(1 << 30)].map(u32::to_le_bytes).concat();
        body.extend([0; 48]);
        self.ask(op::INIT, ROOT, &body).unwrap();
    }

    /// A header and a body as they should be.
    pub fn message(&mut self, opcode: u32, node: u64, body: &[u8]) -> Vec<u8> {
        self.unique += 2;
        let mut message = (40 + body.len() as u32).to_le_bytes().to_vec();
        message.extend(opcode.to_le_bytes());
        message.extend(self.unique.to_le_bytes());
        message.extend(node.to_le_bytes());
        message.extend([0; 16]);
        message.extend(body);
        message
    }

    /// Sends any bytes, in two pieces; returns what was written to a buffer of `room` bytes.
    pub fn exchange(&mut self, message: &[u8], room: u32) -> Vec<u8> {
        self.machine.write(self.send, message);
        let first = (message.len() as u32).min(40);
        let readable = |at: u32, len: u32| Part { address: self.send + u64::from(at), len, writable: false };
        let mut parts = vec![readable(0, first)];
        if message.len() > 40 {
            parts.push(readable(first, message.len() as u32 - first));
        }
        if room > 0 {
            parts.push(Part { address: self.receive, len: room, writable: true });
        }
        self.driver.queues[1].add(&parts);
        self.driver.queues[1].kick();
        let (_, used) = self.driver.queues[1].wait_used();
        assert!(used <= room, "more was written than there is room");
        self.machine.read(self.receive, used as usize)
    }

    /// A well-formed request with room for any reply.
    pub fn ask(&mut self, opcode: u32, node: u64, body: &[u8]) -> Reply {
        self.ask_for(opcode, node, body, 1 << 20)
    }

    /// A well-formed request with so much room for its reply.
    fn ask_for(&mut self, opcode: u32, node: u64, body: &[u8], room: u32) -> Reply {
        let message = self.message(opcode, node, body);
        let reply = self.exchange(&message, room);
        assert!(reply.len() >= HEADER as usize, "no reply to {opcode}");
        assert_eq!(u32_at(&reply, 0) as usize, reply.len(), "length");
        assert_eq!(u64_at(&reply, 8), self.unique, "whose reply");
        match u32_at(&reply, 4).cast_signed() {
            0 => Ok(reply[HEADER as usize..].to_vec()),
            error => Err(-error),
        }
    }

    /// Inode of a name.
    pub fn lookup(&mut self, parent: u64, name: &str) -> Result<u64, i32> {
        self.ask(op::LOOKUP, parent, &text(name)).map(|entry| u64_at(&entry, 0))
    }

    /// Handle of a file.
    pub fn open(&mut self, node: u64, flags: i32) -> Result<u64, i32> {
        let body = [flags.cast_unsigned().to_le_bytes(), [0; 4]].concat();
        self.ask(op::OPEN, node, &body).map(|open| u64_at(&open, 0))
    }

    /// Inode and handle of a new file.
    pub fn create(&mut self, parent: u64, name: &str) -> Result<(u64, u64), i32> {
        let reply = self.ask(op::CREATE, parent, &create_body(libc::O_RDWR, name))?;
        Ok((u64_at(&reply, 0), u64_at(&reply, 128)))
    }

    pub fn read(&mut self, node: u64, handle: u64, offset: u64, size: u32) -> Reply {
        // The library fills all there is: a driver gives as much as it wants.
        self.ask_for(op::READ, node, &io_body(handle, offset, size), HEADER + size)
    }

    pub fn write(&mut self, node: u64, handle: u64, offset: u64, data: &[u8]) -> Reply {
        let mut body = io_body(handle, offset, data.len() as u32);
        body.extend(data);
        self.ask(op::WRITE, node, &body)
    }

    /// Makes a directory and returns its inode.
    pub fn mkdir(&mut self, parent: u64, name: &str) -> Result<u64, i32> {
        let reply = self.ask(op::MKDIR, parent, &mkdir_body(name))?;
        Ok(u64_at(&reply, 0))
    }
}

pub fn text(text: &str) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    bytes.push(0);
    bytes
}

/// `struct fuse_mkdir_in` and a name.
pub fn mkdir_body(name: &str) -> Vec<u8> {
    [&0o755u32.to_le_bytes()[..], &[0; 4], &text(name)].concat()
}

/// `struct fuse_mknod_in` and a name.
pub fn mknod_body(mode: u32, device: u32, name: &str) -> Vec<u8> {
    [&mode.to_le_bytes()[..], &device.to_le_bytes(), &[0; 8], &text(name)].concat()
}

/// `struct fuse_create_in` and a name.
pub fn create_body(flags: i32, name: &str) -> Vec<u8> {
    [&flags.cast_unsigned().to_le_bytes()[..], &0o100_644u32.to_le_bytes(), &[0; 8], &text(name)].concat()
}

/// `struct fuse_read_in` or `fuse_write_in`.
pub fn io_body(handle: u64, offset: u64, size: u32) -> Vec<u8> {
    [&handle.to_le_bytes()[..], &offset.to_le_bytes(), &size.to_le_bytes(), &[0; 20]].concat()
}

/// `struct fuse_setattr_in` with a size, by the inode.
pub fn truncate_body(size: u64) -> Vec<u8> {
    let mut body = vec![0; 88];
    body[0..4].copy_from_slice(&8u32.to_le_bytes());
    body[16..24].copy_from_slice(&size.to_le_bytes());
    body
}

pub fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

pub fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}
