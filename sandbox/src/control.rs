//! The monitor's control socket: HTTP/1.1 with JSON, a connection for each request.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;
use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::text::one_line;

/// The monitor answers from its event loop; taking a device out waits for the end of its workers.
const TIMEOUT: Duration = Duration::from_secs(20);
const MAX_ANSWER_BYTES: u64 = 1 << 20;
const MAX_MESSAGE_BYTES: usize = 1000;

/// A request to the monitor failed.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
#[error("{message}")]
pub struct ControlError {
    /// HTTP status, if the monitor refused the request; nothing has changed then.
    pub status: Option<u16>,
    /// One line for people.
    pub message: String,
}

impl ControlError {
    fn broken(problem: &str) -> Self {
        Self { status: None, message: format!("The VM's control socket {problem}") }
    }
}

/// The control socket of one monitor.
#[derive(Debug, Clone)]
pub(crate) struct Control {
    socket: PathBuf,
}

impl Control {
    pub(crate) fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    pub(crate) async fn get(&self, path: &str) -> Result<Value, ControlError> {
        self.request("GET", path, "").await
    }

    pub(crate) async fn put(&self, path: &str, body: &impl Serialize) -> Result<Value, ControlError> {
        self.request("PUT", path, &json(body)?).await
    }

    pub(crate) async fn patch(&self, path: &str, body: &impl Serialize) -> Result<Value, ControlError> {
        self.request("PATCH", path, &json(body)?).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Result<Value, ControlError> {
        self.request("DELETE", path, "").await
    }

    async fn request(&self, method: &str, path: &str, body: &str) -> Result<Value, ControlError> {
        let text = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        match timeout(TIMEOUT, exchange(&self.socket, text.as_bytes())).await {
            Ok(Ok(answer)) => parse(&answer),
            Ok(Err(error)) => Err(ControlError::broken(&format!("can't be reached ({error})"))),
            Err(_) => Err(ControlError::broken(&format!("did not answer within {} seconds", TIMEOUT.as_secs()))),
        }
    }
}

fn json(body: &impl Serialize) -> Result<String, ControlError> {
    serde_json::to_string(body).map_err(|error| ControlError::broken(&format!("can't be asked that ({error})")))
}

async fn exchange(socket: &Path, request: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut stream = UnixStream::connect(socket).await?;
    stream.write_all(request).await?;
    let mut answer = Vec::new();
    stream.take(MAX_ANSWER_BYTES).read_to_end(&mut answer).await?;
    Ok(answer)
}

/// The body of an answer, `Null` for none; the message of a refusal.
fn parse(answer: &[u8]) -> Result<Value, ControlError> {
    let text = String::from_utf8_lossy(answer);
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)).and_then(|code| code.parse().ok());
    let Some(status) = status else { return Err(ControlError::broken("answers nonsense")) };
    let body: Value = match body.trim() {
        "" => Value::Null,
        body => serde_json::from_str(body).map_err(|_| ControlError::broken("answers nonsense"))?,
    };
    if (200..300).contains(&status) {
        return Ok(body);
    }
    let said = body.get("fault_message").and_then(Value::as_str).unwrap_or("no reason given");
    let message = format!("hull-vmm refused it: {}", one_line(said, MAX_MESSAGE_BYTES));
    Err(ControlError { status: Some(status), message })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn answers_are_told_apart() {
        let ok = b"HTTP/1.1 200 OK\r\nContent-Length: 22\r\n\r\n{\"pci_address\":\"a\"}\n";
        assert_eq!(parse(ok).unwrap().get("pci_address"), Some(&Value::from("a")));
        assert_eq!(parse(b"HTTP/1.1 204 No Content\r\n\r\n").unwrap(), Value::Null);
        let refused = parse(b"HTTP/1.1 409 Conflict\r\n\r\n{\"fault_message\":\"in\\nuse\"}").unwrap_err();
        assert_eq!((refused.status, refused.message.as_str()), (Some(409), "hull-vmm refused it: in use"));
        for nonsense in [&b""[..], b"HTTP/1.1 20", b"HTTP/1.1 200 OK\r\n\r\n{\"pci_add", b"SSH-2.0"] {
            assert_eq!(parse(nonsense).unwrap_err().status, None);
        }
    }

    proptest! {
        #[test]
        fn no_answer_panics(answer in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&answer);
            let _ = parse(&[b"HTTP/1.1 200 \r\n\r\n", answer.as_slice()].concat());
        }
    }
}
