//! A registry client for pulling (OCI distribution specification, docker's token authentication).
//!
//! Our own rather than `oci-client`, which reads manifests and error bodies without a bound, panics on a token
//! that is no valid header, and hides `Retry-After`; what a registry sends is hostile input here. TLS, HTTP and
//! redirects (without credentials to another host) are `reqwest`'s.

mod auth;
mod credentials;
mod meter;
mod transfer;

use std::path::PathBuf;
use std::time::Duration;

use futures::TryStreamExt as _;
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, RANGE, RETRY_AFTER, WWW_AUTHENTICATE};
use reqwest::{Response, StatusCode, Url};

pub use credentials::CredentialsError;
pub use meter::Clock;
use meter::{Broken, Meter, Rate};

use crate::digest::Digest;
use crate::layer::Inputs;
use crate::limits::{Limits, MAX_DOCUMENT_BYTES};
use crate::manifest::{
    Descriptor, Document, MANIFEST_TYPES, Manifest, ManifestError, Platform, parse_config, parse_document,
};
use crate::progress::Progress;
use crate::reference::RegistryReference;
use crate::source::layout::MAX_NESTED_INDEXES;
use crate::source::{Layer, Location, Resolved};

/// Largest error message or token that is read.
const MAX_REPLY_BYTES: u64 = 1 << 20;
/// Longest wait that a registry's `Retry-After` is believed.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(60);

/// Blobs that are fetched at once: docker's default.
const PARALLEL_BLOBS: usize = 3;

/// How patient to be with a registry.
#[derive(Debug, Clone)]
pub struct NetworkOptions {
    /// Longest time to connect.
    pub connect_timeout: Duration,
    /// Longest silence while data is expected.
    pub read_timeout: Duration,
    /// Over how long the speed is measured, while data is expected.
    pub rate_window: Duration,
    /// What must come in that time at least; a registry that sends less is as good as silent.
    pub min_window_bytes: u64,
    /// Attempts after the first for a request that fails in a way that may pass (a broken transfer, 429, 5xx).
    pub retries: u32,
    /// Wait before the first retry; doubled each time.
    pub backoff: Duration,
    /// What the speed is measured with.
    pub clock: Clock,
}

impl Default for NetworkOptions {
    fn default() -> Self {
        NetworkOptions {
            connect_timeout: Duration::from_secs(15),
            read_timeout: Duration::from_secs(30),
            rate_window: Duration::from_secs(60),
            min_window_bytes: 1024,
            retries: 5,
            backoff: Duration::from_millis(300),
            clock: Clock::default(),
        }
    }
}

