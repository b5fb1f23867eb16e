//! qcow2 images, through the `imago` library, for reading only: with its allocator, a hostile image can make it recurse until the
//! stack ends (docs/decisions/005-block-devices.md).
//!
//! An image file may come from anyone, so its header is held to limits before the library sees it, and the files that it names
//! are opened by rules of ours: a backing file lies in the directory of the image, has its format written in the image's header
//! (a guest may have written anything into a raw one, so nothing is guessed from content), and the chain is short. External data
//! files are refused.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use imago::file::File as Storage;
use imago::qcow2::Qcow2;
use imago::raw::Raw;
use imago::{DenyImplicitOpenGate, FormatAccess, FormatDriverBuilder};

use super::backend::{AlignedBuffer, Backend, PIECE_BYTES};
use super::image;
use crate::virtio::buffers::{Reader, Writer};
use crate::virtio::sys;

/// Most files of a chain.
const MAX_CHAIN: usize = 8;
/// Largest cluster: two caches of 160 clusters in all are kept for each file of a chain.
const MAX_CLUSTER_BITS: u32 = 18;
const MIN_CLUSTER_BITS: u32 = 9;
/// Largest L1 and refcount tables, which are kept in memory: those of QEMU.
const MAX_L1_BYTES: u64 = 32 << 20;
const MAX_REFCOUNT_TABLE_BYTES: u64 = 8 << 20;
/// Largest disk: 64 TiB.
const MAX_DISK_BYTES: u64 = 1 << 46;
const MAGIC: u32 = 0x5146_49fb;
const FEATURE_NAME_TABLE: u32 = 0x6803_f857;
const FEATURE_NAME_BYTES: usize = 48;
const MAX_EXTENSIONS: usize = 32;
/// The part of the header that all versions have.
const HEADER_BYTES: usize = 72;

/// A disk in an image of format qcow2.
pub struct Qcow2Backend(FormatAccess<Storage>);

impl Qcow2Backend {
    /// Opens the image in `file`, which is locked, with its backing files.
    pub fn open(file: File, path: &Path, direct: bool) -> io::Result<Self> {
        open_qcow2(file, path, direct, MAX_CHAIN).map(Self)
    }
}

fn read_only() -> io::Result<()> {
    Err(io::ErrorKind::ReadOnlyFilesystem.into())
}

impl Backend for Qcow2Backend {
    fn size(&self) -> io::Result<u64> {
        Ok(self.0.size())
    }

    fn read(&self, to: &mut Writer<'_>, mut offset: u64) -> io::Result<()> {
        let mut buffer = vec![0; to.remaining().min(PIECE_BYTES)];
        while to.remaining() > 0 {
            let length = to.remaining().min(PIECE_BYTES);
            let piece = buffer.get_mut(..length).unwrap_or_default();
            self.0.read(&mut *piece, offset)?;
            offset = offset.saturating_add(to.write(piece) as u64);
        }
        Ok(())
    }

    fn write(&self, _from: &mut Reader<'_>, _offset: u64) -> io::Result<()> {
        read_only()
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn discard(&self, _offset: u64, _bytes: u64) -> io::Result<()> {
        read_only()
    }

    fn write_zeroes(&self, _offset: u64, _bytes: u64, _may_unmap: bool) -> io::Result<()> {
        read_only()
    }
}

fn invalid(problem: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, problem.into())
}

fn open_qcow2(file: File, path: &Path, direct: bool, chain_left: usize) -> io::Result<FormatAccess<Storage>> {
    check_header(&file)?;
    let builder = Qcow2::<Storage>::builder(Storage::try_from(file)?).write(false);
    let mut qcow2 = builder.backing(None).data_file(None).open(DenyImplicitOpenGate::default())?;
    if qcow2.requires_external_data_file() {
        return Err(invalid("External data files are not supported"));
    }
    if let Some(name) = qcow2.implicit_backing_file().cloned() {
        let format = qcow2.implicit_backing_format().cloned();
        let backing = open_backing(&name, format.as_deref(), path, direct, chain_left.saturating_sub(1))?;
        qcow2.set_backing(Some(backing));
    }
    Ok(FormatAccess::new(qcow2))
}

