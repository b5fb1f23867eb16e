//! As much of HTTP/1.1 (RFC 9112) as an API on a Unix socket needs. Every length is bounded.

use serde_json::{Value, json};

use crate::metrics::openmetrics;

/// Longest request, head and body together.
pub const MAX_REQUEST_BYTES: usize = 64 << 10;
/// Longest head.
const MAX_HEAD_BYTES: usize = 8 << 10;
const MAX_HEADERS: usize = 32;

/// A whole request.
#[derive(Debug, PartialEq, Eq)]
pub struct Request {
    /// Method, as sent.
    pub method: String,
    /// Path without query.
    pub path: String,
    /// What follows the path's question mark.
    pub query: String,
    /// Body.
    pub body: Vec<u8>,
    /// Whether the client wants to send another one.
    pub keep_alive: bool,
}

/// A request that is refused before it reaches a route. The connection is closed after the answer.
#[derive(Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Status code.
    pub status: u16,
    /// What is wrong.
    pub problem: String,
}

fn refuse<T>(status: u16, problem: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal { status, problem: problem.into() })
}

/// What is at the start of a connection's input.
#[derive(Debug, PartialEq, Eq)]
pub enum Parsed {
    /// A request, and its length.
    Whole(Request, usize),
    /// The beginning of one.
    Partial {
        /// The client holds its body back until it reads [`CONTINUE`] (RFC 9110, section 10.1.1).
        wants_continue: bool,
    },
}

/// Interim answer: the body may come.
pub const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// Looks at the first request in `buffer`.
pub fn parse(buffer: &[u8]) -> Result<Parsed, Refusal> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut head = httparse::Request::new(&mut headers);
    let head_bytes = match head.parse(buffer) {
        Ok(httparse::Status::Complete(bytes)) => bytes,
        Ok(httparse::Status::Partial) if buffer.len() > MAX_HEAD_BYTES => {
            return refuse(431, "The request's head is too long");
        }
        Ok(httparse::Status::Partial) => return Ok(Parsed::Partial { wants_continue: false }),
        Err(httparse::Error::TooManyHeaders) => return refuse(431, format!("More than {MAX_HEADERS} header fields")),
        Err(error) => return refuse(400, format!("Not an HTTP request: {error}")),
    };
    if head_bytes > MAX_HEAD_BYTES {
        return refuse(431, "The request's head is too long");
    }
    let framing = framing(head.headers, head.version == Some(1))?;
    let total = head_bytes + framing.body_bytes;
    if total > MAX_REQUEST_BYTES {
        return refuse(413, format!("The request is longer than {MAX_REQUEST_BYTES} bytes"));
    }
    let Some(body) = buffer.get(head_bytes..total) else {
        return Ok(Parsed::Partial { wants_continue: framing.expects_continue });
    };
    let (path, query) = split_target(head.path.unwrap_or_default());
    let request = Request {
        method: head.method.unwrap_or_default().to_owned(),
        path: path.to_owned(),
        query: query.to_owned(),
        body: body.to_vec(),
        keep_alive: framing.keep_alive,
    };
    Ok(Parsed::Whole(request, total))
}

/// Path and query of a request target in origin or absolute form (RFC 9112, section 3.2).
fn split_target(target: &str) -> (&str, &str) {
    let origin = match target.strip_prefix("http://") {
        Some(rest) => rest.find('/').and_then(|slash| rest.get(slash..)).unwrap_or("/"),
        None => target,
    };
    origin.split_once('?').unwrap_or((origin, ""))
}

struct Framing {
    body_bytes: usize,
    keep_alive: bool,
    expects_continue: bool,
}

