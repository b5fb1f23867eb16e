//! As much of HTTP/1.1 (RFC 9112) as an API on a Unix socket needs. Every length is bounded.

use serde_json::{Value, json};

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

/// Takes the first request out of `buffer`, if all of it is there; the number is its length.
pub fn parse(buffer: &[u8]) -> Result<Option<(Request, usize)>, Refusal> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut head = httparse::Request::new(&mut headers);
    let head_bytes = match head.parse(buffer) {
        Ok(httparse::Status::Complete(bytes)) => bytes,
        Ok(httparse::Status::Partial) if buffer.len() > MAX_HEAD_BYTES => {
            return refuse(431, "The request's head is too long");
        }
        Ok(httparse::Status::Partial) => return Ok(None),
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
    let Some(body) = buffer.get(head_bytes..total) else { return Ok(None) };
    let target = head.path.unwrap_or_default();
    let request = Request {
        method: head.method.unwrap_or_default().to_owned(),
        path: target.split('?').next().unwrap_or_default().to_owned(),
        body: body.to_vec(),
        keep_alive: framing.keep_alive,
    };
    Ok(Some((request, total)))
}

struct Framing {
    body_bytes: usize,
    keep_alive: bool,
}

fn framing(headers: &[httparse::Header<'_>], version_1_1: bool) -> Result<Framing, Refusal> {
    let mut framing = Framing { body_bytes: 0, keep_alive: version_1_1 };
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
    /// JSON, if there is anything to say.
    pub body: Option<Value>,
}

impl Response {
    /// 200 with a body.
    pub fn ok(body: Value) -> Self {
        Self { status: 200, body: Some(body) }
    }

    /// 204: done.
    pub fn done() -> Self {
        Self { status: 204, body: None }
    }

    /// An error in the form that Firecracker's clients know.
    pub fn fault(status: u16, message: &str) -> Self {
        Self { status, body: Some(json!({ "fault_message": message })) }
    }

    /// Bytes on the wire.
    pub fn to_bytes(&self, keep_alive: bool) -> Vec<u8> {
        let body = self.body.as_ref().map(Value::to_string).unwrap_or_default();
        let mut text = format!("HTTP/1.1 {} {}\r\nServer: Hull\r\n", self.status, reason(self.status));
        if !keep_alive {
            text.push_str("Connection: close\r\n");
        }
        if self.body.is_some() {
            text.push_str(&format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len()));
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
        431 => "Request Header Fields Too Large",
        501 => "Not Implemented",
        503 => "Service Unavailable",
        _ => "Internal Server Error",
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests stop at the first surprise")]

    use proptest::prelude::*;

    use super::*;

    fn status(text: &str) -> u16 {
        parse(text.as_bytes()).unwrap_err().status
    }

    #[test]
    fn requests_are_taken_one_by_one() {
        let text = b"PATCH /vm?x=1 HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}GET / HTTP/1.0\r\n\r\n";
        let (first, used) = parse(text).unwrap().unwrap();
        assert_eq!((first.method.as_str(), first.path.as_str(), first.body.as_slice()), ("PATCH", "/vm", &b"{}"[..]));
        assert!(first.keep_alive);
        let (second, rest) = parse(&text[used..]).unwrap().unwrap();
        assert_eq!((second.path.as_str(), second.keep_alive), ("/", false));
        assert_eq!(used + rest, text.len());
    }

    #[test]
    fn an_unfinished_request_waits() {
        let text = b"PUT /actions HTTP/1.1\r\nContent-Length: 5\r\n\r\n1234";
        for end in 0..text.len() {
            assert_eq!(parse(&text[..end]).unwrap(), None);
        }
    }

    #[test]
    fn hostile_framing_is_refused() {
        assert_eq!(status("GET\0/ HTTP/1.1\r\n\r\n"), 400);
        assert_eq!(status("GET / HTTP/1.1\r\nContent-Length: 99999999999999999999999\r\n\r\n"), 413);
        assert_eq!(status("GET / HTTP/1.1\r\nContent-Length: 65536\r\n\r\n"), 413);
        assert_eq!(status("GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n"), 400);
        assert_eq!(status("GET / HTTP/1.1\r\nContent-Length: +1\r\n\r\n"), 400);
        assert_eq!(status("GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n"), 400);
        assert_eq!(status("GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"), 501);
        assert_eq!(status(&format!("GET / HTTP/1.1\r\nX: {}", "x".repeat(MAX_HEAD_BYTES))), 431);
        assert_eq!(status(&format!("GET / HTTP/1.1\r\n{}\r\n", "X: y\r\n".repeat(40))), 431);
    }

    #[test]
    fn answers_have_their_length() {
        let text = String::from_utf8(Response::fault(400, "no").to_bytes(false)).unwrap();
        assert!(text.starts_with("HTTP/1.1 400 Bad Request\r\n") && text.contains("Connection: close"));
        assert!(text.ends_with("Content-Length: 22\r\n\r\n{\"fault_message\":\"no\"}"), "{text}");
        assert!(!String::from_utf8(Response::done().to_bytes(true)).unwrap().contains("Content-Length"));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in any::<Vec<u8>>()) {
            let _ = parse(&bytes);
        }

        #[test]
        fn no_header_panics(name in "[a-zA-Z-]{1,20}", value in "[ -~]{0,40}", body in any::<Vec<u8>>()) {
            let mut text = format!("PUT /x HTTP/1.1\r\n{name}: {value}\r\nContent-Length: {}\r\n\r\n", body.len()).into_bytes();
            text.extend(&body);
            if let Ok(Some((request, used))) = parse(&text) {
                prop_assert_eq!(request.body, body);
                prop_assert_eq!(used, text.len());
            }
        }
    }
}
