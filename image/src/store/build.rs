//! Building images: one at a time for each content, complete or not at all.

use std::path::Path;

use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;

use super::files::{self, TemporaryFile};
use super::records::ImageRecord;
use super::{Error, GetOptions, Image, Result, Store};
use crate::cancel::Cancel;
use crate::digest::Digest;
use crate::erofs::data::DataArea;
use crate::erofs::writer::{self, Written};
use crate::erofs::{WRITER_VERSION, WriteError};
use crate::layer::{self, LayerCause, LayerError, ReadyLayer};
use crate::limits::Limits;
use crate::pipe::Ahead;
use crate::progress::{Event, Progress, Reporter};
use crate::reference::ImageReference;
use crate::registry::Client;
use crate::source::Resolved;
use crate::tree::apply::ApplyCause;
use crate::tree::walk::{self, WalkCause};

/// A built image that has no name yet.
struct Built {
    temporary: TemporaryFile,
    written: Written,
    key: String,
    /// Digest of a directory's content.
    content: Option<Digest>,
}

impl Store {
    /// Turns a resolved image into an EROFS file, unless it exists, and records its name.
    pub(super) async fn realize(
        &self,
        name: &str,
        resolved: Resolved,
        client: Option<&Client>,
        options: &GetOptions,
        progress: &dyn Progress,
    ) -> Result<Image> {
        let key = key("layers", resolved.config.diff_ids.iter().map(Digest::to_string));
        let record = ImageRecord::new(name, &resolved, &key);
        let waiting = |holder| progress.waiting(&format!("{name}: waiting for {holder}, which builds it"));
        let _turn = self.layout.lock_build(&key, waiting).await.map_err(|source| self.failed(source))?;
        let documents = [resolved.manifest.as_slice(), &resolved.config_bytes];
        if let Some(image) = self.commit_existing(&record, &documents, progress).await? {
            return Ok(image);
        }
        let cancel = Cancel::default();
        let _guard = cancel.on_drop();
        let (limits, spool_dir) = (options.limits.clone(), self.layout.temporary_dir());
        let (ready, inputs) = layer::prepare(resolved.layers, Ahead::new(&spool_dir, &limits), &cancel);
        let (reporter, events) = Reporter::channel();
        let temporary = self.temporary()?;
        let (work_name, work_key, work_cancel) = (name.to_owned(), key.clone(), cancel.clone());
        let work = tokio::task::spawn_blocking(move || {
            let space = Space { temporary, spool_dir: &spool_dir, limits: &limits, cancel: &work_cancel };
            build_layers(&work_name, work_key, ready, space, &reporter)
        });
        let feed = async {
            match client {
                Some(client) => client.feed(inputs, progress).await,
                None => Ok(()),
            }
        };
        let mut worker = std::pin::pin!(drive(work, events, progress));
        let built = tokio::select! {
            built = &mut worker => built,
            // What the worker then says is only that it was stopped.
            Err((digest, error)) = feed => {
                cancel.cancel();
                let _ = worker.await;
                let source = Box::new(LayerError { digest, cause: error.into() });
                Ok(Err(Error::Unpack { name: name.to_owned(), source }))
            }
        };
        let built =
            built.unwrap_or_else(|_| Err(Error::Aborted(name.to_owned()))).map_err(|error| self.simplify(error))?;
        self.commit(built, record, &documents, progress).await
    }

