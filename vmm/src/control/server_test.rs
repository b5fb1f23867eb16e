#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests stop at the first surprise")]

use super::*;

/// Feeds a connection without an API behind it: what is refused before a route.
fn talk(bytes: &[u8]) -> (String, bool) {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    theirs.set_nonblocking(true).unwrap();
    let mut connection = Connection::new(ours);
    let mut answer = Vec::new();
    for chunk in bytes.chunks(4096) {
        theirs.write_all(chunk).unwrap();
        connection.read();
        connection.answer(&|_: &http::Request| Response::done());
        if !connection.write() || connection.closing {
            break;
        }
    }
    let mut chunk = [0; 65536];
    while let Ok(count @ 1..) = theirs.read(&mut chunk) {
        answer.extend_from_slice(&chunk[..count]);
    }
    (String::from_utf8_lossy(&answer).into_owned(), connection.closing)
}

#[test]
fn requests_in_one_packet_are_answered_in_order() {
    let (answer, closing) = talk(b"GET / HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\nConnection: close\r\n\r\n");
    assert_eq!(answer.matches("HTTP/1.1 204").count(), 2);
    assert!(closing);
}

#[test]
fn garbage_is_answered_once_and_the_connection_closed() {
    let (answer, closing) = talk(&[0xff; 100_000]);
    assert!(answer.starts_with("HTTP/1.1 400") && closing, "{answer}");
}

#[test]
fn a_request_without_end_is_cut() {
    let mut bytes = b"GET / HTTP/1.1\r\nX: ".to_vec();
    bytes.resize(200_000, b'x');
    let (answer, closing) = talk(&bytes);
    assert!(answer.starts_with("HTTP/1.1 431") && closing, "{answer}");
}

#[test]
fn a_body_without_end_is_cut() {
    let (answer, _) = talk(b"PUT / HTTP/1.1\r\nContent-Length: 100000\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
}

#[test]
fn a_client_that_does_not_read_is_not_answered_without_bound() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    theirs.set_nonblocking(true).unwrap();
    let mut connection = Connection::new(ours);
    let large = Response::ok(serde_json::Value::String("x".repeat(10_000)));
    for _ in 0..10_000 {
        let _ = theirs.write(b"GET / HTTP/1.1\r\n\r\n");
        if connection.output.is_empty() {
            connection.read();
        }
        connection.answer(&|_: &http::Request| large.clone());
        connection.write();
    }
    assert!(connection.output.len() < 2 * MAX_UNSENT_BYTES, "{}", connection.output.len());
    assert!(connection.input.len() <= MAX_REQUEST_BYTES + 8192);
}

#[test]
fn only_the_owner_may_connect() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("control");
    let server = ControlServer::bind(&path).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o077, 0);
    let error = ControlServer::bind(&path).err().map(|e| e.to_string());
    assert_eq!(error, Some(format!("Can't listen at control socket {}", path.display())));
    drop(server);
}
