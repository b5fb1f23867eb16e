//! Streaming one blob, over as many connections as it takes.

use reqwest::header::CONTENT_RANGE;
use reqwest::{Response, StatusCode};

use super::meter::{Broken, Meter};
use super::{Client, RegistryError, header};
use crate::layer::Input;
use crate::progress::Progress;

/// Progress after which earlier failures no longer count.
const FORGIVE_AFTER_BYTES: u64 = 4 << 20;

enum Ended {
    Complete,
    /// The connection ended too early; none if nothing else is wrong with it.
    Broken(Option<Broken>),
    /// The receiver went away, so there is nothing left to do.
    Unwanted,
}

impl Client {
    /// Sends a blob's bytes in order. A transfer that breaks is continued where it stopped: by a range request, or
    /// where the registry ignores that, by starting over and skipping what was sent. The receiver checks the digest.
    pub(super) async fn stream_blob(&self, input: Input, progress: &dyn Progress) -> Result<(), RegistryError> {
        let url = self.url(&["blobs", &input.digest.to_string()])?;
        let mut received_bytes = 0;
        let mut failures = 0;
        let mut forgive_at = FORGIVE_AFTER_BYTES;
        loop {
            let response = self.get(&url, None, (received_bytes > 0).then_some(received_bytes)).await?;
            let broken = match self.pump(response, &input, &mut received_bytes, progress).await? {
                Ended::Complete => {
                    input.sender.finish();
                    return Ok(());
                }
                Ended::Unwanted => return Ok(()),
                Ended::Broken(broken) => broken,
            };
            if received_bytes >= forgive_at {
                failures = 0;
                forgive_at = received_bytes + FORGIVE_AFTER_BYTES;
            }
            failures += 1;
            if failures > self.network.retries {
                return Err(self.given_up(&input, failures, received_bytes, broken));
            }
            let what = if matches!(broken, Some(Broken::Slow(_))) { "is too slow" } else { "broke" };
            progress.message(&format!(
                "{}: transfer {what} after {received_bytes} of {} bytes, trying again ({failures} of {})",
                input.item, input.size_bytes, self.network.retries
            ));
            self.wait(failures, None).await;
        }
    }

    fn given_up(&self, input: &Input, attempts: u32, received_bytes: u64, broken: Option<Broken>) -> RegistryError {
        let (digest, size_bytes) = (input.digest.clone(), input.size_bytes);
        let source = match broken {
            Some(Broken::Slow(rate)) => return self.too_slow(format!("blob {digest}"), rate),
            Some(Broken::Connection(error)) => Some(error),
            None => None,
        };
        RegistryError::Interrupted { digest, attempts, received_bytes, size_bytes, source }
    }

    /// Passes on what one response brings.
    async fn pump(
        &self,
        mut response: Response,
        input: &Input,
        received_bytes: &mut u64,
        progress: &dyn Progress,
    ) -> Result<Ended, RegistryError> {
        let mut skip_bytes = if resumes_at(&response, *received_bytes) { 0 } else { *received_bytes };
        let mut meter = Meter::new(&self.network);
        loop {
            let mut chunk = match meter.chunk(&mut response).await {
                Ok(Some(chunk)) => chunk,
                // All of it came; how the connection ended doesn't matter.
                Ok(None) | Err(_) if *received_bytes == input.size_bytes => return Ok(Ended::Complete),
                Ok(None) => return Ok(Ended::Broken(None)),
                Err(broken) => return Ok(Ended::Broken(Some(broken))),
            };
            let skipped = usize::try_from(skip_bytes).unwrap_or(usize::MAX).min(chunk.len());
            let chunk = chunk.split_off(skipped);
            skip_bytes -= skipped as u64;
            if chunk.is_empty() {
                continue;
            }
            let bytes = chunk.len() as u64;
            if *received_bytes + bytes > input.size_bytes {
                let (digest, size_bytes) = (input.digest.clone(), input.size_bytes);
                return Err(RegistryError::BlobTooLong { digest, size_bytes });
            }
            *received_bytes += bytes;
            progress.advanced(&input.item, bytes);
            if input.sender.send(chunk).await.is_err() {
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
