//! Archives of `docker save`: `manifest.json`, configurations and layers as plain files.
//!
//! Old ones have `<id>/layer.tar` (sometimes symlinks to one another) and `<hex>.json`; since Docker 25 the same
//! file is an OCI layout as well and `manifest.json` names blobs. Both are read through `manifest.json`.

use serde::Deserialize;

use super::{Files, Layer, Location, Resolved, SourceError, listed};
use crate::digest::Digest;
use crate::limits::Limits;
use crate::manifest::{ManifestError, Platform, parse_config};

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

/// Finds an image in an archive and verifies its configuration. There is no manifest with a digest: the image is
/// known by the digest of its configuration, docker's image ID.
pub(crate) fn resolve(
    files: &Files,
    tag: Option<&str>,
    platform: &Platform,
    limits: &Limits,
) -> Result<Resolved, SourceError> {
    let manifest = files.main_document("manifest.json", "manifest", "an archive of docker save")?;
    let images: Vec<Saved> = serde_json::from_slice(&manifest)
        .map_err(|source| ManifestError::Malformed { document: "manifest", source })?;
    let saved = choose(files, &images, tag)?;
    let config_bytes =
        files.document(&saved.config, "image configuration")?.ok_or_else(|| files.missing(&saved.config))?;
    if let Some(digest) = named_digest(&saved.config) {
        files.verify(&digest, &config_bytes)?;
    }
    let config = parse_config(&config_bytes, platform, limits)?;
    let names = saved.layers.unwrap_or_default();
    if names.len() != config.diff_ids.len() {
        let (layers, diff_ids) = (names.len(), config.diff_ids.len());
        return Err(ManifestError::LayerCount { layers, diff_ids }.into());
    }
    let mut layers = Vec::new();
    for (name, diff_id) in names.iter().zip(&config.diff_ids) {
        let section = files.open(name)?.ok_or_else(|| files.missing(name))?;
        layers.push(Layer { diff_id: diff_id.clone(), blob: None, location: Location::Section(section) });
    }
    Ok(Resolved { manifest_digest: Digest::sha256(&config_bytes), manifest, config_bytes, config, layers })
}

fn choose(files: &Files, images: &[Saved], tag: Option<&str>) -> Result<Saved, SourceError> {
    let path = files.path().to_owned();
    let tags = |saved: &Saved| saved.repo_tags.clone().unwrap_or_default();
    let available = || listed(images.iter().flat_map(tags));
    let Some(tag) = tag else {
        return match images {
            [only] => Ok(only.clone()),
            [] => Err(files.missing("an image")),
            _ => Err(SourceError::Ambiguous { path, available: available() }),
        };
    };
    let is_called = |name: &String| {
        name == tag || name.rsplit_once(':').is_some_and(|(name, version)| version == tag || name == tag)
    };
    let found = images.iter().find(|saved| tags(saved).iter().any(is_called));
    found.cloned().ok_or_else(|| SourceError::NoSuchTag { path, tag: tag.to_owned(), available: available() })
}

/// `<hex>.json` and `blobs/sha256/<hex>` say what the file must be.
fn named_digest(name: &str) -> Option<Digest> {
    let name = name.rsplit('/').next()?;
    format!("sha256:{}", name.strip_suffix(".json").unwrap_or(name)).parse().ok()
}