/// Why an image can't be pulled.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// No connection, or it broke before an answer came.
    #[error("Cannot reach registry {host}")]
    Unreachable {
        /// Host and port.
        host: String,
        /// The cause.
        source: reqwest::Error,
    },
    /// The registry has no such image.
    #[error("{0} does not exist in the registry")]
    NotFound(String),
    /// Credentials are missing, wrong or insufficient.
    #[error("Registry {host} denies access to {repository}: it may not exist, or `docker login {host}` is needed")]
    Denied {
        /// Host and port.
        host: String,
        /// The repository.
        repository: String,
    },
    /// Still too many requests after waiting.
    #[error("Registry {0} says: too many requests; try later or log in")]
    TooManyRequests(String),
    /// Any other status.
    #[error("{url} answered {status}{message}")]
    Status {
        /// What was asked.
        url: String,
        /// The status.
        status: StatusCode,
        /// What the registry says about it, if anything, after a colon.
        message: String,
    },
    /// The registry asks for authentication in a way that makes no sense or isn't safe.
    #[error("Registry {host} asks for authentication in an unusable way: {reason}")]
    Challenge {
        /// Host and port.
        host: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// Credentials can't be read.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// The reference or registry makes no URL.
    #[error("{0:?} is not a registry")]
    BadHost(String),
    /// A manifest or configuration isn't what its digest says.
    #[error("The registry sent {actual} instead of {expected}")]
    Mismatch {
        /// What was asked for.
        expected: Digest,
        /// What came.
        actual: Digest,
    },
    /// The digest in the reference is none.
    #[error(transparent)]
    Digest(#[from] crate::digest::DigestError),
    /// A blob is longer than its descriptor says.
    #[error("Blob {digest} is longer than the {size_bytes} bytes its manifest says")]
    BlobTooLong {
        /// The blob.
        digest: Digest,
        /// Its size.
        size_bytes: u64,
    },
    /// The transfer broke again and again.
    #[error("Transfer of blob {digest} broke {attempts} times, at last after {received_bytes} of {size_bytes} bytes")]
    Interrupted {
        /// The blob.
        digest: Digest,
        /// How often it was tried.
        attempts: u32,
        /// How much had come.
        received_bytes: u64,
        /// How much there is.
        size_bytes: u64,
        /// The last cause; none if the registry just ended the answer.
        source: Option<reqwest::Error>,
    },
    /// The registry keeps the connection alive and sends next to nothing.
    #[error("Registry {host} is too slow: {bytes} bytes of {what} in {seconds} seconds")]
    TooSlow {
        /// Host and port.
        host: String,
        /// What it was to send: a blob with its digest, or the kind of document.
        what: String,
        /// What came at last.
        bytes: u64,
        /// In which time.
        seconds: u64,
    },
    /// A manifest or configuration is refused.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
}

/// A client for one repository.
pub(crate) struct Client {
    http: reqwest::Client,
    host: String,
    base: Url,
    repository: String,
    credentials: credentials::Credentials,
    token: tokio::sync::Mutex<Option<reqwest::header::HeaderValue>>,
    network: NetworkOptions,
}

/// What a client needs to know besides the reference.
pub(crate) struct ClientOptions {
    pub(crate) plain_http: bool,
    /// Directory with docker's `config.json`; `None` for the usual places.
    pub(crate) docker_config: Option<PathBuf>,
    pub(crate) network: NetworkOptions,
}

impl Client {
    /// Prepares a client; nothing is sent yet, but a credential helper may run.
    pub(crate) async fn new(reference: &RegistryReference, options: &ClientOptions) -> Result<Self, RegistryError> {
        let host = reference.host().to_owned();
        let loopback = is_loopback(&host);
        let scheme = if options.plain_http || loopback { "http" } else { "https" };
        let base = Url::parse(&format!("{scheme}://{host}/v2/")).map_err(|_| RegistryError::BadHost(host.clone()))?;
        if base.host_str().is_none() {
            return Err(RegistryError::BadHost(host));
        }
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("hull/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(options.network.connect_timeout)
            .read_timeout(options.network.read_timeout);
        if loopback {
            builder = builder.no_proxy();
        }
        let http = builder.build().map_err(|source| RegistryError::Unreachable { host: host.clone(), source })?;
        let credentials = credentials::load(reference.registry(), options.docker_config.as_deref()).await?;
        Ok(Client {
            http,
            host,
            base,
            repository: reference.repository().to_owned(),
            credentials,
            token: tokio::sync::Mutex::new(None),
            network: options.network.clone(),
        })
    }

    /// Fetches manifest and configuration and verifies them.
    pub(crate) async fn resolve(
        &self,
        reference: &RegistryReference,
        platform: &Platform,
        limits: &Limits,
    ) -> Result<Resolved, RegistryError> {
        let expected: Option<Digest> = reference.digest().map(str::parse).transpose()?;
        let name = reference.digest().or(reference.tag()).unwrap_or("latest");
        let (mut bytes, mut media_type) = self.manifest(name, &reference.to_string()).await?;
        let mut digest = expected.unwrap_or_else(|| Digest::sha256(&bytes));
        for _ in 0..MAX_NESTED_INDEXES {
            verify(&digest, &bytes)?;
            match parse_document(&bytes, media_type.as_deref())? {
                Document::Manifest(manifest) => return self.complete(digest, bytes, manifest, platform, limits).await,
                Document::Index(index) => {
                    digest = index.select(platform)?.digest.clone();
                    (bytes, media_type) = self.manifest(&digest.to_string(), &reference.to_string()).await?;
                }
            }
        }
        Err(ManifestError::NestedIndex.into())
    }

    async fn complete(
        &self,
        manifest_digest: Digest,
        manifest_bytes: Vec<u8>,
        manifest: Manifest,
        platform: &Platform,
        limits: &Limits,
    ) -> Result<Resolved, RegistryError> {
        let config_bytes = self.document(&manifest.config).await?;
        let config = parse_config(&config_bytes, platform, limits)?;
        let (layers, diff_ids) = (manifest.layers.len(), config.diff_ids.len());
        if layers != diff_ids {
            return Err(ManifestError::LayerCount { layers, diff_ids }.into());
        }
        let layer = |(layer, diff_id): (Descriptor, &Digest)| Layer {
            diff_id: diff_id.clone(),
            blob: Some((layer.digest, layer.size)),
            location: Location::Registry,
        };
        let layers = manifest.layers.into_iter().zip(&config.diff_ids).map(layer).collect();
        Ok(Resolved { manifest_digest, manifest: manifest_bytes, config_bytes, config, layers })
    }

    /// Sends all blobs to those who apply them, some at once. The first error, with the blob's digest, ends all.
    pub(crate) async fn feed(&self, inputs: Inputs, progress: &dyn Progress) -> Result<(), (Digest, RegistryError)> {
        futures::stream::iter(inputs.0.into_iter().map(Ok))
            .try_for_each_concurrent(PARALLEL_BLOBS, |input| async move {
                progress.started(&input.item, Some(input.size_bytes));
                let digest = input.digest.clone();
                self.stream_blob(input, progress).await.map_err(|error| (digest, error))
            })
            .await
    }

    async fn manifest(&self, name: &str, reference: &str) -> Result<(Vec<u8>, Option<String>), RegistryError> {
        let url = self.url(&["manifests", name])?;
        let response = self.get(&url, Some(&MANIFEST_TYPES.join(", ")), None).await.map_err(|error| match error {
            RegistryError::NotFound(_) => RegistryError::NotFound(reference.to_owned()),
            other => other,
        })?;
        let media_type = header(response.headers(), CONTENT_TYPE.as_str());
        Ok((self.body(response, MAX_DOCUMENT_BYTES, "manifest").await?, media_type))
    }

    async fn document(&self, descriptor: &Descriptor) -> Result<Vec<u8>, RegistryError> {
        let url = self.url(&["blobs", &descriptor.digest.to_string()])?;
        let response = self.get(&url, None, None).await?;
        let bytes = self.body(response, MAX_DOCUMENT_BYTES, "image configuration").await?;
        verify(&descriptor.digest, &bytes)?;
        Ok(bytes)
    }

    fn url(&self, tail: &[&str]) -> Result<Url, RegistryError> {
        let mut url = self.base.clone();
        let bad_host = || RegistryError::BadHost(self.host.clone());
        url.path_segments_mut()
            .map_err(|()| bad_host())?
            .pop_if_empty()
            .extend(self.repository.split('/'))
            .extend(tail);
        Ok(url)
    }

    /// One request, with authentication when asked for and retries of what may pass.
    async fn get(&self, url: &Url, accept: Option<&str>, offset: Option<u64>) -> Result<Response, RegistryError> {
        let mut authenticated = false;
        let mut attempt = 0;
        loop {
            let mut request = self.http.get(url.clone());
            if let Some(accept) = accept {
                request = request.header(ACCEPT, accept);
            }
            if let Some(offset) = offset {
                request = request.header(RANGE, format!("bytes={offset}-"));
            }
            if let Some(token) = self.token.lock().await.clone() {
                request = request.header(AUTHORIZATION, token);
            }
            let may_retry = attempt < self.network.retries;
            let response = match request.send().await {
                Ok(response) => response,
                Err(error) if may_retry && !error.is_connect() && !error.is_redirect() => {
                    attempt += 1;
                    self.wait(attempt, None).await;
                    continue;
                }
                Err(source) => return Err(RegistryError::Unreachable { host: self.host.clone(), source }),
            };
            let status = response.status();
            if status == StatusCode::UNAUTHORIZED && !authenticated {
                authenticated = true;
                self.authenticate(response.headers().get_all(WWW_AUTHENTICATE).iter()).await?;
            } else if status.is_success() {
                return Ok(response);
            } else if may_retry && (status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error()) {
                attempt += 1;
                self.wait(attempt, retry_after(response.headers())).await;
            } else {
                return Err(self.refused(url, response).await);
            }
        }
    }

    async fn refused(&self, url: &Url, response: Response) -> RegistryError {
        match response.status() {
            StatusCode::NOT_FOUND => RegistryError::NotFound(url.path().to_owned()),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => self.denied(),
            StatusCode::TOO_MANY_REQUESTS => RegistryError::TooManyRequests(self.host.clone()),
            status => {
                let body = self.body(response, MAX_REPLY_BYTES, "error message").await.unwrap_or_default();
                RegistryError::Status { url: without_query(url), status, message: error_message(&body) }
            }
        }
    }

    fn denied(&self) -> RegistryError {
        RegistryError::Denied { host: self.host.clone(), repository: self.repository.clone() }
    }

    /// Reads a body of bounded size.
    async fn body(&self, mut response: Response, limit: u64, document: &'static str) -> Result<Vec<u8>, RegistryError> {
        let mut bytes = Vec::new();
        let mut meter = Meter::new(&self.network);
        let failed = |broken| match broken {
            Broken::Connection(source) => RegistryError::Unreachable { host: self.host.clone(), source },
            Broken::Slow(rate) => self.too_slow(format!("the {document}"), rate),
        };
        while let Some(chunk) = meter.chunk(&mut response).await.map_err(failed)? {
            bytes.extend_from_slice(&chunk);
            if bytes.len() as u64 > limit {
                return Err(ManifestError::TooLarge { document }.into());
            }
        }
        Ok(bytes)
    }

    fn too_slow(&self, what: String, rate: Rate) -> RegistryError {
        RegistryError::TooSlow { host: self.host.clone(), what, bytes: rate.bytes, seconds: rate.time.as_secs() }
    }

    async fn wait(&self, attempt: u32, asked: Option<Duration>) {
        let backoff = self.network.backoff.saturating_mul(1 << attempt.saturating_sub(1).min(5));
        tokio::time::sleep(asked.unwrap_or(backoff)).await;
    }
}

fn verify(expected: &Digest, bytes: &[u8]) -> Result<(), RegistryError> {
    let mut hasher = expected.hasher();
    hasher.update(bytes);
    let actual = hasher.finish();
    if actual == *expected { Ok(()) } else { Err(RegistryError::Mismatch { expected: expected.clone(), actual }) }
}

/// Docker, too, talks plain HTTP to this machine.
fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = header(headers, RETRY_AFTER.as_str())?.parse().ok()?;
    Some(Duration::from_secs(seconds).min(MAX_RETRY_AFTER))
}

fn header(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name)?.to_str().ok().map(str::to_owned)
}

/// Signed URLs carry secrets in their query.
fn without_query(url: &Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    url.to_string()
}

/// The first error message of a reply in the specification's form, on one line, after a colon.
fn error_message(body: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Reply {
        errors: Vec<Item>,
    }
    #[derive(serde::Deserialize)]
    struct Item {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let Ok(reply) = serde_json::from_slice::<Reply>(body) else { return String::new() };
    let Some(item) = reply.errors.into_iter().next() else { return String::new() };
    let text = if item.message.is_empty() { item.code } else { item.message };
    format!(": {}", crate::tree::printable(text.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_hosts_are_known() {
        for host in ["localhost", "localhost:5000", "127.0.0.1:1", "127.9.9.9", "[::1]:5000"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["docker.io", "10.0.0.1:5000", "localhost.example", "[2001:db8::1]:5"] {
            assert!(!is_loopback(host), "{host}");
        }
    }

    #[test]
    fn error_messages_are_one_line() {
        assert_eq!(error_message(br#"{"errors":[{"code":"X","message":"a\nb"}]}"#), ": a\\nb");
        assert_eq!(error_message(b"<html>"), "");
    }
}