fn open_backing(
    name: &str,
    format: Option<&str>,
    image: &Path,
    direct: bool,
    chain_left: usize,
) -> io::Result<FormatAccess<Storage>> {
    if chain_left == 0 {
        return Err(invalid(format!("More than {MAX_CHAIN} files in a chain of backing files")));
    }
    let path = backing_path(name, image)?;
    let in_backing =
        |error: io::Error| io::Error::new(error.kind(), format!("Backing file {}: {error}", path.display()));
    let file = image::open(&path, true, direct).map_err(in_backing)?;
    let file = file.ok_or_else(|| in_backing(invalid("neither a regular file nor a block device")))?;
    sys::lock_file(&file, false).map_err(in_backing)?;
    match format {
        Some("raw") => {
            let raw = Raw::<Storage>::builder(Storage::try_from(file)?).open(DenyImplicitOpenGate::default());
            Ok(FormatAccess::new(raw.map_err(in_backing)?))
        }
        Some("qcow2") => open_qcow2(file, &path, direct, chain_left).map_err(in_backing),
        other => Err(in_backing(invalid(match other {
            Some(format) => format!("its format {format:?} is neither raw nor qcow2"),
            None => "the image doesn't say its format, raw or qcow2".to_owned(),
        }))),
    }
}

/// A backing file has to be a neighbour of its image: an image from elsewhere shouldn't name any file of the host.
fn backing_path(name: &str, image: &Path) -> io::Result<PathBuf> {
    let directory = image.parent().unwrap_or(Path::new("/"));
    let name = Path::new(name);
    let file_name = name.file_name().ok_or_else(|| invalid(format!("Backing file {name:?} has no name")))?;
    let own = name.parent().unwrap_or(Path::new(""));
    if own != Path::new("") && own != directory {
        return Err(invalid(format!("Backing file {name:?} is not in the directory of the image")));
    }
    Ok(directory.join(file_name))
}

/// Holds what the library allocates memory for to limits (the format's document, sections "General" and "Header extensions"), and
/// keeps a table from it that it can't parse.
fn check_header(file: &File) -> io::Result<()> {
    let mut buffer = AlignedBuffer::new(4096);
    let bytes = file.read_at(buffer.piece_mut(PIECE_BYTES), 0)?;
    let header = buffer.piece(bytes);
    if header.len() < HEADER_BYTES {
        return Err(invalid("Too short for a qcow2 image"));
    }
    if word(header, 0) != MAGIC {
        return Err(invalid("Not a qcow2 image"));
    }
    let version = word(header, 4);
    if !matches!(version, 2 | 3) {
        return Err(invalid(format!("Version {version} of the format is not known")));
    }
    let cluster_bits = word(header, 20);
    if !(MIN_CLUSTER_BITS..=MAX_CLUSTER_BITS).contains(&cluster_bits) {
        let most = 1 << MAX_CLUSTER_BITS;
        return Err(invalid(format!("Clusters of 2^{cluster_bits} bytes; 512 to {most} are possible")));
    }
    if word(header, 32) != 0 {
        return Err(invalid("Encrypted images are not supported"));
    }
    if double(header, 24) > MAX_DISK_BYTES {
        return Err(invalid(format!("The disk is larger than {MAX_DISK_BYTES} bytes")));
    }
    if u64::from(word(header, 36)) * 8 > MAX_L1_BYTES {
        return Err(invalid("The L1 table is too large"));
    }
    if u64::from(word(header, 56)) << cluster_bits > MAX_REFCOUNT_TABLE_BYTES {
        return Err(invalid("The refcount table is too large"));
    }
    if double(header, 40).max(double(header, 48)) > i64::MAX.unsigned_abs() {
        return Err(invalid("A table lies behind the end of any file"));
    }
    if version == 3 { check_extensions(header) } else { Ok(()) }
}

fn check_extensions(header: &[u8]) -> io::Result<()> {
    let mut at = word(header, 100) as usize;
    for _ in 0..MAX_EXTENSIONS {
        let (kind, length) = (word(header, at), word(header, at.saturating_add(4)) as usize);
        if kind == 0 {
            return Ok(());
        }
        if kind == FEATURE_NAME_TABLE && !length.is_multiple_of(FEATURE_NAME_BYTES) {
            return Err(invalid("The feature name table has a part of an entry"));
        }
        at = at.saturating_add(8).saturating_add(length.next_multiple_of(8));
    }
    Err(invalid(format!("More than {MAX_EXTENSIONS} header extensions")))
}

/// A big-endian number; zero where there is none.
fn word(bytes: &[u8], at: usize) -> u32 {
    let found = bytes.get(at..at.saturating_add(4)).and_then(|bytes| bytes.try_into().ok());
    found.map_or(0, u32::from_be_bytes)
}

fn double(bytes: &[u8], at: usize) -> u64 {
    u64::from(word(bytes, at)) << 32 | u64::from(word(bytes, at.saturating_add(4)))
}

#[cfg(test)]
#[path = "qcow2_test.rs"]
mod qcow2_test;
