//! Manifests, indexes and configurations: parsed, and refused with a reason.

use std::fmt;
use std::str::FromStr;

use oci_spec::image::ImageConfiguration;
use serde::Deserialize;

use crate::digest::Digest;
use crate::limits::{Limits, MAX_DOCUMENT_BYTES};

/// Media types of manifests that can be asked of a registry.
pub(crate) const MANIFEST_TYPES: [&str; 4] = [
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];
/// Layers as tar, with whatever compression: that is found by looking at the data.
const LAYER_TYPES: [&str; 9] = [
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
];
const CONFIG_TYPES: [&str; 2] =
    ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];
/// Images in an index that are listed in a message.
const MAX_LISTED: usize = 20;

/// What is wrong with a manifest, index or configuration.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Larger than any real one.
    #[error("The {document} is larger than {MAX_DOCUMENT_BYTES} bytes")]
    TooLarge {
        /// Which document.
        document: &'static str,
    },
    /// Not JSON, or without a field it needs.
    #[error("The {document} is malformed")]
    Malformed {
        /// Which document.
        document: &'static str,
        /// What the parser says.
        source: serde_json::Error,
    },
    /// A manifest of the old schema.
    #[error(
        "The image has a manifest of schema version {0}, which is no longer supported; push it again with a current tool"
    )]
    OldSchema(u64),
    /// A type that is no image manifest or index.
    #[error("Unsupported manifest type {0:?}")]
    UnsupportedManifest(String),
    /// An artifact that is no container image, or a Wasm module.
    #[error("Not a container image: its configuration has type {0:?}")]
    NotAnImage(String),
    /// A layer that is no tar archive (encrypted, for example).
    #[error("Layer {digest} has unsupported type {media_type:?}")]
    UnsupportedLayer {
        /// The layer.
        digest: Digest,
        /// Its type.
        media_type: String,
    },
    /// An index without an image for the platform.
    #[error("No image for {wanted}; available: {available}")]
    NoPlatform {
        /// The platform asked for.
        wanted: Box<Platform>,
        /// Those the index has.
        available: String,
    },
    /// The configuration says it is for another platform.
    #[error("The image is for {found}, not for {wanted}")]
    WrongPlatform {
        /// The platform asked for.
        wanted: Box<Platform>,
        /// What the image says.
        found: Box<Platform>,
    },
    /// Indexes that refer to indexes too often.
    #[error("The index refers to other indexes too often")]
    NestedIndex,
    /// A manifest without a configuration.
    #[error("The manifest has no configuration")]
    NoConfig,
    /// A configuration without the list of layers.
    #[error("The image configuration has no rootfs")]
    NoRootfs,
    /// Manifest and configuration disagree.
    #[error("The manifest has {layers} layers but the configuration lists {diff_ids}")]
    LayerCount {
        /// Layers in the manifest.
        layers: usize,
        /// Layers in the configuration.
        diff_ids: usize,
    },
    /// Too many layers.
    #[error("The image has more than {0} layers")]
    TooManyLayers(usize),
}

/// Operating system and architecture, as `linux/amd64` or `linux/arm/v7`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platform {
    /// As Go's `GOOS`.
    pub os: String,
    /// As Go's `GOARCH`.
    pub architecture: String,
    /// CPU variant; `None` matches any.
    pub variant: Option<String>,
}

impl Platform {
    /// Linux on this machine's architecture.
    #[must_use]
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        Platform { os: "linux".to_owned(), architecture: architecture.to_owned(), variant: None }
    }

    /// Whether an image for `found` is what was asked for.
    pub(crate) fn accepts(&self, found: &Platform) -> bool {
        self.os == found.os
            && self.architecture == found.architecture
            && (self.variant.is_none() || found.variant.is_none() || self.variant == found.variant)
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(formatter, "/{variant}"),
            None => Ok(()),
        }
    }
}

/// Not a platform.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not a platform (OS/ARCH[/VARIANT], such as linux/arm64)")]
pub struct PlatformError(String);

