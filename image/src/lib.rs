//! OCI images: pull, verify, store, turn into EROFS.
//!
//! [`Store::get`] takes an [`ImageReference`] (a registry, an OCI layout or archive, an archive of `docker save`, or a
//! directory) and returns an [`Image`]: its configuration, and one read-only EROFS file with all its layers flattened.
//!
//! The way of a layer is a stream: registry or file, digest of the blob, decompression, digest of the content, tar
//! entries, and then file data straight into the EROFS file while names and metadata wait in memory. Each byte of file
//! data is written once; no compressed layer is kept, no file is unpacked on the host, and no privilege is needed for
//! owners, device nodes and extended attributes.
//!
//! Everything that comes from an image, a registry or an archive is hostile here: verified by digest, bounded by
//! [`Limits`], refused with a typed error.

#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a test may fail loudly"
    )
)]

mod cancel;
mod decompress;
mod digest;
mod erofs;
mod layer;
mod limits;
mod manifest;
mod pipe;
mod progress;
mod reference;
mod registry;
mod source;
mod store;
mod tar;
#[cfg(test)]
mod testing;
mod tree;

pub use digest::{Digest, DigestError};
pub use erofs::WriteError;
pub use layer::{LayerCause, LayerError};
pub use limits::Limits;
pub use manifest::{ManifestError, Platform, PlatformError};
pub use oci_spec::image::ImageConfiguration;
pub use progress::{NoProgress, Progress};
pub use reference::{ImageReference, ReferenceError, RegistryReference};
pub use registry::{Clock, CredentialsError, NetworkOptions, RegistryError};
pub use source::SourceError;
pub use store::{Error, GetOptions, Image, ImageRecord, PullPolicy, Removed, Result, Store};
pub use tar::TarError;
pub use tree::TreeError;
pub use tree::apply::{ApplyCause, ApplyError};
pub use tree::walk::{WalkCause, WalkError};