    /// Makes an image of a directory. Its content is only known once it is read, so it is always read and
    /// written; if the image exists already, what was written is dropped.
    pub(super) async fn build_directory(
        &self,
        reference: &ImageReference,
        dir: &Path,
        options: &GetOptions,
        progress: &dyn Progress,
    ) -> Result<Image> {
        let name = reference.to_string();
        let (reporter, events) = Reporter::channel();
        let temporary = self.temporary()?;
        let (limits, spool_dir, dir) = (options.limits.clone(), self.layout.temporary_dir(), dir.to_owned());
        let cancel = Cancel::default();
        let _guard = cancel.on_drop();
        let (work_name, work_cancel) = (name.clone(), cancel.clone());
        let work = tokio::task::spawn_blocking(move || {
            let space = Space { temporary, spool_dir: &spool_dir, limits: &limits, cancel: &work_cancel };
            build_directory(&work_name, &dir, space, &reporter)
        });
        let built = drive(work, events, progress).await;
        let built =
            built.unwrap_or_else(|_| Err(Error::Aborted(name.clone()))).map_err(|error| self.simplify(error))?;
        let digest = built.content.as_ref().map_or_else(String::new, Digest::to_string);
        let record = ImageRecord::of_directory(&name, &digest, &built.key);
        if let Some(image) = self.commit_existing(&record, &[], progress).await? {
            return Ok(image);
        }
        self.commit(built, record, &[], progress).await
    }

    /// If the EROFS file exists, records the name for it.
    async fn commit_existing(
        &self,
        record: &ImageRecord,
        documents: &[&[u8]],
        progress: &dyn Progress,
    ) -> Result<Option<Image>> {
        let lock = self.lock_patiently(false, progress).await?;
        let size_bytes = match std::fs::metadata(self.layout.erofs(&record.key)) {
            Ok(metadata) => metadata.len(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.failed(error)),
        };
        let record = ImageRecord { size_bytes, ..record.clone() };
        let replaced = self.write_record(&record, documents)?;
        let image = self.image(&record)?;
        drop(lock);
        if replaced {
            self.collect(progress).await?;
        }
        Ok(image)
    }

    async fn commit(
        &self,
        built: Built,
        record: ImageRecord,
        documents: &[&[u8]],
        progress: &dyn Progress,
    ) -> Result<Image> {
        let lock = self.lock_patiently(false, progress).await?;
        built.temporary.persist(&self.layout.erofs(&built.key)).map_err(|source| self.failed(source))?;
        let record = ImageRecord { size_bytes: built.written.size_bytes, ..record };
        let replaced = self.write_record(&record, documents)?;
        let image = self.image(&record)?.ok_or_else(|| Error::NotFound(record.name.clone()))?;
        drop(lock);
        tracing::debug!(
            name = record.name,
            inodes = built.written.inodes,
            size_bytes = built.written.size_bytes,
            written_bytes = built.written.written_bytes,
            "built EROFS image"
        );
        if replaced {
            self.collect(progress).await?;
        }
        Ok(image)
    }

    /// Writes manifest, configuration and record; `true` if the name meant another image before.
    fn write_record(&self, record: &ImageRecord, documents: &[&[u8]]) -> Result<bool> {
        let failed = |source| self.failed(source);
        let temporary_dir = self.layout.temporary_dir();
        for document in documents {
            let path = self.layout.blobs_dir().join(Digest::sha256(document).hex());
            if !path.exists() {
                files::write_atomically(&temporary_dir, &path, document).map_err(failed)?;
            }
        }
        let before = self.record(&record.name)?;
        let bytes = serde_json::to_vec_pretty(record).map_err(|error| failed(error.into()))?;
        files::write_atomically(&temporary_dir, &self.record_path(&record.name), &bytes).map_err(failed)?;
        Ok(before.is_some_and(|before| before.key != record.key))
    }

    fn temporary(&self) -> Result<TemporaryFile> {
        TemporaryFile::create(&self.layout.temporary_dir()).map_err(|source| self.failed(source))
    }

    /// A full disk is the same short error wherever it shows.
    fn simplify(&self, error: Error) -> Error {
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
        let mut full = is_reserve_reached(&error);
        while let Some(current) = cause {
            full |= current.downcast_ref::<std::io::Error>().is_some_and(|error| {
                matches!(error.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded)
            });
            cause = current.source();
        }
        if full { Error::DiskFull { path: self.layout.root().to_owned() } } else { error }
    }
}

