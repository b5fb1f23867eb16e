//! Turns a directory of the host into a tree (`rootfs:DIR`), without ever leaving it.
//!
//! Every step is an `openat` relative to a descriptor with `O_NOFOLLOW`, so symlinks are read, never followed,
//! even if somebody changes the directory meanwhile. Other file systems mounted below (such as `/proc`) appear
//! as empty directories.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat};
use sha2::{Digest as _, Sha256};

use super::{Content, Metadata, NodeId, Tree, TreeError, clean_xattrs};
use crate::digest::Digest;
use crate::erofs::data::{DataArea, Extent};
use crate::erofs::{WriteError, encode_device, xattr};
use crate::limits::Limits;

/// Directories below one another; each holds a descriptor open.
const MAX_DEPTH: usize = 400;
/// Most names of attributes of a file, in bytes; the kernel's own limit.
const MAX_XATTR_LIST_BYTES: usize = 64 << 10;

/// Why a directory can't become an image.
#[derive(Debug, thiserror::Error)]
#[error("Cannot read {path}")]
pub struct WalkError {
    /// The file or directory.
    pub path: PathBuf,
    /// The cause.
    #[source]
    pub cause: WalkCause,
}

/// What went wrong with a file.
#[derive(Debug, thiserror::Error)]
pub enum WalkCause {
    /// A system call failed.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// The image can't hold it.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// Writing its data.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// The file became shorter while it was read.
    #[error("The file changed while it was read")]
    Changed,
    /// Directories are nested too deeply.
    #[error("Directories are nested deeper than {MAX_DEPTH}")]
    TooDeep,
}

impl From<rustix::io::Errno> for WalkCause {
    fn from(error: rustix::io::Errno) -> Self {
        WalkCause::Io(error.into())
    }
}

/// Reads the directory. The digest covers all names, metadata and data, in a fixed order.
pub(crate) fn read_directory(dir: &Path, area: &mut DataArea, limits: &Limits) -> Result<(Tree, Digest), WalkError> {
    let mut walker = Walker {
        tree: Tree::new(limits),
        area,
        hasher: Sha256::new(),
        links: HashMap::new(),
        device: 0,
        path: dir.to_owned(),
        buffer: vec![0; 256 << 10],
    };
    walker.walk(dir).map_err(|cause| WalkError { path: walker.path.clone(), cause })?;
    let digest = crate::digest::Hasher::Sha256(walker.hasher).finish();
    Ok((walker.tree, digest))
}

struct Walker<'a> {
    tree: Tree,
    area: &'a mut DataArea,
    hasher: Sha256,
    /// Inodes with more than one name that were seen.
    links: HashMap<u64, NodeId>,
    device: u64,
    /// Where the walk is, for messages.
    path: PathBuf,
    buffer: Vec<u8>,
}

/// A directory that is being read.
struct Frame {
    node: NodeId,
    fd: OwnedFd,
    /// Names left, last first.
    names: Vec<Vec<u8>>,
}