impl FromStr for Platform {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let parts: Vec<&str> = text.split('/').collect();
        let (os, architecture, variant) = match parts.as_slice() {
            [os, architecture] => (os, architecture, None),
            [os, architecture, variant] => (os, architecture, Some(variant)),
            _ => return Err(PlatformError(text.to_owned())),
        };
        if parts.iter().any(|part| part.is_empty()) {
            return Err(PlatformError(text.to_owned()));
        }
        let owned = |part: &&str| (*part).to_owned();
        Ok(Platform { os: owned(os), architecture: owned(architecture), variant: variant.map(owned) })
    }
}

/// Reference to a blob.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    #[serde(default)]
    platform: Option<DescriptorPlatform>,
    #[serde(default)]
    annotations: Option<std::collections::BTreeMap<String, String>>,
}

#[derive(Debug, Clone, Deserialize)]
struct DescriptorPlatform {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
    #[serde(default)]
    variant: Option<String>,
}

impl Descriptor {
    /// Tag of an image in an OCI layout.
    pub(crate) fn tag(&self) -> Option<&str> {
        self.annotation("org.opencontainers.image.ref.name")
    }

    /// Full name that containerd and docker write beside the tag.
    pub(crate) fn name(&self) -> Option<&str> {
        self.annotation("io.containerd.image.name")
    }

    fn annotation(&self, key: &str) -> Option<&str> {
        self.annotations.as_ref()?.get(key).map(String::as_str)
    }

    fn platform(&self) -> Option<Platform> {
        let platform = self.platform.as_ref()?;
        Some(Platform {
            os: platform.os.clone(),
            architecture: platform.architecture.clone(),
            variant: platform.variant.clone().filter(|variant| !variant.is_empty()),
        })
    }
}

/// What a reference to a manifest can turn out to be.
#[derive(Debug)]
pub(crate) enum Document {
    Manifest(Manifest),
    Index(Index),
}

#[derive(Debug)]
pub(crate) struct Manifest {
    pub(crate) config: Descriptor,
    pub(crate) layers: Vec<Descriptor>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Index {
    #[serde(default)]
    pub(crate) manifests: Vec<Descriptor>,
}

/// The fields that tell documents apart.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Probe {
    schema_version: Option<u64>,
    media_type: Option<String>,
    manifests: Option<serde::de::IgnoredAny>,
    layers: Option<Vec<Descriptor>>,
    config: Option<Descriptor>,
}

/// Parses a manifest or index; `media_type` is what the registry or descriptor called it, which only counts when
/// the document itself is silent.
pub(crate) fn parse_document(bytes: &[u8], media_type: Option<&str>) -> Result<Document, ManifestError> {
    let malformed = |document| move |source| ManifestError::Malformed { document, source };
    let probe: Probe = serde_json::from_slice(bytes).map_err(malformed("manifest"))?;
    match probe.schema_version {
        Some(version) if version != 2 => return Err(ManifestError::OldSchema(version)),
        _ => {}
    }
    if let Some(other) = probe.media_type.as_deref().or(media_type).filter(|known| !is_known(known)) {
        return Err(ManifestError::UnsupportedManifest(other.chars().take(200).collect()));
    }
    if probe.manifests.is_some() {
        return Ok(Document::Index(serde_json::from_slice(bytes).map_err(malformed("index"))?));
    }
    let config = probe.config.ok_or(ManifestError::NoConfig)?;
    if !CONFIG_TYPES.contains(&config.media_type.as_str()) {
        return Err(ManifestError::NotAnImage(config.media_type));
    }
    let layers = probe.layers.unwrap_or_default();
    if let Some(layer) = layers.iter().find(|layer| !LAYER_TYPES.contains(&layer.media_type.as_str())) {
        let media_type = layer.media_type.clone();
        return Err(ManifestError::UnsupportedLayer { digest: layer.digest.clone(), media_type });
    }
    Ok(Document::Manifest(Manifest { config, layers }))
}

