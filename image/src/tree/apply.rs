//! Applies one layer to the tree (OCI image specification, "Applying Changesets").

use std::collections::{BTreeMap, HashSet};
use std::io::Read;

use super::resolve::{Missing, components};
use super::{Content, MAX_SYMLINK_BYTES, Metadata, NodeId, Tree, TreeError, clean_xattrs, printable};
use crate::erofs::data::{DataArea, Extent};
use crate::erofs::{WriteError, encode_device};
use crate::tar::{Chunk, Entry, EntryKind, TarError, TarReader};

/// Why a layer can't be applied; [`ApplyError::entry`] says at which entry.
#[derive(Debug, thiserror::Error)]
#[error("Entry \"{entry}\" cannot be unpacked")]
pub struct ApplyError {
    /// Path of the entry, shortened and without control characters; the last good one if the archive is damaged.
    pub entry: String,
    /// The cause.
    #[source]
    pub cause: ApplyCause,
}

/// What went wrong with an entry.
#[derive(Debug, thiserror::Error)]
pub enum ApplyCause {
    /// The archive.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// What the entry asks for.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// Writing its data.
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// Size of the pieces in which file data is copied.
const COPY_BYTES: usize = 128 << 10;

/// Applies the tar stream as layer number `layer` (larger than those before). Reads to the end of the archive,
/// not of the stream.
pub(crate) fn apply_layer(
    tree: &mut Tree,
    area: &mut DataArea,
    archive: impl Read,
    layer: u32,
) -> Result<(), ApplyError> {
    let mut reader = TarReader::new(archive);
    let mut applier = Applier { tree, area, layer, pruned: HashSet::new(), buffer: vec![0; COPY_BYTES] };
    let mut last = Vec::new();
    loop {
        let failed = |path: &[u8], cause| ApplyError { entry: printable(path), cause };
        let entry = match reader.next_entry() {
            Ok(Some(entry)) => entry,
            Ok(None) => return Ok(()),
            Err(error) => return Err(failed(&last, error.into())),
        };
        last = entry.path.clone();
        applier.apply(entry, &mut reader).map_err(|cause| failed(&last, cause))?;
    }
}

struct Applier<'a> {
    tree: &'a mut Tree,
    area: &'a mut DataArea,
    layer: u32,
    /// Directories in which lower layers have nothing left but parents of what this layer put there; whatever enters
    /// them from now on is this layer's.
    pruned: HashSet<NodeId>,
    buffer: Vec<u8>,
}

/// What a name in a layer means.
enum Meaning<'a> {
    Entry(&'a [u8]),
    Whiteout(&'a [u8]),
    Opaque,
    /// AUFS bookkeeping, which docker skips too.
    Ignored,
}

fn meaning(name: &[u8]) -> Meaning<'_> {
    match name.strip_prefix(b".wh.") {
        None => Meaning::Entry(name),
        Some(b".wh..opq") => Meaning::Opaque,
        Some(rest) if rest.is_empty() || rest.starts_with(b".wh.") => Meaning::Ignored,
        Some(rest) => Meaning::Whiteout(rest),
    }
}

