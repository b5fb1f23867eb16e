//! Paths of layer entries: checked, then resolved inside the tree.

use std::collections::BTreeMap;

use super::{Content, MAX_NAME_BYTES, Metadata, NodeId, Tree, TreeError, printable};

/// Symlinks followed in one path, as in Linux (`MAXSYMLINKS`).
const MAX_LINKS: usize = 40;
/// Components walked in one path, those of symlink targets included.
const MAX_COMPONENTS: usize = 4096;

/// Components of a path in a layer. A leading `/` and `.` components mean nothing; `..` is refused.
pub(super) fn components(path: &[u8], max_bytes: usize) -> Result<Vec<&[u8]>, TreeError> {
    if path.len() > max_bytes {
        return Err(TreeError::PathTooLong(path.len()));
    }
    if path.contains(&0) {
        return Err(TreeError::Nul);
    }
    let components: Vec<&[u8]> =
        path.split(|byte| *byte == b'/').filter(|component| !component.is_empty() && component != b".").collect();
    for component in &components {
        if *component == b".." {
            return Err(TreeError::DotDot);
        }
        if component.len() > MAX_NAME_BYTES {
            return Err(TreeError::NameTooLong(component.len()));
        }
    }
    Ok(components)
}

/// How to make directories that a path needs and the tree lacks.
#[derive(Clone, Copy)]
pub(super) struct Missing {
    pub(super) layer: u32,
    pub(super) mtime: i64,
}

impl Tree {
    /// The directory that `components` name, following symlinks inside the tree as if it were the root
    /// (an absolute target starts at the root, `..` stops there), like containerd's `fs.RootPath`.
    ///
    /// What is missing is created if `missing` says how, else the answer is `None`.
    pub(super) fn resolve_directory(
        &mut self,
        components: &[&[u8]],
        missing: Option<Missing>,
    ) -> Result<Option<NodeId>, TreeError> {
        let mut stack = vec![Tree::ROOT];
        let mut pending: Vec<Box<[u8]>> = components.iter().rev().map(|component| Box::from(*component)).collect();
        let mut links = 0;
        let mut walked = 0;
        while let Some(name) = pending.pop() {
            walked += 1;
            if walked > MAX_COMPONENTS {
                return Err(TreeError::TooManyLinks);
            }
            let current = stack.last().copied().unwrap_or(Tree::ROOT);
            if name.as_ref() == b".." {
                stack.truncate((stack.len() - 1).max(1));
                continue;
            }
            let Some(dirent) = self.child(current, &name) else {
                let Some(missing) = missing else { return Ok(None) };
                stack.push(self.create_directory(current, &name, missing)?);
                continue;
            };
            match &self.node(dirent.node).content {
                Content::Directory(_) => stack.push(dirent.node),
                Content::Symlink(target) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(TreeError::TooManyLinks);
                    }
                    if target.starts_with(b"/") {
                        stack.truncate(1);
                    }
                    let steps = target.split(|byte| *byte == b'/').filter(|step| !step.is_empty() && *step != b".");
                    pending.extend(steps.rev().map(Box::from));
                }
                _ => return Err(TreeError::ParentNotDirectory(printable(&name))),
            }
        }
        Ok(stack.last().copied())
    }

    /// A directory that no entry describes: docker and containerd make it `0755`, owned by root.
    fn create_directory(&mut self, parent: NodeId, name: &[u8], missing: Missing) -> Result<NodeId, TreeError> {
        if name.len() > MAX_NAME_BYTES {
            return Err(TreeError::NameTooLong(name.len()));
        }
        let metadata = Metadata { mode: 0o755, mtime: missing.mtime, ..Metadata::default() };
        let node = self.add(metadata, Content::Directory(BTreeMap::new()))?;
        self.link(parent, name, node, missing.layer)?;
        Ok(node)
    }
}