/// Registries that don't know better answer with a generic type; then only the content counts.
fn is_known(media_type: &str) -> bool {
    let bare = media_type.split(';').next().unwrap_or_default().trim();
    MANIFEST_TYPES.contains(&bare)
        || matches!(bare, "" | "application/json" | "text/plain" | "application/octet-stream")
}

impl Index {
    /// The entry for a platform. An entry that names no platform is taken when it is the only one.
    pub(crate) fn select(&self, wanted: &Platform) -> Result<&Descriptor, ManifestError> {
        let accepted = |descriptor: &&Descriptor| descriptor.platform().is_some_and(|found| wanted.accepts(&found));
        if let Some(descriptor) = self.manifests.iter().find(accepted) {
            return Ok(descriptor);
        }
        if let [only] = self.manifests.as_slice()
            && only.platform().is_none()
        {
            return Ok(only);
        }
        let mut available: Vec<String> = self
            .manifests
            .iter()
            .filter_map(Descriptor::platform)
            // Attestations are listed as "unknown/unknown".
            .filter(|platform| platform.os != "unknown")
            .map(|platform| platform.to_string())
            .collect();
        available.sort();
        available.dedup();
        available.truncate(MAX_LISTED);
        let available = if available.is_empty() { "none".to_owned() } else { available.join(", ") };
        Err(ManifestError::NoPlatform { wanted: Box::new(wanted.clone()), available })
    }
}

/// A configuration whose layers are known.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    pub(crate) configuration: ImageConfiguration,
    pub(crate) diff_ids: Vec<Digest>,
}

/// Fields needed of a configuration, with each missing one told apart.
#[derive(Deserialize)]
struct ConfigProbe {
    architecture: Option<String>,
    os: Option<String>,
    variant: Option<String>,
    rootfs: Option<RootfsProbe>,
}

#[derive(Deserialize)]
struct RootfsProbe {
    diff_ids: Option<Vec<Digest>>,
}

/// Parses an image configuration and checks that it is for the platform.
pub(crate) fn parse_config(bytes: &[u8], wanted: &Platform, limits: &Limits) -> Result<Config, ManifestError> {
    let malformed = |source| ManifestError::Malformed { document: "image configuration", source };
    let probe: ConfigProbe = serde_json::from_slice(bytes).map_err(malformed)?;
    let diff_ids = probe.rootfs.and_then(|rootfs| rootfs.diff_ids).ok_or(ManifestError::NoRootfs)?;
    if diff_ids.len() > limits.max_layers {
        return Err(ManifestError::TooManyLayers(limits.max_layers));
    }
    let found = Platform {
        os: probe.os.unwrap_or_else(|| "unknown".to_owned()),
        architecture: probe.architecture.unwrap_or_else(|| "unknown".to_owned()),
        variant: probe.variant.filter(|variant| !variant.is_empty()),
    };
    if !wanted.accepts(&found) {
        return Err(ManifestError::WrongPlatform { wanted: Box::new(wanted.clone()), found: Box::new(found) });
    }
    let configuration = serde_json::from_value(without_nulls(bytes).map_err(malformed)?).map_err(malformed)?;
    Ok(Config { configuration, diff_ids })
}

/// Docker writes `null` for empty lists and objects where the specification's types want them absent.
fn without_nulls(bytes: &[u8]) -> Result<serde_json::Value, serde_json::Error> {
    let mut value: serde_json::Value = serde_json::from_slice(bytes)?;
    let mut pending = vec![&mut value];
    while let Some(value) = pending.pop() {
        match value {
            serde_json::Value::Object(object) => {
                object.retain(|_, member| !member.is_null());
                pending.extend(object.values_mut());
            }
            serde_json::Value::Array(array) => pending.extend(array.iter_mut()),
            _ => {}
        }
    }
    Ok(value)
}

#[cfg(test)]
#[path = "manifest_test.rs"]
mod manifest_test;
