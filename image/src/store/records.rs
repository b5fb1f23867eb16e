//! Names of images: records, listing, removal, and the removal of what no name means any more.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::files::{self, ignore_missing};
use super::{Error, Result, Store};
use crate::digest::Digest;
use crate::manifest::Platform;
use crate::progress::Progress;
use crate::reference::ImageReference;
use crate::source::Resolved;

/// Shortest digest prefix that is taken for an image.
const MIN_PREFIX: usize = 6;

/// What the store knows about a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// Canonical name.
    pub name: String,
    /// Digest of the manifest (see [`Image::manifest_digest`](super::Image::manifest_digest)).
    pub manifest_digest: String,
    /// Digest under which the configuration is stored; `None` for directories.
    pub(super) config_digest: Option<Digest>,
    /// As `linux/amd64`; empty for directories.
    pub platform: String,
    /// Names the EROFS file.
    pub(super) key: String,
    /// Length of the EROFS file.
    pub size_bytes: u64,
    /// When the name got its present meaning, in seconds since the epoch.
    pub updated: u64,
}

impl ImageRecord {
    pub(super) fn new(name: &str, resolved: &Resolved, key: &str) -> Self {
        let configuration = &resolved.config.configuration;
        let mut platform = format!("{}/{}", configuration.os(), configuration.architecture());
        if let Some(variant) = configuration.variant() {
            platform.push('/');
            platform.push_str(variant);
        }
        ImageRecord {
            name: name.to_owned(),
            manifest_digest: resolved.manifest_digest.to_string(),
            config_digest: Some(Digest::sha256(&resolved.config_bytes)),
            platform,
            key: key.to_owned(),
            size_bytes: 0,
            updated: now(),
        }
    }

    pub(super) fn of_directory(name: &str, digest: &str, key: &str) -> Self {
        ImageRecord {
            name: name.to_owned(),
            manifest_digest: digest.to_owned(),
            config_digest: None,
            platform: String::new(),
            key: key.to_owned(),
            size_bytes: 0,
            updated: now(),
        }
    }

    pub(super) fn platform(&self) -> Platform {
        self.platform.parse().unwrap_or_else(|_| Platform::host())
    }

    /// Whether the image is for a platform.
    pub(super) fn is_for(&self, wanted: &Platform) -> bool {
        wanted.accepts(&self.platform())
    }
}

/// What [`Store::remove`] and [`Store::prune`] did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Removed {
    /// Names that no longer mean an image.
    pub names: Vec<String>,
    /// Images whose file is gone.
    pub deleted: Vec<PathBuf>,
    /// Disk space that was given back.
    pub freed_bytes: u64,
}

impl Store {
    /// All images, sorted by name.
    pub fn list(&self) -> Result<Vec<ImageRecord>> {
        let _lock = self.lock(false)?;
        self.records()
    }

    /// Removes a name (or the image whose digest starts so), and its file if no other name means it. A file in use
    /// is only removed by `force`: running containers keep it until they end.
    pub fn remove(&self, name: &str, force: bool) -> Result<Removed> {
        let _lock = self.lock(true)?;
        let record = self.find(name)?.ok_or_else(|| Error::NotFound(name.to_owned()))?;
        let shared = self.records()?.iter().any(|other| other.name != record.name && other.key == record.key);
        let erofs = self.layout.erofs(&record.key);
        if !shared && !force && files::is_leased(&erofs).map_err(|source| self.failed(source))? {
            return Err(Error::InUse(record.name));
        }
        ignore_missing(std::fs::remove_file(self.record_path(&record.name))).map_err(|source| self.failed(source))?;
        let mut removed = self.collect_locked(force.then_some(record.key.as_str()))?;
        removed.names.push(record.name);
        Ok(removed)
    }

    /// Removes files that no name means and nobody uses (the old image after a tag moved, for example). The store
    /// does so by itself whenever a name changes; this is for what was in use then.
    pub fn prune(&self) -> Result<Removed> {
        let _lock = self.lock(true)?;
        self.collect_locked(None)
    }

