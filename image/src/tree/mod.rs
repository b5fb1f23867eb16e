//! The flattened file system while layers are applied: metadata in memory, data already on its way to disk.
//!
//! Nothing in the tree is ever a path on the host: symlinks are bytes, parents are resolved inside the tree.

pub(crate) mod apply;
mod resolve;
#[cfg(test)]
mod tree_test;
pub(crate) mod walk;

use std::collections::BTreeMap;

use crate::erofs::data::Extent;
use crate::erofs::xattr::{self, Xattr};
use crate::limits::Limits;

/// What an entry asks for that the tree can't be.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// The path has a `..` component.
    #[error("The path contains \"..\"")]
    DotDot,
    /// The path is empty or names the root where a file is expected.
    #[error("The path is empty")]
    EmptyPath,
    /// The path contains a NUL byte.
    #[error("The path contains a NUL byte")]
    Nul,
    /// A component is longer than 255 bytes.
    #[error("A name of {0} bytes is longer than 255")]
    NameTooLong(usize),
    /// The path is longer than the limit.
    #[error("The path of {0} bytes is too long")]
    PathTooLong(usize),
    /// A parent is a file or another non-directory.
    #[error("The parent \"{0}\" is not a directory")]
    ParentNotDirectory(String),
    /// Symlinks in the parent path lead in a circle or too far.
    #[error("Too many symbolic links or components in the path")]
    TooManyLinks,
    /// A hard link's target doesn't exist.
    #[error("The hard link's target \"{0}\" does not exist")]
    LinkTargetMissing(String),
    /// A hard link to a directory.
    #[error("The hard link's target \"{0}\" is a directory")]
    LinkToDirectory(String),
    /// A symlink without target or with one longer than a path can be.
    #[error("The symbolic link's target of {0} bytes is empty, too long or has a NUL byte")]
    BadSymlink(usize),
    /// A device number that Linux can't have.
    #[error("Device number {major}:{minor} is out of range")]
    BadDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// Extended attributes that EROFS can't store.
    #[error("The extended attributes are too large")]
    XattrsTooLarge,
    /// Too many entries in all.
    #[error("The image has more than {0} entries")]
    TooManyEntries(u32),
    /// Too much metadata in all.
    #[error("The image has more than {0} bytes of names, links and attributes")]
    TooMuchMetadata(u64),
}

/// Longest name of a file in Linux.
const MAX_NAME_BYTES: usize = 255;
/// Longest target of a symbolic link in Linux, without its NUL.
const MAX_SYMLINK_BYTES: usize = 4095;

/// Index of a node in its tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct NodeId(u32);

impl NodeId {
    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }
}

/// What every node has. Times are kept to the nanosecond.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Metadata {
    /// `0o7777` bits.
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    pub mtime: i64,
    pub mtime_nsec: u32,
    /// Sorted by name; only names that EROFS can store.
    pub xattrs: Box<[Xattr]>,
}