fn framing(headers: &[httparse::Header<'_>], version_1_1: bool) -> Result<Framing, Refusal> {
    let mut framing = Framing { body_bytes: 0, keep_alive: version_1_1, expects_continue: false };
    let mut length_seen = false;
    for header in headers {
        if header.name.eq_ignore_ascii_case("content-length") {
            let text = std::str::from_utf8(header.value).unwrap_or_default();
            let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
            match text.parse::<usize>() {
                Ok(_) if length_seen => return refuse(400, "Content-Length is given twice"),
                Ok(bytes) if digits && bytes <= MAX_REQUEST_BYTES => framing.body_bytes = bytes,
                _ if digits => return refuse(413, format!("The request is longer than {MAX_REQUEST_BYTES} bytes")),
                _ => return refuse(400, "Content-Length is not a number"),
            }
            length_seen = true;
        } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
            return refuse(501, "Transfer-Encoding is not supported; send Content-Length");
        } else if header.name.eq_ignore_ascii_case("expect") {
            if !header.value.eq_ignore_ascii_case(b"100-continue") {
                return refuse(417, "The only expectation that can be met is 100-continue");
            }
            // A client of HTTP/1.0 doesn't know interim answers.
            framing.expects_continue = version_1_1;
        } else if header.name.eq_ignore_ascii_case("connection") {
            let value = String::from_utf8_lossy(header.value).to_ascii_lowercase();
            framing.keep_alive = match value.trim() {
                "close" => false,
                "keep-alive" => true,
                _ => framing.keep_alive,
            };
        }
    }
    Ok(framing)
}

/// An answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Response {
    /// Status code.
    pub status: u16,
    /// What there is to say, if there is anything.
    pub body: Option<Body>,
    /// With 405: methods that are possible.
    pub allow: Option<String>,
}

/// Content of an answer.
#[derive(Debug, Clone, PartialEq)]
pub enum Body {
    /// JSON.
    Json(Value),
    /// Metrics.
    OpenMetrics(String),
}

/// Longest message of an error: it may repeat what the client sent.
const MAX_FAULT_CHARS: usize = 1000;

impl Response {
    /// 200 with a body.
    pub fn ok(body: Value) -> Self {
        Self { status: 200, body: Some(Body::Json(body)), allow: None }
    }

    /// 204: done.
    pub fn done() -> Self {
        Self { status: 204, body: None, allow: None }
    }

    /// 200 with metrics.
    pub fn metrics(text: String) -> Self {
        Self { status: 200, body: Some(Body::OpenMetrics(text)), allow: None }
    }

    /// An error in the form that Firecracker's clients know.
    pub fn fault(status: u16, message: &str) -> Self {
        let message: String = message.chars().take(MAX_FAULT_CHARS).collect();
        Self { status, body: Some(Body::Json(json!({ "fault_message": message }))), allow: None }
    }

    /// Bytes on the wire.
    pub fn to_bytes(&self, keep_alive: bool) -> Vec<u8> {
        let (content_type, body) = match &self.body {
            Some(Body::Json(value)) => ("application/json", value.to_string()),
            Some(Body::OpenMetrics(text)) => (openmetrics::CONTENT_TYPE, text.clone()),
            None => ("", String::new()),
        };
        let mut text = format!("HTTP/1.1 {} {}\r\nServer: Hull\r\n", self.status, reason(self.status));
        if !keep_alive {
            text.push_str("Connection: close\r\n");
        }
        if let Some(methods) = &self.allow {
            text.push_str(&format!("Allow: {methods}\r\n"));
        }
        if self.body.is_some() {
            text.push_str(&format!("Content-Type: {content_type}\r\nContent-Length: {}\r\n", body.len()));
        }
        text.push_str("\r\n");
        text.push_str(&body);
        text.into_bytes()
    }
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        204 => "No Content",
        400 => "Bad Request",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        409 => "Conflict",
        413 => "Content Too Large",
        417 => "Expectation Failed",
        431 => "Request Header Fields Too Large",
        501 => "Not Implemented",
        503 => "Service Unavailable",
        _ => "Internal Server Error",
    }
}

#[cfg(test)]
#[path = "http_test.rs"]
mod tests;