impl Walker<'_> {
    fn walk(&mut self, dir: &Path) -> Result<(), WalkCause> {
        // The directory itself may be a symlink: the user named it.
        let fd = rustix::fs::openat(CWD, dir, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let stat = rustix::fs::fstat(&fd)?;
        self.device = stat.st_dev;
        let xattrs = read_xattrs(&proc_path(&fd, b"."))?;
        let metadata = metadata(&stat, xattrs)?;
        self.hash(b"", &stat, &metadata);
        self.tree.set_metadata(Tree::ROOT, metadata)?;
        let mut frames = vec![Frame { node: Tree::ROOT, names: names(&fd)?, fd }];
        while let Some(frame) = frames.last_mut() {
            let Some(name) = frame.names.pop() else {
                frames.pop();
                self.path.pop();
                self.hasher.update(b"/");
                continue;
            };
            self.path.push(to_os(&name));
            match self.entry(frame.node, &frame.fd, &name)? {
                None => drop(self.path.pop()),
                Some(_) if frames.len() >= MAX_DEPTH => return Err(WalkCause::TooDeep),
                Some(below) => frames.push(below),
            }
        }
        Ok(())
    }

    /// Adds one entry; a directory to descend into is returned.
    fn entry(&mut self, parent: NodeId, dir: &OwnedFd, name: &[u8]) -> Result<Option<Frame>, WalkCause> {
        let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let file_type = FileType::from_raw_mode(stat.st_mode);
        if let Some(node) = self.links.get(&stat.st_ino).copied().filter(|_| stat.st_dev == self.device) {
            self.hash_fields(name, &[b"link", &node.0.to_le_bytes()]);
            self.tree.link(parent, name, node, 0)?;
            return Ok(None);
        }
        let metadata = metadata(&stat, read_xattrs(&proc_path(dir, name))?)?;
        self.hash(name, &stat, &metadata);
        let content = match file_type {
            FileType::Directory => return self.directory(parent, dir, name, metadata, &stat),
            FileType::RegularFile => Content::File(self.file(dir, name, &metadata)?),
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(dir, name, Vec::new())?.into_bytes();
                self.hash_fields(b"", &[&target]);
                Content::Symlink(target.into())
            }
            FileType::CharacterDevice => Content::CharDevice(device(&stat)?),
            FileType::BlockDevice => Content::BlockDevice(device(&stat)?),
            FileType::Fifo => Content::Fifo,
            _ => Content::Socket,
        };
        let node = self.tree.add(metadata, content)?;
        self.tree.link(parent, name, node, 0)?;
        if stat.st_nlink > 1 {
            self.links.insert(stat.st_ino, node);
        }
        Ok(None)
    }

    fn directory(
        &mut self,
        parent: NodeId,
        dir: &OwnedFd,
        name: &[u8],
        metadata: Metadata,
        stat: &Stat,
    ) -> Result<Option<Frame>, WalkCause> {
        let node = self.tree.add(metadata, Content::Directory(BTreeMap::new()))?;
        self.tree.link(parent, name, node, 0)?;
        if stat.st_dev != self.device {
            self.hasher.update(b"/");
            return Ok(None);
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(dir, name, flags, Mode::empty())?;
        Ok(Some(Frame { node, names: names(&fd)?, fd }))
    }

    fn file(&mut self, dir: &OwnedFd, name: &[u8], metadata: &Metadata) -> Result<Extent, WalkCause> {
        // Non-blocking, in case somebody has put a fifo there since `statat`.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let mut file = File::from(rustix::fs::openat(dir, name, flags, Mode::empty())?);
        let stat = rustix::fs::fstat(&file)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(WalkCause::Changed);
        }
        let size_bytes = u64::try_from(stat.st_size).unwrap_or_default();
        let xattr_bytes = xattr::body_bytes(&metadata.xattrs).ok_or(TreeError::XattrsTooLarge)?;
        self.hasher.update(size_bytes.to_le_bytes());
        let mut writer = self.area.begin(size_bytes, xattr_bytes)?;
        let mut left = size_bytes;
        while left > 0 {
            let want = usize::try_from(left).unwrap_or(usize::MAX).min(self.buffer.len());
            let read = file.read(self.buffer.get_mut(..want).unwrap_or_default())?;
            if read == 0 {
                return Err(WalkCause::Changed);
            }
            let data = self.buffer.get(..read).unwrap_or_default();
            self.hasher.update(data);
            writer.write(data)?;
            left -= read as u64;
        }
        Ok(writer.finish()?)
    }

    fn hash(&mut self, name: &[u8], stat: &Stat, metadata: &Metadata) {
        let numbers = [
            u64::from(stat.st_mode),
            u64::from(metadata.uid),
            u64::from(metadata.gid),
            metadata.mtime.cast_unsigned(),
            u64::from(metadata.mtime_nsec),
            stat.st_rdev,
            metadata.xattrs.len() as u64,
        ];
        let numbers: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        self.hash_fields(name, &[&numbers]);
        for xattr in &metadata.xattrs {
            self.hash_fields(&xattr.name, &[&xattr.value]);
        }
    }

    /// Hashes fields with their lengths, so that no two inputs look the same.
    fn hash_fields(&mut self, name: &[u8], fields: &[&[u8]]) {
        for field in std::iter::once(&name).chain(fields) {
            self.hasher.update((field.len() as u64).to_le_bytes());
            self.hasher.update(field);
        }
    }
}

/// Names in a directory, last first.
fn names(fd: &OwnedFd) -> Result<Vec<Vec<u8>>, WalkCause> {
    let mut names = Vec::new();
    for entry in Dir::read_from(fd)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(name.to_vec());
        }
    }
    names.sort_unstable_by(|left, right| right.cmp(left));
    Ok(names)
}

#[allow(clippy::unnecessary_fallible_conversions, reason = "the width of these fields differs between architectures")]
fn metadata(stat: &Stat, xattrs: Attributes) -> Result<Metadata, TreeError> {
    Ok(Metadata {
        mode: u16::try_from(stat.st_mode & 0o7777).unwrap_or_default(),
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime: stat.st_mtime,
        mtime_nsec: u32::try_from(stat.st_mtime_nsec).unwrap_or_default(),
        xattrs: clean_xattrs(xattrs)?,
    })
}

fn device(stat: &Stat) -> Result<u32, TreeError> {
    let (major, minor) = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
    encode_device(major, minor).ok_or(TreeError::BadDevice { major, minor })
}

/// A path to an entry through its directory's descriptor, for system calls without an `at` form. The last
/// component is not followed by those used here.
fn proc_path(fd: &OwnedFd, name: &[u8]) -> Vec<u8> {
    let mut path = format!("/proc/self/fd/{}/", fd.as_fd().as_raw_fd()).into_bytes();
    path.extend(name);
    path
}

/// Names and values of attributes.
type Attributes = Vec<(Vec<u8>, Vec<u8>)>;

fn read_xattrs(path: &[u8]) -> Result<Attributes, WalkCause> {
    let mut list = vec![0_u8; 1024];
    let length = loop {
        match rustix::fs::llistxattr(path, list.as_mut_slice()) {
            Ok(length) => break length,
            Err(rustix::io::Errno::RANGE) if list.len() < MAX_XATTR_LIST_BYTES => list.resize(MAX_XATTR_LIST_BYTES, 0),
            Err(rustix::io::Errno::NOTSUP) => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        }
    };
    let mut xattrs = Vec::new();
    for name in list.get(..length).unwrap_or_default().split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0_u8; MAX_XATTR_LIST_BYTES];
        match rustix::fs::lgetxattr(path, name, value.as_mut_slice()) {
            Ok(length) => value.truncate(length),
            // Removed meanwhile.
            Err(rustix::io::Errno::NODATA) => continue,
            Err(error) => return Err(error.into()),
        }
        xattrs.push((name.to_vec(), value));
    }
    Ok(xattrs)
}

fn to_os(name: &[u8]) -> &std::ffi::OsStr {
    std::os::unix::ffi::OsStrExt::from_bytes(name)
}