/// A name in a directory, and the number of the layer that put it there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Dirent {
    pub node: NodeId,
    pub layer: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Content {
    Directory(BTreeMap<Box<[u8]>, Dirent>),
    File(Extent),
    Symlink(Box<[u8]>),
    /// Encoded device numbers.
    CharDevice(u32),
    BlockDevice(u32),
    Fifo,
    Socket,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Node {
    pub metadata: Metadata,
    pub content: Content,
    /// Names of a non-directory.
    pub links: u32,
}

/// The tree: an arena of nodes, so that nothing in it recurses.
pub(crate) struct Tree {
    nodes: Vec<Node>,
    metadata_bytes: u64,
    /// Entries that whiteouts and opaque markers looked at: what they cost, which tests hold against the entries.
    visited: u64,
    limits: Limits,
}

impl Tree {
    pub(crate) const ROOT: NodeId = NodeId(0);

    /// A tree that is an empty root directory (`0755`, root, epoch).
    pub(crate) fn new(limits: &Limits) -> Self {
        let root = Node {
            metadata: Metadata { mode: 0o755, ..Metadata::default() },
            content: Content::Directory(BTreeMap::new()),
            links: 1,
        };
        Tree { nodes: vec![root], metadata_bytes: 0, visited: 0, limits: limits.clone() }
    }

    #[allow(
        clippy::indexing_slicing,
        reason = "ids come from this arena, which never shrinks; none is read from input"
    )]
    pub(crate) fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.index()]
    }

    #[allow(
        clippy::indexing_slicing,
        reason = "ids come from this arena, which never shrinks; none is read from input"
    )]
    fn node_mut(&mut self, id: NodeId) -> &mut Node {
        &mut self.nodes[id.index()]
    }

    /// Nodes ever created, live or not.
    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Nodes that still have a name.
    pub(crate) fn live_nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().filter(|node| node.links > 0)
    }

    /// Entries of a directory; nothing for other nodes.
    pub(crate) fn children(&self, id: NodeId) -> impl Iterator<Item = (&[u8], Dirent)> {
        let entries = match &self.node(id).content {
            Content::Directory(entries) => Some(entries),
            _ => None,
        };
        entries.into_iter().flatten().map(|(name, dirent)| (name.as_ref(), *dirent))
    }

    pub(crate) fn is_directory(&self, id: NodeId) -> bool {
        matches!(self.node(id).content, Content::Directory(_))
    }

    fn child(&self, directory: NodeId, name: &[u8]) -> Option<Dirent> {
        match &self.node(directory).content {
            Content::Directory(entries) => entries.get(name).copied(),
            _ => None,
        }
    }

    /// Adds a node without a name yet.
    fn add(&mut self, metadata: Metadata, content: Content) -> Result<NodeId, TreeError> {
        let too_many = || TreeError::TooManyEntries(self.limits.max_entries);
        let id =
            u32::try_from(self.nodes.len()).ok().filter(|id| *id < self.limits.max_entries).ok_or_else(too_many)?;
        if let Content::Symlink(target) = &content {
            self.charge(target.len())?;
        }
        self.charge_xattrs(&metadata)?;
        self.nodes.push(Node { metadata, content, links: 0 });
        Ok(NodeId(id))
    }

    fn set_metadata(&mut self, id: NodeId, metadata: Metadata) -> Result<(), TreeError> {
        self.charge_xattrs(&metadata)?;
        self.node_mut(id).metadata = metadata;
        Ok(())
    }

    fn charge_xattrs(&mut self, metadata: &Metadata) -> Result<(), TreeError> {
        self.charge(metadata.xattrs.iter().map(|xattr| xattr.name.len() + xattr.value.len()).sum())
    }

    /// Names a node. The name must be free.
    fn link(&mut self, directory: NodeId, name: &[u8], node: NodeId, layer: u32) -> Result<(), TreeError> {
        self.charge(name.len())?;
        self.node_mut(node).links += 1;
        if let Content::Directory(entries) = &mut self.node_mut(directory).content {
            entries.insert(name.into(), Dirent { node, layer });
        }
        Ok(())
    }

    /// Removes a name and all below it. Data of files that lost their last name is added to `dead`.
    fn unlink(&mut self, directory: NodeId, name: &[u8], dead: &mut Vec<Extent>) {
        let Content::Directory(entries) = &mut self.node_mut(directory).content else { return };
        let Some(dirent) = entries.remove(name) else { return };
        let mut pending = vec![dirent.node];
        while let Some(id) = pending.pop() {
            let node = self.node_mut(id);
            node.links = node.links.saturating_sub(1);
            match &mut node.content {
                Content::Directory(entries) => {
                    pending.extend(std::mem::take(entries).into_values().map(|dirent| dirent.node));
                }
                Content::File(extent) if node.links == 0 => dead.push(*extent),
                _ => {}
            }
        }
    }

    /// Counts memory that hostile input makes us hold. Removed entries are not given back: the bound is on
    /// everything an image ever said.
    fn charge(&mut self, bytes: usize) -> Result<(), TreeError> {
        self.metadata_bytes = self.metadata_bytes.saturating_add(bytes as u64);
        if self.metadata_bytes > self.limits.max_metadata_bytes {
            return Err(TreeError::TooMuchMetadata(self.limits.max_metadata_bytes));
        }
        Ok(())
    }
}

/// Attributes as the tree keeps them: sorted, the last of equal names, without those that an image can't
/// mean (`trusted.overlay.*` and `user.overlay.*` steer the overlay file system of the guest) or EROFS can't store.
pub(crate) fn clean_xattrs(xattrs: Vec<(Vec<u8>, Vec<u8>)>) -> Result<Box<[Xattr]>, TreeError> {
    let storable = |name: &[u8]| {
        xattr::split_name(name).is_some()
            && !name.starts_with(b"trusted.overlay.")
            && !name.starts_with(b"user.overlay.")
    };
    let sorted: BTreeMap<Vec<u8>, Vec<u8>> = xattrs.into_iter().filter(|(name, _)| storable(name)).collect();
    let xattrs: Box<[Xattr]> =
        sorted.into_iter().map(|(name, value)| Xattr { name: name.into(), value: value.into() }).collect();
    match xattr::body_bytes(&xattrs) {
        Some(_) => Ok(xattrs),
        None => Err(TreeError::XattrsTooLarge),
    }
}

/// Bytes as text for a message: one line, bounded.
pub(crate) fn printable(bytes: &[u8]) -> String {
    let shown = bytes.get(..256).unwrap_or(bytes);
    let mut text: String = String::from_utf8_lossy(shown).chars().flat_map(escape).collect();
    if shown.len() < bytes.len() {
        text.push_str("...");
    }
    text
}

fn escape(character: char) -> Vec<char> {
    if character.is_control() { character.escape_default().collect() } else { vec![character] }
}
