//! Random access to the members of a tar file.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::{Section, SourceError, open_regular};
use crate::cancel::{Cancel, CancellableReader};
use crate::decompress::{Compression, Decompressor};
use crate::limits::Limits;
use crate::tar::{EntryKind, TarReader};

/// Members that are indexed at most; an image has a few files for each layer.
const MAX_MEMBERS: usize = 100_000;
/// Links that are followed from one member to another.
const MAX_LINKS: usize = 8;

/// A tar file whose members can be opened by name.
pub(crate) struct Archive {
    path: PathBuf,
    file: File,
    members: HashMap<String, Member>,
}

enum Member {
    File { offset: u64, bytes: u64 },
    Link(String),
}

impl Archive {
    /// Indexes an archive. A compressed one is first unpacked into an unnamed file in `spool_dir`,
    /// which `cancel` interrupts.
    pub(crate) fn open_path(
        path: &Path,
        spool_dir: &Path,
        limits: &Limits,
        cancel: &Cancel,
    ) -> Result<Self, SourceError> {
        let failed = |source| SourceError::Read { path: path.to_owned(), source };
        if path.is_dir() {
            return Err(failed(rustix::io::Errno::ISDIR.into()));
        }
        let section = open_regular(path)?.ok_or_else(|| failed(rustix::io::Errno::NOENT.into()))?;
        let mut file = section.file;
        if Compression::of(&mut BufReader::new(&mut file)).map_err(failed)? != Compression::None {
            file.seek(SeekFrom::Start(0)).map_err(failed)?;
            file = unpack(&file, path, spool_dir, limits, cancel)?;
        }
        file.seek(SeekFrom::Start(0)).map_err(failed)?;
        let members = index(&file, path)?;
        Ok(Archive { path: path.to_owned(), file, members })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Opens a member; `None` if there is none.
    pub(crate) fn open(&self, name: &str) -> Result<Option<Section>, SourceError> {
        let mut name = normalize("", name);
        for _ in 0..MAX_LINKS {
            match self.members.get(&name) {
                None => return Ok(None),
                Some(Member::Link(target)) => name.clone_from(target),
                Some(Member::File { offset, bytes }) => {
                    let failed = |source| SourceError::Read { path: self.path.clone(), source };
                    let file = self.file.try_clone().map_err(failed)?;
                    return Ok(Some(Section::new(file, *offset, *bytes)));
                }
            }
        }
        Ok(None)
    }
}

fn unpack(file: &File, path: &Path, spool_dir: &Path, limits: &Limits, cancel: &Cancel) -> Result<File, SourceError> {
    let failed = |source| SourceError::Read { path: path.to_owned(), source };
    let mut spool = tempfile::tempfile_in(spool_dir).map_err(failed)?;
    let input = Decompressor::new(BufReader::with_capacity(64 << 10, file)).map_err(failed)?;
    let input = CancellableReader::new(input, cancel);
    let copied = std::io::copy(&mut input.take(limits.max_layer_bytes + 1), &mut spool).map_err(failed)?;
    if copied > limits.max_layer_bytes {
        return Err(SourceError::TooLarge(path.to_owned()));
    }
    spool.flush().map_err(failed)?;
    Ok(spool)
}

fn index(file: &File, path: &Path) -> Result<HashMap<String, Member>, SourceError> {
    let failed = |source| SourceError::Archive { path: path.to_owned(), source };
    let mut members = HashMap::new();
    let mut reader = TarReader::new(file);
    while let Some(entry) = reader.next_entry().map_err(failed)? {
        let name = normalize("", &String::from_utf8_lossy(&entry.path));
        let member = match entry.kind {
            EntryKind::File => Member::File { offset: entry.data_offset, bytes: entry.size },
            EntryKind::Symlink { target } => {
                let parent = name.rsplit_once('/').map_or("", |(parent, _)| parent);
                Member::Link(normalize(parent, &String::from_utf8_lossy(&target)))
            }
            EntryKind::HardLink { target } => Member::Link(normalize("", &String::from_utf8_lossy(&target))),
            _ => continue,
        };
        if members.len() >= MAX_MEMBERS {
            return Err(SourceError::TooManyMembers(path.to_owned()));
        }
        members.insert(name, member);
        reader.seek_rest().map_err(failed)?;
    }
    Ok(members)
}

/// A name without `.`, `..` and empty components, relative to `base`. Only ever a key of the index.
fn normalize(base: &str, name: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in base.split('/').chain(name.split('/')) {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{TarBytes, chain};

    #[test]
    fn unpacking_a_compressed_archive_can_be_given_up() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("archive");
        let tar = TarBytes::new().file("index.json", b"{}").finish();
        std::fs::write(&path, zstd::encode_all(tar.as_slice(), 1).unwrap()).unwrap();
        let (limits, cancel) = (Limits::default(), Cancel::default());
        assert!(Archive::open_path(&path, dir.path(), &limits, &cancel).unwrap().open("index.json").unwrap().is_some());
        cancel.cancel();
        let Err(error) = Archive::open_path(&path, dir.path(), &limits, &cancel) else { panic!("it was given up") };
        assert!(chain(&error).ends_with("archive: Cancelled"), "{}", chain(&error));
    }
}