fn is_reserve_reached(error: &Error) -> bool {
    let write = match error {
        Error::Write { source, .. } => source,
        Error::Unpack { source, .. } => match &source.cause {
            LayerCause::Apply(error) => match &error.cause {
                ApplyCause::Write(error) => error,
                _ => return false,
            },
            _ => return false,
        },
        Error::Walk { source, .. } => match &source.cause {
            WalkCause::Write(error) => error,
            _ => return false,
        },
        _ => return false,
    };
    matches!(write, WriteError::DiskFull { .. })
}

/// Name of an image's file: a hash of all that determines its bytes.
fn key(kind: &str, parts: impl Iterator<Item = String>) -> String {
    let mut hasher = Sha256::new();
    hasher.update(format!("hull erofs {WRITER_VERSION} {kind}\n"));
    for part in parts {
        hasher.update(part);
        hasher.update("\n");
    }
    hex::encode(hasher.finalize())
}

/// UUID of a file system: the start of its key, marked as a custom UUID (RFC 9562, version 8).
fn uuid(key: &str) -> [u8; 16] {
    let mut uuid = [0; 16];
    let _ = key.get(..32).map(|start| hex::decode_to_slice(start, &mut uuid));
    let [.., version, _, variant, _, _, _, _, _, _, _] = &mut uuid;
    *version = *version & 0x0f | 0x80;
    *variant = *variant & 0x3f | 0x80;
    uuid
}

/// Where a build writes, how much, and how long.
struct Space<'a> {
    temporary: TemporaryFile,
    spool_dir: &'a Path,
    limits: &'a Limits,
    cancel: &'a Cancel,
}

impl Space<'_> {
    fn area(&self) -> std::io::Result<DataArea> {
        Ok(DataArea::new(self.temporary.file()?, self.spool_dir, self.limits, self.cancel))
    }
}

fn build_layers(
    name: &str,
    key: String,
    layers: Vec<ReadyLayer>,
    space: Space<'_>,
    reporter: &Reporter,
) -> Result<Built> {
    let write_failed = |source| Error::Write { name: name.to_owned(), source };
    let mut area = space.area().map_err(|error| write_failed(error.into()))?;
    let unpack_failed = |source: LayerError| Error::Unpack { name: name.to_owned(), source: Box::new(source) };
    let tree = layer::unpack_all(layers, &mut area, space.limits, reporter).map_err(unpack_failed)?;
    let (_, written) = writer::finish(&tree, area, uuid(&key)).map_err(write_failed)?;
    Ok(Built { temporary: space.temporary, written, key, content: None })
}

fn build_directory(name: &str, dir: &Path, space: Space<'_>, reporter: &Reporter) -> Result<Built> {
    let write_failed = |source| Error::Write { name: name.to_owned(), source };
    let mut area = space.area().map_err(|error| write_failed(error.into()))?;
    // The receiver only goes away together with the one who waits for the result.
    let _ = reporter.send(Event::Message(format!("Reading {}", dir.display())));
    let walk_failed = |source| Error::Walk { name: name.to_owned(), source: Box::new(source) };
    let (tree, content) = walk::read_directory(dir, &mut area, space.limits).map_err(walk_failed)?;
    let key = key("directory", std::iter::once(content.to_string()));
    let (_, written) = writer::finish(&tree, area, uuid(&key)).map_err(write_failed)?;
    Ok(Built { temporary: space.temporary, written, key, content: Some(content) })
}

/// Hands a worker's events to the progress until it is done.
async fn drive<T>(
    work: tokio::task::JoinHandle<T>,
    mut events: mpsc::Receiver<Event>,
    progress: &dyn Progress,
) -> Result<T, tokio::task::JoinError> {
    // The channel closes when the worker ends.
    while let Some(event) = events.recv().await {
        event.report(progress);
    }
    work.await
}
