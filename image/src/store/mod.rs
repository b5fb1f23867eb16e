//! The image store: every image is one EROFS file, named by its content, built once, shared by all.
//!
//! ```text
//! ROOT/erofs/<key>.erofs     images; key = SHA-256 of the layers' diff IDs in order and the writer's version
//! ROOT/blobs/sha256/<hex>    manifests and configurations (layers are not kept)
//! ROOT/images/<hex>.json     one record for each name
//! ROOT/tmp, ROOT/locks       builds under way
//! ```
//!
//! Compressed layers are never stored: they stream from their source into the EROFS file, which replaces them (those
//! that are fetched while an earlier one is unpacked wait in unnamed files). A second image that shares layers with a
//! first fetches them again; in exchange nothing is stored twice.

mod build;
mod files;
mod locks;
mod records;
#[cfg(test)]
#[path = "store_test.rs"]
mod store_test;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use oci_spec::image::ImageConfiguration;

pub use records::{ImageRecord, Removed};

use crate::cancel::Cancel;
use crate::digest::Digest;
use crate::layer::LayerError;
use crate::limits::Limits;
use crate::manifest::{Platform, parse_config};
use crate::progress::Progress;
use crate::reference::{ImageReference, ReferenceError, RegistryReference};
use crate::registry::{Client, ClientOptions, NetworkOptions, RegistryError};
use crate::source::{Archive, Files, Resolved, SourceError, docker, layout};
use crate::tree::walk::WalkError;
use files::Layout;
use locks::StoreLock;

/// How long a command that only takes a moment waits for somebody else's moment.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);

/// Result of the store's operations.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why the store can't do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store's own files can't be read or written.
    #[error("Cannot use the image store at {path}")]
    Store {
        /// Root of the store.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The file system of the store is full; nothing was left behind.
    #[error("No space left for the image in the store at {path}")]
    DiskFull {
        /// Root of the store.
        path: PathBuf,
    },
    /// The image is not in the store, and fetching it was not allowed.
    #[error("Image {0} is not in the store")]
    NotFound(String),
    /// The name is the start of several images' digests.
    #[error("{0} means several images")]
    Ambiguous(String),
    /// Another process holds the store for itself, and doesn't let go.
    #[error("The image store at {path} is locked by {holder}")]
    Locked {
        /// Root of the store.
        path: PathBuf,
        /// Which process, if it is known.
        holder: String,
    },
    /// A container uses the image.
    #[error("Image {0} is in use")]
    InUse(String),
    /// Not a reference.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// A layout, archive or directory.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A registry.
    #[error("Cannot pull {name}")]
    Pull {
        /// What was to be pulled.
        name: String,
        /// The cause.
        source: Box<RegistryError>,
    },
    /// A layer.
    #[error("Cannot unpack {name}")]
    Unpack {
        /// The image.
        name: String,
        /// The cause.
        source: Box<LayerError>,
    },
    /// A root file system directory.
    #[error("Cannot make an image of {name}")]
    Walk {
        /// The image.
        name: String,
        /// The cause.
        source: Box<WalkError>,
    },
    /// Writing the EROFS file.
    #[error("Cannot build the file system of {name}")]
    Write {
        /// The image.
        name: String,
        /// The cause.
        source: crate::erofs::WriteError,
    },
    /// The thread that did the work died.
    #[error("The build of {0} was aborted")]
    Aborted(String),
}

/// When to ask a registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PullPolicy {
    /// When the image is not in the store.
    #[default]
    Missing,
    /// Always; what hasn't changed is not fetched again.
    Always,
    /// Never. Local layouts, archives and directories are still read.
    Never,
}

/// How to get an image.
#[derive(Debug, Clone, Default)]
pub struct GetOptions {
    /// When to ask a registry.
    pub pull: PullPolicy,
    /// Use HTTP instead of HTTPS also for registries that aren't on this machine.
    pub plain_http: bool,
    /// Platform to choose; `None` for Linux on this machine's architecture.
    pub platform: Option<Platform>,
    /// Directory of docker's `config.json`; `None` for `$DOCKER_CONFIG` or `~/.docker`.
    pub docker_config: Option<PathBuf>,
    /// Timeouts and retries.
    pub network: NetworkOptions,
    /// Bounds on the image.
    pub limits: Limits,
}

/// An image that is ready to be used. While it (or a clone) lives, the store doesn't remove its file.
#[derive(Debug, Clone)]
pub struct Image {
    /// Canonical name, such as `docker.io/library/busybox:latest` or `oci:/dir:tag`.
    pub name: String,
    /// Digest of the manifest; of the configuration for docker archives; of the content for directories.
    pub manifest_digest: String,
    /// Configuration: entrypoint, environment and so on; the default for directories.
    pub config: ImageConfiguration,
    /// The EROFS file.
    pub erofs: PathBuf,
    /// Length of the EROFS file.
    pub size_bytes: u64,
    lease: Arc<File>,
}

impl Image {
    /// The open EROFS file (read-only). Whoever keeps a duplicate of the descriptor keeps the image in use.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.lease
    }
}

/// A directory with images.
#[derive(Debug, Clone)]
pub struct Store {
    layout: Layout,
}

impl Store {
    /// Opens the store, creating it if needed, and removes what interrupted builds left behind.
    pub fn open(root: &Path) -> Result<Self> {
        let layout = Layout::open(root).map_err(|source| Error::Store { path: root.to_owned(), source })?;
        Ok(Store { layout })
    }