    /// The same for a caller that can wait.
    pub(super) async fn collect(&self, progress: &dyn Progress) -> Result<Removed> {
        let _lock = self.lock_patiently(true, progress).await?;
        self.collect_locked(None)
    }

    /// Removes unnamed files; one that is in use only if its key is `forced`.
    fn collect_locked(&self, forced: Option<&str>) -> Result<Removed> {
        let records = self.records()?;
        let failed = |source| self.failed(source);
        let mut removed = Removed::default();
        let keys: BTreeSet<PathBuf> = records.iter().map(|record| self.layout.erofs(&record.key)).collect();
        let forced = forced.map(|key| self.layout.erofs(key));
        for entry in std::fs::read_dir(self.layout.erofs_dir()).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let in_use = forced.as_ref() != Some(&path) && files::is_leased(&path).map_err(failed)?;
            if keys.contains(&path) || in_use {
                continue;
            }
            removed.freed_bytes += allocated_bytes(&path);
            ignore_missing(std::fs::remove_file(&path)).map_err(failed)?;
            removed.deleted.push(path);
        }
        let digests = records.iter().flat_map(|record| {
            let manifest = record.manifest_digest.rsplit(':').next().map(str::to_owned);
            manifest.into_iter().chain(record.config_digest.iter().map(|digest| digest.hex().to_owned()))
        });
        let digests: BTreeSet<String> = digests.collect();
        for entry in std::fs::read_dir(self.layout.blobs_dir()).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if !entry.file_name().to_str().is_some_and(|name| digests.contains(name)) {
                ignore_missing(std::fs::remove_file(entry.path())).map_err(failed)?;
            }
        }
        Ok(removed)
    }

    /// The record of a canonical name.
    pub(super) fn record(&self, name: &str) -> Result<Option<ImageRecord>> {
        match std::fs::read(self.record_path(name)) {
            // A damaged record is no record: the image is fetched again.
            Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.failed(error)),
        }
    }

    /// The record of a name as the user types it, or of a digest's start.
    pub(super) fn find(&self, name: &str) -> Result<Option<ImageRecord>> {
        let reference = name.parse::<ImageReference>();
        if let Ok(reference) = &reference
            && let Some(record) = self.record(&reference.to_string())?
        {
            return Ok(Some(record));
        }
        let prefix = name.strip_prefix("sha256:").unwrap_or(name);
        if prefix.len() < MIN_PREFIX || !prefix.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            reference?;
            return Ok(None);
        }
        let is_meant =
            |record: &ImageRecord| record.manifest_digest.rsplit(':').next().is_some_and(|hex| hex.starts_with(prefix));
        let mut found = self.records()?.into_iter().filter(is_meant);
        match (found.next(), found.next()) {
            (Some(_), Some(_)) => Err(Error::Ambiguous(name.to_owned())),
            (found, _) => Ok(found),
        }
    }

    pub(super) fn record_path(&self, name: &str) -> PathBuf {
        self.layout.images_dir().join(format!("{}.json", Digest::sha256(name.as_bytes()).hex()))
    }

    fn records(&self) -> Result<Vec<ImageRecord>> {
        let failed = |source| self.failed(source);
        let mut records = Vec::new();
        for entry in std::fs::read_dir(self.layout.images_dir()).map_err(failed)? {
            let bytes = match std::fs::read(entry.map_err(failed)?.path()) {
                Ok(bytes) => bytes,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                Err(error) => return Err(failed(error)),
            };
            records.extend(serde_json::from_slice::<ImageRecord>(&bytes).ok());
        }
        records.sort_by(|left, right| left.name.cmp(&right.name));
        Ok(records)
    }
}

fn allocated_bytes(path: &std::path::Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    std::fs::symlink_metadata(path).map_or(0, |metadata| metadata.blocks() * 512)
}

fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |time| time.as_secs())
}