impl Applier<'_> {
    fn apply<R: Read>(&mut self, entry: Entry, reader: &mut TarReader<R>) -> Result<(), ApplyCause> {
        let path = entry.path.clone();
        let path = components(&path, self.tree.limits.max_path_bytes)?;
        let Some((name, parents)) = path.split_last() else { return self.apply_root(entry) };
        match meaning(name) {
            Meaning::Ignored => {}
            Meaning::Opaque => {
                if let Some(directory) = self.tree.resolve_directory(parents, None)? {
                    self.prune(directory);
                }
            }
            Meaning::Whiteout(hidden) => {
                if let Some(directory) = self.tree.resolve_directory(parents, None)? {
                    self.whiteout(directory, hidden);
                }
            }
            Meaning::Entry(name) => {
                let missing = Missing { layer: self.layer, mtime: entry.mtime };
                let parent = self.tree.resolve_directory(parents, Some(missing))?.unwrap_or(Tree::ROOT);
                self.add(parent, name, entry, reader)?;
            }
        }
        Ok(())
    }

    fn apply_root(&mut self, entry: Entry) -> Result<(), ApplyCause> {
        if entry.kind != EntryKind::Directory {
            return Err(TreeError::EmptyPath.into());
        }
        let metadata = metadata(&entry, clean_xattrs(entry.xattrs.clone())?);
        Ok(self.tree.set_metadata(Tree::ROOT, metadata)?)
    }

    fn add<R: Read>(
        &mut self,
        parent: NodeId,
        name: &[u8],
        mut entry: Entry,
        reader: &mut TarReader<R>,
    ) -> Result<(), ApplyCause> {
        let xattrs = clean_xattrs(std::mem::take(&mut entry.xattrs))?;
        let metadata = metadata(&entry, xattrs);
        let content = match entry.kind {
            EntryKind::Directory => return Ok(self.add_directory(parent, name, metadata)?),
            EntryKind::HardLink { target } => return Ok(self.add_link(parent, name, &target)?),
            EntryKind::File => Content::File(self.copy(entry.size, &metadata, reader)?),
            EntryKind::Symlink { target } => Content::Symlink(symlink_target(target)?),
            EntryKind::CharDevice { major, minor } => Content::CharDevice(device(major, minor)?),
            EntryKind::BlockDevice { major, minor } => Content::BlockDevice(device(major, minor)?),
            EntryKind::Fifo => Content::Fifo,
        };
        let node = self.tree.add(metadata, content)?;
        self.replace(parent, name, node)?;
        Ok(())
    }

    /// A directory over a directory changes its metadata and keeps its content; over anything else it replaces.
    fn add_directory(&mut self, parent: NodeId, name: &[u8], metadata: Metadata) -> Result<(), TreeError> {
        if let Some(dirent) = self.tree.child(parent, name).filter(|dirent| self.tree.is_directory(dirent.node)) {
            self.tree.set_metadata(dirent.node, metadata)?;
            self.tree.claim(parent, name, self.layer);
            return Ok(());
        }
        let node = self.tree.add(metadata, Content::Directory(BTreeMap::new()))?;
        self.replace(parent, name, node)
    }

    fn add_link(&mut self, parent: NodeId, name: &[u8], target: &[u8]) -> Result<(), TreeError> {
        let missing = || TreeError::LinkTargetMissing(printable(target));
        let path = components(target, self.tree.limits.max_path_bytes)?;
        let (target_name, parents) = path.split_last().ok_or(TreeError::EmptyPath)?;
        let directory = self.tree.resolve_directory(parents, None)?.ok_or_else(missing)?;
        let node = self.tree.child(directory, target_name).ok_or_else(missing)?.node;
        if self.tree.is_directory(node) {
            return Err(TreeError::LinkToDirectory(printable(target)));
        }
        if self.tree.child(parent, name).is_some_and(|dirent| dirent.node == node) {
            self.tree.claim(parent, name, self.layer);
            return Ok(());
        }
        self.replace(parent, name, node)
    }

    /// Gives a name to a node, taking it from whatever had it.
    fn replace(&mut self, parent: NodeId, name: &[u8], node: NodeId) -> Result<(), TreeError> {
        self.unlink(parent, name);
        self.tree.link(parent, name, node, self.layer)
    }

    fn unlink(&mut self, parent: NodeId, name: &[u8]) {
        let mut dead = Vec::new();
        self.tree.unlink(parent, name, &mut dead);
        for extent in dead {
            self.area.discard(extent);
        }
    }

    fn copy<R: Read>(
        &mut self,
        size_bytes: u64,
        metadata: &Metadata,
        reader: &mut TarReader<R>,
    ) -> Result<Extent, ApplyCause> {
        let xattr_bytes = crate::erofs::xattr::body_bytes(&metadata.xattrs).ok_or(TreeError::XattrsTooLarge)?;
        let mut writer = self.area.begin(size_bytes, xattr_bytes)?;
        while let Some(chunk) = reader.next_chunk(&mut self.buffer)? {
            match chunk {
                Chunk::Data(length) => writer.write(self.buffer.get(..length).unwrap_or_default())?,
                Chunk::Hole(bytes) => writer.hole(bytes)?,
            }
        }
        Ok(writer.finish()?)
    }

    /// Hides what lower layers have under a name; what this layer put there stays.
    fn whiteout(&mut self, directory: NodeId, name: &[u8]) {
        let Some(dirent) = self.tree.child(directory, name) else { return };
        let is_directory = self.tree.is_directory(dirent.node);
        if is_directory {
            self.prune(dirent.node);
        }
        let survives = is_directory && self.tree.children(dirent.node).next().is_some();
        if dirent.layer < self.layer && !survives {
            self.unlink(directory, name);
        }
    }

    /// Removes everything below a directory that lower layers put there.
    ///
    /// A directory is looked at once in a layer, however many markers mean it or one above it. So all markers of a
    /// layer together cost no more than there are entries.
    fn prune(&mut self, directory: NodeId) {
        // Parents before children; then backwards, so that a directory is emptied before it is judged.
        let mut directories = Vec::new();
        let mut pending = vec![directory];
        while let Some(id) = pending.pop() {
            if self.pruned.insert(id) {
                directories.push(id);
                pending.extend(self.tree.directories_in(id));
            }
        }
        for id in directories.into_iter().rev() {
            for name in self.tree.leaves_below(id, self.layer) {
                self.unlink(id, &name);
            }
        }
    }
}

impl Tree {
    fn directories_in(&mut self, id: NodeId) -> Vec<NodeId> {
        let mut visited = 0;
        let entries = self.children(id).inspect(|_| visited += 1).map(|(_, dirent)| dirent.node);
        let found = entries.filter(|node| self.is_directory(*node)).collect();
        self.visited += visited;
        found
    }

    /// Names in a directory that come from layers below `layer` and have nothing below them.
    fn leaves_below(&mut self, id: NodeId, layer: u32) -> Vec<Vec<u8>> {
        let mut visited = 0;
        let entries = self.children(id).inspect(|_| visited += 1).filter(|(_, dirent)| dirent.layer < layer);
        let leaves = entries.filter(|(_, dirent)| self.children(dirent.node).next().is_none());
        let found = leaves.map(|(name, _)| name.to_vec()).collect();
        self.visited += visited;
        found
    }

    /// A name is now this layer's too.
    fn claim(&mut self, directory: NodeId, name: &[u8], layer: u32) {
        if let Content::Directory(entries) = &mut self.node_mut(directory).content
            && let Some(dirent) = entries.get_mut(name)
        {
            dirent.layer = layer;
        }
    }
}

fn metadata(entry: &Entry, xattrs: Box<[crate::erofs::xattr::Xattr]>) -> Metadata {
    Metadata {
        mode: entry.mode,
        uid: entry.uid,
        gid: entry.gid,
        mtime: entry.mtime,
        mtime_nsec: entry.mtime_nsec,
        xattrs,
    }
}

fn symlink_target(target: Vec<u8>) -> Result<Box<[u8]>, TreeError> {
    if target.is_empty() || target.len() > MAX_SYMLINK_BYTES || target.contains(&0) {
        return Err(TreeError::BadSymlink(target.len()));
    }
    Ok(target.into())
}

fn device(major: u32, minor: u32) -> Result<u32, TreeError> {
    encode_device(major, minor).ok_or(TreeError::BadDevice { major, minor })
}