    /// Returns the image, fetching and building it if needed.
    ///
    /// Several callers, in this process or others, that want the same new image wait for the one that builds it.
    /// Dropping the future stops the work and leaves nothing behind.
    pub async fn get(
        &self,
        reference: &ImageReference,
        options: &GetOptions,
        progress: &dyn Progress,
    ) -> Result<Image> {
        let platform = options.platform.clone().unwrap_or_else(Platform::host);
        match reference {
            ImageReference::Registry(reference) => self.get_registry(reference, &platform, options, progress).await,
            ImageReference::RootfsDir(dir) => self.build_directory(reference, dir, options, progress).await,
            local => {
                let resolved = self.resolve_local(local, &platform, options).await?;
                self.realize(&local.to_string(), resolved, None, options, progress).await
            }
        }
    }

    /// The image of that name or digest prefix, if it is in the store.
    pub fn lookup(&self, name: &str) -> Result<Option<Image>> {
        let _lock = self.lock(false)?;
        let Some(record) = self.find(name)? else { return Ok(None) };
        self.image(&record)
    }

    async fn get_registry(
        &self,
        reference: &RegistryReference,
        platform: &Platform,
        options: &GetOptions,
        progress: &dyn Progress,
    ) -> Result<Image> {
        let name = reference.to_string();
        if options.pull != PullPolicy::Always {
            let lock = self.lock_patiently(false, progress).await?;
            if let Some(record) = self.record(&name)?
                && record.is_for(platform)
                && let Some(image) = self.image(&record)?
            {
                return Ok(image);
            }
            drop(lock);
        }
        if options.pull == PullPolicy::Never {
            return Err(Error::NotFound(name));
        }
        let failed = |source| Error::Pull { name: name.clone(), source: Box::new(source) };
        let client_options = ClientOptions {
            plain_http: options.plain_http,
            docker_config: options.docker_config.clone(),
            network: options.network.clone(),
        };
        let client = Client::new(reference, &client_options).await.map_err(failed)?;
        let resolved = client.resolve(reference, platform, &options.limits).await.map_err(failed)?;
        self.realize(&name, resolved, Some(&client), options, progress).await
    }

    async fn resolve_local(
        &self,
        reference: &ImageReference,
        platform: &Platform,
        options: &GetOptions,
    ) -> Result<Resolved> {
        let (reference, platform, limits) = (reference.clone(), platform.clone(), options.limits.clone());
        let spool_dir = self.layout.temporary_dir();
        let name = reference.to_string();
        let cancel = Cancel::default();
        let _guard = cancel.on_drop();
        let work_cancel = cancel.clone();
        let work = move || match &reference {
            ImageReference::OciLayout { dir, tag } => {
                layout::resolve(&Files::Directory(dir.clone()), tag.as_deref(), &platform, &limits)
            }
            ImageReference::OciArchive { file, tag } => {
                let archive = Archive::open_path(file, &spool_dir, &limits, &work_cancel)?;
                layout::resolve(&Files::Archive(archive), tag.as_deref(), &platform, &limits)
            }
            ImageReference::DockerArchive { file, tag } => {
                let archive = Archive::open_path(file, &spool_dir, &limits, &work_cancel)?;
                docker::resolve(&Files::Archive(archive), tag.as_deref(), &platform, &limits)
            }
            ImageReference::Registry(_) | ImageReference::RootfsDir(_) => {
                Err(SourceError::Missing { path: spool_dir, member: "a local image".to_owned() })
            }
        };
        match tokio::task::spawn_blocking(work).await {
            Ok(resolved) => Ok(resolved?),
            Err(_) => Err(Error::Aborted(name)),
        }
    }

    /// The image of a record; `None` if its files are gone. The store must be locked.
    fn image(&self, record: &ImageRecord) -> Result<Option<Image>> {
        let erofs = self.layout.erofs(&record.key);
        let lease = match files::open_leased(&erofs) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.failed(error)),
        };
        let config = match &record.config_digest {
            None => ImageConfiguration::default(),
            Some(digest) => match self.config(digest, record)? {
                Some(config) => config,
                None => return Ok(None),
            },
        };
        Ok(Some(Image {
            name: record.name.clone(),
            manifest_digest: record.manifest_digest.clone(),
            config,
            erofs,
            size_bytes: record.size_bytes,
            lease: Arc::new(lease),
        }))
    }

    /// The stored configuration; `None` if it is missing or damaged, so that the image is fetched again.
    fn config(&self, digest: &Digest, record: &ImageRecord) -> Result<Option<ImageConfiguration>> {
        let bytes = match std::fs::read(self.layout.blobs_dir().join(digest.hex())) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.failed(error)),
        };
        if !digest.matches(&bytes) {
            return Ok(None);
        }
        let platform = record.platform();
        Ok(parse_config(&bytes, &platform, &Limits::default()).ok().map(|config| config.configuration))
    }

    fn lock(&self, exclusive: bool) -> Result<StoreLock> {
        let locked = self.layout.lock_store_soon(exclusive, LOCK_PATIENCE).map_err(|source| self.failed(source))?;
        locked.map_err(|holder| Error::Locked { path: self.layout.root().to_owned(), holder: holder.to_string() })
    }

    /// Waits as long as it takes, and says so.
    async fn lock_patiently(&self, exclusive: bool, progress: &dyn Progress) -> Result<StoreLock> {
        let waiting = |holder| progress.waiting(&format!("Waiting for {holder}, which uses the image store"));
        self.layout.lock_store(exclusive, waiting).await.map_err(|source| self.failed(source))
    }

    fn failed(&self, source: std::io::Error) -> Error {
        let path = self.layout.root().to_owned();
        match source.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => Error::DiskFull { path },
            _ => Error::Store { path, source },
        }
    }
}
