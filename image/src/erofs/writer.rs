//! The back of the EROFS file: directories, inodes and the superblock, from the finished tree.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;

use super::WriteError;
use super::data::DataArea;
use super::directory::{self, Entry, FileType};
use super::format::{
    BLOCK_BYTES, COMPACT_INODE_BYTES, EXTENDED_INODE_BYTES, InodeRecord, NULL_BLOCK, SLOT_BYTES, Superblock,
};
use super::metadata::MetadataSpace;
use super::xattr;
use crate::tree::{Content, Metadata, Node, NodeId, Tree};

const BLOCK: u64 = BLOCK_BYTES as u64;
/// The root's place. Not 0: an inode number of 0 means "no file" to some C libraries.
const ROOT_OFFSET: usize = 2 * SLOT_BYTES;

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Written {
    /// Length of the file, holes included.
    pub size_bytes: u64,
    /// Bytes really written.
    pub written_bytes: u64,
    pub inodes: u64,
}

/// Completes the image; the file is synced when this returns.
pub(crate) fn finish(tree: &Tree, area: DataArea, uuid: [u8; 16]) -> Result<(File, Written), WriteError> {
    let mut writer =
        Writer { tree, area, plan: Vec::new(), index: vec![None; tree.len()], base: most_common_time(tree) };
    writer.enumerate();
    let meta_blocks = writer.place()?;
    writer.write_blocks()?;
    let meta_block = writer.area.next_block()?;
    writer.write_inodes(meta_blocks)?;
    let superblock = Superblock {
        root_nid: u16::try_from(ROOT_OFFSET / SLOT_BYTES).unwrap_or_default(),
        inodes: writer.plan.len() as u64,
        blocks: writer.area.next_block()?,
        meta_block,
        build_time: writer.base.0,
        build_time_nsec: writer.base.1,
        uuid,
    };
    let written = Written {
        size_bytes: u64::from(superblock.blocks) * BLOCK,
        written_bytes: writer.area.written_bytes() + BLOCK,
        inodes: superblock.inodes,
    };
    let file = writer.area.finish(&superblock.to_block())?;
    Ok((file, written))
}

/// An inode to be written.
struct Planned {
    node: NodeId,
    /// Place in the plan of the directory it was found in (for `..`).
    parent: usize,
    links: u32,
    compact: bool,
    size: u64,
    /// Bytes of the last block that go beside the inode.
    tail_bytes: usize,
    address: u32,
    offset: u64,
}

struct Writer<'a> {
    tree: &'a Tree,
    area: DataArea,
    /// All live inodes, the root first, siblings together.
    plan: Vec<Planned>,
    /// Place in the plan of each node of the tree.
    index: Vec<Option<usize>>,
    base: (i64, u32),
}

