//! One layer on its way: blob, digest, decompression, digest, tar, tree. Nothing of it stays.

use std::io::{BufReader, Read};
use std::sync::Arc;

use crate::cancel::Cancel;
use crate::decompress::Decompressor;
use crate::digest::{Digest, HashingReader};
use crate::erofs::data::DataArea;
use crate::limits::Limits;
use crate::pipe::{Ahead, BlobReader, BlobSender, pipe};
use crate::progress::{Event, Reporter, ReportingReader};
use crate::registry::RegistryError;
use crate::source::{Layer, Location, Section};
use crate::tree::Tree;
use crate::tree::apply::{ApplyCause, ApplyError, apply_layer};

/// Why a layer can't be unpacked.
#[derive(Debug, thiserror::Error)]
#[error("Layer {digest} cannot be unpacked")]
pub struct LayerError {
    /// Digest of the blob, or of the layer's content where there is no blob digest.
    pub digest: Digest,
    /// The cause.
    #[source]
    pub cause: LayerCause,
}

/// What went wrong with a layer.
#[derive(Debug, thiserror::Error)]
pub enum LayerCause {
    /// Fetching it.
    #[error(transparent)]
    Fetch(#[from] RegistryError),
    /// Its content.
    #[error(transparent)]
    Apply(#[from] ApplyError),
    /// Reading or decompressing it.
    #[error("Cannot read or decompress the layer")]
    Read(#[from] std::io::Error),
    /// The blob is not what the manifest says.
    #[error("The blob is damaged: its digest is {0}")]
    Digest(Digest),
    /// The blob has another size than the manifest says.
    #[error("The blob has {actual} bytes, its manifest says {expected}")]
    Size {
        /// What the manifest says.
        expected: u64,
        /// What came.
        actual: u64,
    },
    /// The uncompressed layer is not what the configuration says.
    #[error("The content is damaged: its digest is {actual}, the configuration says {expected}")]
    DiffId {
        /// What the configuration says.
        expected: Digest,
        /// What came.
        actual: Digest,
    },
}

const BUFFER_BYTES: usize = 64 << 10;

/// Blobs that have to be fetched, in the order in which they are needed.
pub(crate) struct Inputs(pub(crate) Vec<Input>);

/// A blob that has to be fetched, and the way to the layer's reader.
pub(crate) struct Input {
    pub(crate) digest: Digest,
    pub(crate) size_bytes: u64,
    /// Name for progress.
    pub(crate) item: String,
    pub(crate) sender: BlobSender,
}

/// A layer whose bytes can be read.
pub(crate) struct ReadyLayer {
    layer: Layer,
    source: Source,
}

enum Source {
    Section(Section),
    /// Whoever fetches it reports the progress too.
    Fetched(BlobReader),
}

/// Gives each layer its reader; those that must be fetched come with the other end of a pipe.
pub(crate) fn prepare(layers: Vec<Layer>, ahead: Ahead, cancel: &Cancel) -> (Vec<ReadyLayer>, Inputs) {
    let ahead = Arc::new(ahead);
    let mut inputs = Vec::new();
    let mut ready = Vec::new();
    for mut layer in layers {
        let item = layer.item();
        let source = match std::mem::replace(&mut layer.location, Location::Registry) {
            Location::Section(section) => Source::Section(section),
            Location::Registry => {
                let (sender, reader) = pipe(&ahead, cancel);
                if let Some((digest, size_bytes)) = layer.blob.clone() {
                    inputs.push(Input { digest, size_bytes, item, sender });
                }
                Source::Fetched(reader)
            }
        };
        ready.push(ReadyLayer { layer, source });
    }
    (ready, Inputs(inputs))
}

/// Applies all layers, bottom first.
pub(crate) fn unpack_all(
    layers: Vec<ReadyLayer>,
    area: &mut DataArea,
    limits: &Limits,
    reporter: &Reporter,
) -> Result<Tree, LayerError> {
    let mut tree = Tree::new(limits);
    for (number, ReadyLayer { layer, source }) in (1..).zip(layers) {
        let item = layer.item();
        let digest = layer.blob.as_ref().map_or(&layer.diff_id, |(digest, _)| digest).clone();
        let result = match source {
            Source::Fetched(input) => unpack(&layer, input, &mut tree, area, number, limits),
            Source::Section(section) => {
                let total_bytes = Some(layer.blob.as_ref().map_or(section.bytes, |(_, bytes)| *bytes));
                let input = ReportingReader::new(section, item.clone(), reporter.clone());
                let started = reporter.send(Event::Started { item: item.clone(), total_bytes });
                let unpack = |()| unpack(&layer, input, &mut tree, area, number, limits);
                started.map_err(LayerCause::from).and_then(unpack)
            }
        };
        let finished = result.and_then(|()| Ok(reporter.send(Event::Finished { item })?));
        finished.map_err(|cause| LayerError { digest, cause })?;
    }
    Ok(tree)
}

fn unpack(
    layer: &Layer,
    input: impl Read,
    tree: &mut Tree,
    area: &mut DataArea,
    number: u32,
    limits: &Limits,
) -> Result<(), LayerCause> {
    let (blob_digest, blob_bytes) = match &layer.blob {
        Some((digest, bytes)) => (digest, *bytes),
        None => (&layer.diff_id, limits.max_layer_bytes),
    };
    let blob = HashingReader::new(input, blob_digest.hasher(), blob_bytes);
    let content = Decompressor::new(BufReader::with_capacity(BUFFER_BYTES, blob))?;
    let content = HashingReader::new(content, layer.diff_id.hasher(), limits.max_layer_bytes);
    let mut content = BufReader::with_capacity(BUFFER_BYTES, content);
    let applied = apply_layer(tree, area, &mut content, number);
    let content = content.into_inner();
    // A damaged blob most often fails as an archive first; that its digest is wrong tells more.
    let worth_a_look = matches!(&applied, Ok(()) | Err(ApplyError { cause: ApplyCause::Tar(_), .. }));
    if !worth_a_look {
        return Ok(applied?);
    }
    let (content, read) = if applied.is_ok() { content.drain() } else { (content, Ok(())) };
    let (content_digest, decompressor) = content.into_parts();
    let (actual, actual_bytes) = decompressor.into_inner().finish()?;
    if let Some((expected, size)) = &layer.blob {
        if actual_bytes != *size {
            return Err(LayerCause::Size { expected: *size, actual: actual_bytes });
        }
        if actual != *expected {
            return Err(LayerCause::Digest(actual));
        }
    }
    applied?;
    read?;
    if content_digest != layer.diff_id {
        return Err(LayerCause::DiffId { expected: layer.diff_id.clone(), actual: content_digest });
    }
    Ok(())
}
