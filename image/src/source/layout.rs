//! OCI image layouts (OCI image specification, `image-layout.md`), in a directory or a tar file.

use super::{Files, Layer, Location, Resolved, SourceError, blob_name, listed};
use crate::limits::Limits;
use crate::manifest::{Descriptor, Document, Index, Manifest, ManifestError, Platform, parse_config, parse_document};

/// Indexes that may refer to one another.
pub(crate) const MAX_NESTED_INDEXES: usize = 4;

/// Finds an image in a layout and verifies its manifest and configuration.
pub(crate) fn resolve(
    files: &Files,
    tag: Option<&str>,
    platform: &Platform,
    limits: &Limits,
) -> Result<Resolved, SourceError> {
    let bytes = files.main_document("index.json", "index", "an OCI image layout")?;
    let index: Index =
        serde_json::from_slice(&bytes).map_err(|source| ManifestError::Malformed { document: "index", source })?;
    let mut descriptor = choose(files, index, tag, platform)?;
    for _ in 0..MAX_NESTED_INDEXES {
        let bytes = files.verified(&descriptor.digest, "manifest")?;
        match parse_document(&bytes, Some(&descriptor.media_type))? {
            Document::Index(index) => descriptor = index.select(platform)?.clone(),
            Document::Manifest(manifest) => return complete(files, &descriptor, bytes, manifest, platform, limits),
        }
    }
    Err(ManifestError::NestedIndex.into())
}

/// The entry of the layout's index that the tag means, or the only one.
fn choose(files: &Files, index: Index, tag: Option<&str>, platform: &Platform) -> Result<Descriptor, SourceError> {
    let available = || listed(index.manifests.iter().filter_map(label).map(str::to_owned));
    let path = files.path().to_owned();
    let matching: Vec<Descriptor> = match tag {
        Some(tag) => index.manifests.iter().filter(|descriptor| is_called(descriptor, tag)).cloned().collect(),
        None => index.manifests.clone(),
    };
    match (matching.as_slice(), tag) {
        ([only], _) => return Ok(only.clone()),
        ([], Some(tag)) => return Err(SourceError::NoSuchTag { path, tag: tag.to_owned(), available: available() }),
        _ => {}
    }
    // The same name several times: one for each platform.
    let first = matching.first().and_then(label);
    if tag.is_none() && matching.iter().any(|descriptor| label(descriptor) != first) {
        return Err(SourceError::Ambiguous { path, available: available() });
    }
    Ok(Index { manifests: matching.clone() }.select(platform)?.clone())
}

fn label(descriptor: &Descriptor) -> Option<&str> {
    descriptor.tag().or(descriptor.name())
}

fn is_called(descriptor: &Descriptor, tag: &str) -> bool {
    let by_name = descriptor
        .name()
        .is_some_and(|name| name == tag || name.strip_suffix(tag).is_some_and(|prefix| prefix.ends_with(':')));
    descriptor.tag() == Some(tag) || by_name
}

fn complete(
    files: &Files,
    descriptor: &Descriptor,
    manifest_bytes: Vec<u8>,
    manifest: Manifest,
    platform: &Platform,
    limits: &Limits,
) -> Result<Resolved, SourceError> {
    let config_bytes = files.verified(&manifest.config.digest, "image configuration")?;
    let config = parse_config(&config_bytes, platform, limits)?;
    let (layers, diff_ids) = (manifest.layers.len(), config.diff_ids.len());
    if layers != diff_ids {
        return Err(ManifestError::LayerCount { layers, diff_ids }.into());
    }
    let mut found = Vec::new();
    for (layer, diff_id) in manifest.layers.into_iter().zip(&config.diff_ids) {
        let name = blob_name(&layer.digest);
        let section = files.open(&name)?.ok_or_else(|| files.missing(&name))?;
        found.push(Layer {
            diff_id: diff_id.clone(),
            blob: Some((layer.digest, layer.size)),
            location: Location::Section(section),
        });
    }
    Ok(Resolved {
        manifest_digest: descriptor.digest.clone(),
        manifest: manifest_bytes,
        config_bytes,
        config,
        layers: found,
    })
}