impl Writer<'_> {
    /// Finds all live nodes, breadth first, and counts the links of directories.
    fn enumerate(&mut self) {
        self.add(Tree::ROOT, 0);
        let mut directories = VecDeque::from([0]);
        while let Some(parent) = directories.pop_front() {
            let Some(directory) = self.plan.get(parent).map(|planned| planned.node) else { continue };
            let tree = self.tree;
            for (_, dirent) in tree.children(directory) {
                if self.index.get(dirent.node.index()).is_some_and(Option::is_some) {
                    continue; // another name of a hard link
                }
                let place = self.add(dirent.node, parent);
                if tree.is_directory(dirent.node) {
                    directories.push_back(place);
                    if let Some(planned) = self.plan.get_mut(parent) {
                        planned.links = planned.links.saturating_add(1);
                    }
                }
            }
        }
    }

    fn add(&mut self, id: NodeId, parent: usize) -> usize {
        let node = self.tree.node(id);
        let place = self.plan.len();
        if let Some(slot) = self.index.get_mut(id.index()) {
            *slot = Some(place);
        }
        let links = if self.tree.is_directory(id) { 2 } else { node.links };
        let planned =
            Planned { node: id, parent, links, compact: false, size: 0, tail_bytes: 0, address: 0, offset: 0 };
        self.plan.push(planned);
        place
    }

    /// Decides size, form and place of each inode, and the addresses of blocks that aren't written yet.
    /// Returns the blocks of metadata.
    fn place(&mut self) -> Result<u64, WriteError> {
        let mut space = MetadataSpace::new(ROOT_OFFSET);
        let mut next_block = u64::from(self.area.next_block()?);
        let mut plan = std::mem::take(&mut self.plan);
        let mut end = 0;
        for planned in &mut plan {
            let node = self.tree.node(planned.node);
            planned.size = self.size(planned.node);
            planned.compact = self.fits_compact(&node.metadata, planned);
            let xattr_bytes = xattr::body_bytes(&node.metadata.xattrs).unwrap_or_default();
            let inode_bytes = if planned.compact { COMPACT_INODE_BYTES } else { EXTENDED_INODE_BYTES } + xattr_bytes;
            match &node.content {
                Content::File(extent) => {
                    planned.tail_bytes = extent.tail_bytes();
                    planned.address = extent.start_block;
                }
                Content::Directory(_) | Content::Symlink(_) => {
                    let tail_bytes = usize::try_from(planned.size % BLOCK).unwrap_or_default();
                    let inline = inode_bytes + tail_bytes <= BLOCK_BYTES;
                    planned.tail_bytes = if inline { tail_bytes } else { 0 };
                    let blocks = (planned.size - planned.tail_bytes as u64).div_ceil(BLOCK);
                    let start = u32::try_from(next_block).map_err(|_| WriteError::TooManyBlocks)?;
                    planned.address = if blocks > 0 { start } else { NULL_BLOCK };
                    next_block += blocks;
                }
                Content::CharDevice(device) | Content::BlockDevice(device) => planned.address = *device,
                Content::Fifo | Content::Socket => {}
            }
            planned.offset = space.allocate(inode_bytes + planned.tail_bytes);
            end = end.max(planned.offset + (inode_bytes + planned.tail_bytes) as u64);
        }
        self.plan = plan;
        // fsck.erofs 1.5 reads an attribute header after every inode, also after the last one without any.
        Ok(space.blocks().max((end + SLOT_BYTES as u64).div_ceil(BLOCK)))
    }

    fn size(&self, id: NodeId) -> u64 {
        match &self.tree.node(id).content {
            Content::Directory(_) => directory::data_bytes(self.names(id).into_iter().map(|(name, _)| name)),
            Content::File(extent) => extent.size_bytes,
            Content::Symlink(target) => target.len() as u64,
            _ => 0,
        }
    }

    fn fits_compact(&self, metadata: &Metadata, planned: &Planned) -> bool {
        (metadata.mtime, metadata.mtime_nsec) == self.base
            && metadata.uid <= u32::from(u16::MAX)
            && metadata.gid <= u32::from(u16::MAX)
            && planned.links <= u32::from(u16::MAX)
            && planned.size <= u64::from(u32::MAX)
    }

    /// Names of a directory in byte order with `.` and `..` (as `None`) among them.
    fn names(&self, id: NodeId) -> Vec<(&[u8], Option<NodeId>)> {
        let mut names: Vec<(&[u8], Option<NodeId>)> =
            self.tree.children(id).map(|(name, dirent)| (name, Some(dirent.node))).collect();
        for name in [b"..".as_slice(), b"."] {
            let place = names.partition_point(|(other, _)| *other < name);
            names.insert(place, (name, None));
        }
        names
    }

    /// Data of a directory or symlink.
    fn data(&self, planned: &Planned) -> Vec<u8> {
        match &self.tree.node(planned.node).content {
            Content::Symlink(target) => target.to_vec(),
            Content::Directory(_) => directory::data(&self.entries(planned)),
            _ => Vec::new(),
        }
    }

    fn entries(&self, planned: &Planned) -> Vec<Entry<'_>> {
        let nid = |place: Option<usize>| {
            place.and_then(|place| self.plan.get(place)).map_or(0, |planned| planned.offset / SLOT_BYTES as u64)
        };
        let place = |id: NodeId| self.index.get(id.index()).copied().flatten();
        let entry = |(name, child): (_, Option<NodeId>)| match child {
            Some(child) => Entry { name, nid: nid(place(child)), file_type: file_type(self.tree.node(child)) },
            None if name == b"." => Entry { name, nid: nid(place(planned.node)), file_type: FileType::Directory },
            None => Entry { name, nid: nid(Some(planned.parent)), file_type: FileType::Directory },
        };
        self.names(planned.node).into_iter().map(entry).collect()
    }

    /// Writes the blocks that [`place`](Self::place) gave addresses to, in the same order.
    fn write_blocks(&mut self) -> Result<(), WriteError> {
        for planned in &self.plan {
            let is_file = matches!(self.tree.node(planned.node).content, Content::File(_));
            let body_bytes = usize::try_from(planned.size).unwrap_or_default().saturating_sub(planned.tail_bytes);
            if is_file || body_bytes == 0 {
                continue;
            }
            let data = self.data(planned);
            self.area.push(data.get(..body_bytes).unwrap_or_default())?;
            self.area.align()?;
        }
        Ok(())
    }

    fn write_inodes(&mut self, meta_blocks: u64) -> Result<(), WriteError> {
        let mut order: Vec<usize> = (0..self.plan.len()).collect();
        order.sort_unstable_by_key(|place| self.plan.get(*place).map(|planned| planned.offset));
        let mut position = 0;
        let mut bytes = Vec::new();
        for place in order {
            let Some(planned) = self.plan.get(place) else { continue };
            bytes.resize(usize::try_from(planned.offset - position).unwrap_or_default(), 0);
            self.inode(planned, place, &mut bytes);
            match &self.tree.node(planned.node).content {
                Content::File(extent) => self.area.append_tail(extent, &mut bytes)?,
                _ if planned.tail_bytes > 0 => {
                    let data = self.data(planned);
                    bytes.extend(data.get(data.len() - planned.tail_bytes..).unwrap_or_default());
                }
                _ => {}
            }
            self.area.push(&bytes)?;
            position += bytes.len() as u64;
            bytes.clear();
        }
        bytes.resize(usize::try_from(meta_blocks * BLOCK - position).unwrap_or_default(), 0);
        self.area.push(&bytes)
    }

    fn inode(&self, planned: &Planned, place: usize, bytes: &mut Vec<u8>) {
        let node = self.tree.node(planned.node);
        let metadata = &node.metadata;
        let record = InodeRecord {
            compact: planned.compact,
            inline: planned.tail_bytes > 0,
            xattr_count: xattr::icount(xattr::body_bytes(&metadata.xattrs).unwrap_or_default()),
            mode: type_bits(node) | metadata.mode,
            links: planned.links,
            size: planned.size,
            address: planned.address,
            serial: u32::try_from(place + 1).unwrap_or(u32::MAX),
            uid: metadata.uid,
            gid: metadata.gid,
            mtime: metadata.mtime,
            mtime_nsec: metadata.mtime_nsec,
        };
        record.write(bytes);
        xattr::write(&metadata.xattrs, bytes);
    }
}

