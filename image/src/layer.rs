//! One layer on its way: blob, digest, decompression, digest, tar, tree. Nothing of it is ever stored.

use std::io::{BufReader, Read};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::decompress::Decompressor;
use crate::digest::{Digest, HashingReader};
use crate::erofs::data::DataArea;
use crate::limits::Limits;
use crate::progress::{Cancelled, Event, Reporter, ReportingReader};
use crate::registry::RegistryError;
use crate::source::{Layer, Location};
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

/// Pieces that may wait between the network and the decompression (a piece is at most some 16 KiB).
const CHANNEL_PIECES: usize = 64;
const BUFFER_BYTES: usize = 64 << 10;

type Piece = Result<Bytes, RegistryError>;
type Failure = Arc<Mutex<Option<RegistryError>>>;

/// Where the blobs that have to be fetched are wanted: digest, size, and the way to the layer's reader.
pub(crate) struct Inputs(pub(crate) Vec<(Digest, u64, mpsc::Sender<Piece>)>);

/// A layer whose bytes can be read.
pub(crate) struct ReadyLayer {
    layer: Layer,
    input: Box<dyn Read + Send>,
    failure: Failure,
}

/// Gives each layer its reader; those that must be fetched come with the other end of a channel.
pub(crate) fn prepare(layers: Vec<Layer>) -> (Vec<ReadyLayer>, Inputs) {
    let mut inputs = Vec::new();
    let mut ready = Vec::new();
    for mut layer in layers {
        let failure = Failure::default();
        let input: Box<dyn Read + Send> = match std::mem::replace(&mut layer.location, Location::Registry) {
            Location::Section(section) => Box::new(section),
            Location::Registry => {
                let (sender, receiver) = mpsc::channel(CHANNEL_PIECES);
                if let Some((digest, size_bytes)) = layer.blob.clone() {
                    inputs.push((digest, size_bytes, sender));
                }
                Box::new(ChannelReader { receiver, current: Bytes::new(), failure: failure.clone() })
            }
        };
        ready.push(ReadyLayer { layer, input, failure });
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
    for (number, ready) in (1..).zip(layers) {
        let ReadyLayer { layer, input, failure } = ready;
        let item = layer.item();
        let digest = layer.blob.as_ref().map_or(&layer.diff_id, |(digest, _)| digest).clone();
        let input = ReportingReader::new(input, item.clone(), reporter.clone());
        let result = reporter
            .send(Event::Started { item: item.clone(), total_bytes: layer.size_bytes() })
            .map_err(LayerCause::from)
            .and_then(|()| unpack(&layer, input, &mut tree, area, number, limits))
            .and_then(|()| Ok(reporter.send(Event::Finished { item })?));
        // The reason why the network failed tells more than that reading did.
        let failed = failure.lock().unwrap_or_else(PoisonError::into_inner).take();
        match (failed, result) {
            (Some(error), _) => return Err(LayerError { digest, cause: error.into() }),
            (None, Err(cause)) => return Err(LayerError { digest, cause }),
            (None, Ok(())) => {}
        }
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

/// Reads what the other end of a channel sends.
struct ChannelReader {
    receiver: mpsc::Receiver<Piece>,
    current: Bytes,
    failure: Failure,
}

impl Read for ChannelReader {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        while self.current.is_empty() {
            match self.receiver.blocking_recv() {
                None => return Ok(0),
                Some(Ok(piece)) => self.current = piece,
                Some(Err(error)) => {
                    *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                    return Err(std::io::Error::other(Cancelled));
                }
            }
        }
        let length = self.current.len().min(buffer.len());
        let piece = self.current.split_to(length);
        buffer.get_mut(..length).unwrap_or_default().copy_from_slice(&piece);
        Ok(length)
    }
}
