//! Streaming one blob, over as many connections as it takes.

use bytes::Bytes;
use reqwest::header::CONTENT_RANGE;
use reqwest::{Response, StatusCode};
use tokio::sync::mpsc;

use super::{Client, RegistryError, header};
use crate::digest::Digest;
use crate::progress::Progress;

/// Progress after which earlier failures no longer count.
const FORGIVE_AFTER_BYTES: u64 = 4 << 20;

/// The receiver went away, so there is nothing left to do.
enum Ended {
    Complete,
    Broken(Option<reqwest::Error>),
    Unwanted,
}

impl Client {
    /// Sends a blob's bytes in order. A transfer that breaks is continued where it stopped: by a range request, or
    /// where the registry ignores that, by starting over and skipping what was sent. The receiver checks the digest.
    pub(super) async fn stream_blob(
        &self,
        digest: &Digest,
        size_bytes: u64,
        sender: &mpsc::Sender<Result<Bytes, RegistryError>>,
        progress: &dyn Progress,
    ) -> Result<(), RegistryError> {
        let url = self.url(&["blobs", &digest.to_string()])?;
        let mut received_bytes = 0;
        let mut failures = 0;
        let mut forgive_at = FORGIVE_AFTER_BYTES;
        loop {
            let response = self.get(&url, None, (received_bytes > 0).then_some(received_bytes)).await?;
            let source = match self.pump(response, digest, size_bytes, &mut received_bytes, sender).await? {
                Ended::Complete | Ended::Unwanted => return Ok(()),
                Ended::Broken(source) => source,
            };
            if received_bytes >= forgive_at {
                failures = 0;
                forgive_at = received_bytes + FORGIVE_AFTER_BYTES;
            }
            failures += 1;
            if failures > self.network.retries {
                let digest = digest.clone();
                return Err(RegistryError::Interrupted {
                    digest,
                    attempts: failures,
                    received_bytes,
                    size_bytes,
                    source,
                });
            }
            let short: String = digest.hex().chars().take(12).collect();
            progress.message(&format!(
                "{short}: transfer broke after {received_bytes} of {size_bytes} bytes, trying again ({failures} of {})",
                self.network.retries
            ));
            self.wait(failures, None).await;
        }
    }

    /// Passes on what one response brings.
    async fn pump(
        &self,
        mut response: Response,
        digest: &Digest,
        size_bytes: u64,
        received_bytes: &mut u64,
        sender: &mpsc::Sender<Result<Bytes, RegistryError>>,
    ) -> Result<Ended, RegistryError> {
        let mut skip_bytes = if resumes_at(&response, *received_bytes) { 0 } else { *received_bytes };
        loop {
            let mut chunk = match response.chunk().await {
                Ok(Some(chunk)) => chunk,
                Ok(None) if *received_bytes == size_bytes => return Ok(Ended::Complete),
                Ok(None) => return Ok(Ended::Broken(None)),
                // All of it came; how the connection ended doesn't matter.
                Err(_) if *received_bytes == size_bytes => return Ok(Ended::Complete),
                Err(error) => return Ok(Ended::Broken(Some(error))),
            };
            let skipped = usize::try_from(skip_bytes).unwrap_or(usize::MAX).min(chunk.len());
            let chunk = chunk.split_off(skipped);
            skip_bytes -= skipped as u64;
            if chunk.is_empty() {
                continue;
            }
            if *received_bytes + chunk.len() as u64 > size_bytes {
                return Err(RegistryError::BlobTooLong { digest: digest.clone(), size_bytes });
            }
            *received_bytes += chunk.len() as u64;
            if sender.send(Ok(chunk)).await.is_err() {
                return Ok(Ended::Unwanted);
            }
        }
    }
}

/// Whether a response begins at the byte that was asked for.
fn resumes_at(response: &Response, offset: u64) -> bool {
    response.status() == StatusCode::PARTIAL_CONTENT
        && header(response.headers(), CONTENT_RANGE.as_str()).is_some_and(|range| {
            range.strip_prefix("bytes ").is_some_and(|rest| rest.starts_with(&format!("{offset}-")))
        })
}
