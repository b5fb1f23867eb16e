//! Where blobs come from: layouts and archives on disk. (Registries: [`crate::registry`].)

mod archive;
pub(crate) mod docker;
pub(crate) mod layout;

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

pub(crate) use archive::Archive;

use crate::digest::Digest;
use crate::limits::MAX_DOCUMENT_BYTES;
use crate::manifest::{Config, ManifestError};
use crate::tar::TarError;

/// Why an image on disk can't be read.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// A file or directory can't be read.
    #[error("Cannot read {path}")]
    Read {
        /// The file or directory.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// Not the kind of thing that the reference says.
    #[error("{path} is not {expected}: it has no {missing}")]
    WrongKind {
        /// The file or directory.
        path: PathBuf,
        /// What it should be.
        expected: &'static str,
        /// What such a thing always has.
        missing: &'static str,
    },
    /// A tar archive is damaged.
    #[error("{path} is not a readable archive")]
    Archive {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: TarError,
    },
    /// Too many members in an archive.
    #[error("{0} has too many members")]
    TooManyMembers(PathBuf),
    /// A compressed archive expands too much.
    #[error("{0} expands to more than the limit")]
    TooLarge(PathBuf),
    /// The tag is not there.
    #[error("{path} has no image {tag:?}; it has: {available}")]
    NoSuchTag {
        /// The layout or archive.
        path: PathBuf,
        /// What was asked for.
        tag: String,
        /// What there is.
        available: String,
    },
    /// No tag was given and there are several images.
    #[error("{path} has several images, choose one by its tag: {available}")]
    Ambiguous {
        /// The layout or archive.
        path: PathBuf,
        /// What there is.
        available: String,
    },
    /// Something that the manifest refers to is missing.
    #[error("{path} lacks {member}")]
    Missing {
        /// The layout or archive.
        path: PathBuf,
        /// The blob or file.
        member: String,
    },
    /// A blob is not what its name says.
    #[error("{path} is damaged: blob {expected} has digest {actual}")]
    Mismatch {
        /// The layout or archive.
        path: PathBuf,
        /// Its name.
        expected: Digest,
        /// What it is.
        actual: Digest,
    },
    /// A manifest, index or configuration is refused.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
}

/// An image whose manifest and configuration are known and verified; the layers are not read yet.
#[derive(Debug)]
pub(crate) struct Resolved {
    pub(crate) manifest_digest: Digest,
    pub(crate) manifest: Vec<u8>,
    pub(crate) config_bytes: Vec<u8>,
    pub(crate) config: Config,
    pub(crate) layers: Vec<Layer>,
}

/// A layer to be applied.
#[derive(Debug)]
pub(crate) struct Layer {
    /// Digest of the uncompressed tar stream.
    pub(crate) diff_id: Digest,
    /// Digest and size of the blob, where a manifest says so.
    pub(crate) blob: Option<(Digest, u64)>,
    pub(crate) location: Location,
}

#[derive(Debug)]
pub(crate) enum Location {
    Section(Section),
    /// To be fetched by its blob digest.
    Registry,
}

impl Layer {
    /// Short name for progress: as docker shows layers.
    pub(crate) fn item(&self) -> String {
        let digest = self.blob.as_ref().map_or(&self.diff_id, |(digest, _)| digest);
        digest.hex().chars().take(12).collect()
    }
}

/// A part of a file that reads like a file.
#[derive(Debug)]
pub(crate) struct Section {
    file: File,
    offset: u64,
    pub(crate) bytes: u64,
    position: u64,
}

impl Section {
    pub(crate) fn new(file: File, offset: u64, bytes: u64) -> Self {
        Section { file, offset, bytes, position: 0 }
    }
}

impl Read for Section {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let want = usize::try_from(self.bytes - self.position).unwrap_or(usize::MAX).min(buffer.len());
        let read = self.file.read_at(buffer.get_mut(..want).unwrap_or_default(), self.offset + self.position)?;
        self.position += read as u64;
        Ok(read)
    }
}

/// A directory or an archive with named files.
pub(crate) enum Files {
    Directory(PathBuf),
    Archive(Archive),
}

impl Files {
    pub(crate) fn path(&self) -> &Path {
        match self {
            Files::Directory(path) => path,
            Files::Archive(archive) => archive.path(),
        }
    }

    /// Opens a file; `None` if there is none. `name` never comes unchecked from an image for directories.
    pub(crate) fn open(&self, name: &str) -> Result<Option<Section>, SourceError> {
        match self {
            Files::Directory(path) => open_regular(&path.join(name)),
            Files::Archive(archive) => archive.open(name),
        }
    }

    /// Reads a document of bounded size.
    pub(crate) fn document(&self, name: &str, document: &'static str) -> Result<Option<Vec<u8>>, SourceError> {
        let Some(mut section) = self.open(name)? else { return Ok(None) };
        if section.bytes > MAX_DOCUMENT_BYTES {
            return Err(ManifestError::TooLarge { document }.into());
        }
        let mut bytes = Vec::new();
        let source = |source| SourceError::Read { path: self.path().join(name), source };
        section.read_to_end(&mut bytes).map_err(source)?;
        Ok(Some(bytes))
    }

    /// Reads the document that every directory or archive of a kind has; without it, this is not of that kind.
    pub(crate) fn main_document(
        &self,
        name: &'static str,
        document: &'static str,
        kind: &'static str,
    ) -> Result<Vec<u8>, SourceError> {
        self.document(name, document)?.ok_or_else(|| SourceError::WrongKind {
            path: self.path().to_owned(),
            expected: kind,
            missing: name,
        })
    }

    /// Reads a document and checks its digest.
    pub(crate) fn verified(&self, digest: &Digest, document: &'static str) -> Result<Vec<u8>, SourceError> {
        let name = blob_name(digest);
        let bytes = self.document(&name, document)?.ok_or_else(|| self.missing(&name))?;
        self.verify(digest, &bytes)?;
        Ok(bytes)
    }

    pub(crate) fn verify(&self, expected: &Digest, bytes: &[u8]) -> Result<(), SourceError> {
        let mut hasher = expected.hasher();
        hasher.update(bytes);
        let actual = hasher.finish();
        if actual == *expected {
            return Ok(());
        }
        Err(SourceError::Mismatch { path: self.path().to_owned(), expected: expected.clone(), actual })
    }

    pub(crate) fn missing(&self, member: &str) -> SourceError {
        SourceError::Missing { path: self.path().to_owned(), member: member.chars().take(200).collect() }
    }
}

/// Path of a blob in an OCI layout; a [`Digest`] has no characters that could lead elsewhere.
pub(crate) fn blob_name(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm(), digest.hex())
}

/// Opens a regular file (a fifo or device in its place would make us wait for ever).
fn open_regular(path: &Path) -> Result<Option<Section>, SourceError> {
    let failed = |source| SourceError::Read { path: path.to_owned(), source };
    let nonblocking = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let file = match File::options().read(true).custom_flags(nonblocking).open(path) {
        Ok(file) => file,
        Err(error) if matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(error) => return Err(failed(error)),
    };
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(failed(std::io::Error::new(std::io::ErrorKind::InvalidInput, "Not a regular file")));
    }
    Ok(Some(Section::new(file, 0, metadata.len())))
}

/// Names in a message: sorted, once each, not too many.
fn listed(names: impl Iterator<Item = String>) -> String {
    let mut names: Vec<String> = names.map(|name| name.chars().take(200).collect()).collect();
    names.sort();
    names.dedup();
    names.truncate(20);
    if names.is_empty() { "nothing tagged".to_owned() } else { names.join(", ") }
}