/// The time most inodes have: those can be compact, because their time is in the superblock.
fn most_common_time(tree: &Tree) -> (i64, u32) {
    let mut counts: BTreeMap<(i64, u32), u32> = BTreeMap::new();
    for node in tree.live_nodes() {
        *counts.entry((node.metadata.mtime, node.metadata.mtime_nsec)).or_default() += 1;
    }
    // The superblock's time is unsigned: negative times stay in extended inodes.
    let most = counts
        .into_iter()
        .filter(|(time, _)| time.0 >= 0)
        .max_by_key(|(time, count)| (*count, std::cmp::Reverse(*time)));
    most.map_or((0, 0), |(time, _)| time)
}

fn file_type(node: &Node) -> FileType {
    match node.content {
        Content::Directory(_) => FileType::Directory,
        Content::File(_) => FileType::Regular,
        Content::Symlink(_) => FileType::Symlink,
        Content::CharDevice(_) => FileType::CharDevice,
        Content::BlockDevice(_) => FileType::BlockDevice,
        Content::Fifo => FileType::Fifo,
        Content::Socket => FileType::Socket,
    }
}

fn type_bits(node: &Node) -> u16 {
    match node.content {
        Content::Directory(_) => 0o040_000,
        Content::File(_) => 0o100_000,
        Content::Symlink(_) => 0o120_000,
        Content::CharDevice(_) => 0o020_000,
        Content::BlockDevice(_) => 0o060_000,
        Content::Fifo => 0o010_000,
        Content::Socket => 0o140_000,
    }
}
