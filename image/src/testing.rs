//! Helpers for unit tests: tar archives as bytes, EROFS files in memory, and what is in them.

use std::collections::BTreeMap;
use std::io::{Read, Write};

use erofs_rs::EroFS;
use erofs_rs::backend::SliceImage;

use crate::cancel::Cancel;
use crate::erofs::data::DataArea;
use crate::erofs::writer::{self, Written};
use crate::limits::Limits;
use crate::tree::Tree;
use crate::tree::apply::{ApplyError, apply_layer};

/// Builds an archive entry by entry, also hostile ones that the `tar` crate would refuse to write.
pub(crate) struct TarBytes(tar::Builder<Vec<u8>>);

impl TarBytes {
    pub(crate) fn new() -> Self {
        TarBytes(tar::Builder::new(Vec::new()))
    }

    pub(crate) fn header(path: &str, kind: tar::EntryType, size: u64) -> tar::Header {
        let mut header = tar::Header::new_gnu();
        let name = &mut header.as_old_mut().name;
        name[..path.len().min(100)].copy_from_slice(&path.as_bytes()[..path.len().min(100)]);
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000_000);
        header
    }

    pub(crate) fn append(mut self, mut header: tar::Header, data: &[u8]) -> Self {
        header.set_cksum();
        self.0.append(&header, data).unwrap();
        self
    }

    pub(crate) fn file(self, path: &str, data: &[u8]) -> Self {
        let header = Self::header(path, tar::EntryType::Regular, data.len() as u64);
        self.append(header, data)
    }

    pub(crate) fn dir(self, path: &str) -> Self {
        let mut header = Self::header(path, tar::EntryType::Directory, 0);
        header.set_mode(0o755);
        self.append(header, &[])
    }

    pub(crate) fn link(self, kind: tar::EntryType, path: &str, target: &str) -> Self {
        let mut header = Self::header(path, kind, 0);
        header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
        self.append(header, &[])
    }

    pub(crate) fn symlink(self, path: &str, target: &str) -> Self {
        self.link(tar::EntryType::Symlink, path, target)
    }

    pub(crate) fn hardlink(self, path: &str, target: &str) -> Self {
        self.link(tar::EntryType::Link, path, target)
    }

    pub(crate) fn pax(mut self, records: &[(&str, &[u8])]) -> Self {
        self.0.append_pax_extensions(records.iter().copied()).unwrap();
        self
    }

    pub(crate) fn finish(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

/// Applies layers and writes the EROFS file.
pub(crate) fn flatten_with(layers: &[Vec<u8>], limits: &Limits) -> Result<(Vec<u8>, Written), ApplyError> {
    let dir = tempfile::tempdir().unwrap();
    let file = tempfile::tempfile_in(dir.path()).unwrap();
    let mut area = DataArea::new(file, dir.path(), limits, &Cancel::default());
    let mut tree = Tree::new(limits);
    for (number, layer) in (1..).zip(layers) {
        apply_layer(&mut tree, &mut area, layer.as_slice(), number)?;
    }
    let (mut file, written) = writer::finish(&tree, area, [7; 16]).unwrap();
    let mut bytes = Vec::new();
    std::io::Seek::rewind(&mut file).unwrap();
    file.read_to_end(&mut bytes).unwrap();
    Ok((bytes, written))
}

pub(crate) fn flatten(layers: &[Vec<u8>]) -> Vec<u8> {
    flatten_with(layers, &Limits::default()).unwrap().0
}

/// The first error of applying layers, with all its causes.
pub(crate) fn refusal(layers: &[Vec<u8>]) -> String {
    chain(&flatten_with(layers, &Limits::default()).unwrap_err())
}

pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(current) = cause {
        text.push_str(&format!(": {current}"));
        cause = current.source();
    }
    text
}

/// What an image has at a path, as an independent reader sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Item {
    /// `f`, `d`, `l`, `c`, `b`, `p`.
    pub kind: char,
    pub mode: u32,
    pub owner: (u32, u32),
    pub mtime: (i64, u32),
    pub links: u32,
    pub nid: u64,
    /// Data or symlink target.
    pub data: Vec<u8>,
    pub device: Option<(u32, u32)>,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// Reads everything in an EROFS file with `erofs-rs`; paths without a leading slash, the root as "".
pub(crate) fn read_back(bytes: &[u8]) -> BTreeMap<String, Item> {
    let fs = EroFS::new(SliceImage::new(bytes)).unwrap();
    let root = fs.get_inode(fs.super_block().root_inode_id()).unwrap();
    let mut items = BTreeMap::from([(String::new(), item(&fs, root))]);
    for entry in fs.walk_dir("/").unwrap() {
        let entry = entry.unwrap();
        let path = String::from_utf8(entry.dir_entry.path().into_vec()).unwrap();
        items.insert(path.trim_start_matches('/').to_owned(), item(&fs, entry.inode));
    }
    items
}

fn item<I: erofs_rs::backend::Image>(fs: &EroFS<I>, inode: erofs_rs::types::Inode) -> Item {
    use std::os::unix::fs::PermissionsExt;
    let file_type = format!("{:?}", inode.file_type());
    let kind = match file_type.as_str() {
        "RegularFile" => 'f',
        "Directory" => 'd',
        "Symlink" => 'l',
        "CharacterDevice" => 'c',
        "BlockDevice" => 'b',
        "Fifo" => 'p',
        other => panic!("unexpected type {other}"),
    };
    let mut data = Vec::new();
    if kind == 'f' {
        fs.open_inode_file(inode).unwrap().read_to_end(&mut data).unwrap();
    } else if kind == 'l' {
        data = fs.read_link_inode(inode).unwrap().into_vec();
    }
    Item {
        kind,
        mode: inode.permissions().mode() & 0o7777,
        owner: (inode.uid(), inode.gid()),
        mtime: inode.modified_unix(),
        links: inode.nlink(),
        nid: inode.id(),
        data,
        device: inode.device(),
        xattrs: fs.xattrs_inode(inode).unwrap(),
    }
}

/// Runs `fsck.erofs` on an image, if it is installed; says so loudly if not.
pub(crate) fn fsck(bytes: &[u8]) {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    match std::process::Command::new("fsck.erofs").arg(file.path()).output() {
        Ok(output) => assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr)),
        Err(error) => {
            // Not by `eprintln`, which the test harness hides.
            let _ = writeln!(std::io::stderr(), "SKIPPED: fsck.erofs cannot run ({error}); install erofs-utils");
        }
    }
}
