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

/// A connection and its client's end.
fn connected() -> (Connection, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    theirs.set_nonblocking(true).unwrap();
    (Connection::new(ours), theirs)
}

fn read_all(client: &mut UnixStream) -> String {
    let mut text = Vec::new();
    let mut chunk = [0; 65536];
    while let Ok(count @ 1..) = client.read(&mut chunk) {
        text.extend_from_slice(&chunk[..count]);
    }
    String::from_utf8(text).unwrap()
}

#[test]
fn a_client_that_waits_with_its_body_is_told_once_to_go_on() {
    let (mut connection, mut client) = connected();
    let done = |_: &http::Request| Response::done();
    client.write_all(b"PUT / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n").unwrap();
    assert!(matches!(connection.progress(&done), Progress::WantsRead));
    assert_eq!(read_all(&mut client), "HTTP/1.1 100 Continue\r\n\r\n");
    client.write_all(b"12").unwrap();
    connection.progress(&done);
    assert_eq!(read_all(&mut client), "");
    client.write_all(b"34PUT / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n").unwrap();
    connection.progress(&done);
    let text = read_all(&mut client);
    assert!(text.starts_with("HTTP/1.1 204") && text.ends_with("HTTP/1.1 100 Continue\r\n\r\n"), "{text}");
}

#[test]
fn a_body_that_is_too_long_is_refused_instead_of_asked_for() {
    let (text, closing) = talk(b"PUT / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 100000\r\n\r\n");
    assert!(text.starts_with("HTTP/1.1 413") && closing, "{text}");
}

#[test]
fn requests_behind_a_full_answer_are_not_forgotten() {
    let (mut connection, mut client) = connected();
    let large = |_: &http::Request| Response::ok(serde_json::Value::String("x".repeat(MAX_UNSENT_BYTES)));
    client.write_all(&b"GET / HTTP/1.1\r\n\r\n".repeat(3)).unwrap();
    let mut text = String::new();
    // The client sends nothing more, it only reads.
    for _ in 0..10_000 {
        if !matches!(connection.progress(&large), Progress::WantsWrite) {
            break;
        }
        text.push_str(&read_all(&mut client));
    }
    text.push_str(&read_all(&mut client));
    assert_eq!(text.matches("HTTP/1.1 200").count(), 3);
}

#[test]
fn a_client_that_sends_byte_by_byte_does_not_stay_for_ever() {
    let (mut connection, mut client) = connected();
    let done = |_: &http::Request| Response::done();
    let before = connection.last_active;
    client.write_all(b"GET / HT").unwrap();
    connection.progress(&done);
    assert_eq!(connection.last_active, before, "a part of a request is no progress");
    connection.say_timeout();
    let text = read_all(&mut client);
    assert!(text.starts_with("HTTP/1.1 408") && text.contains("Connection: close"), "{text}");

    let (mut connection, mut client) = connected();
    connection.say_timeout();
    assert_eq!(read_all(&mut client), "", "an idle client sees the end only");
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
