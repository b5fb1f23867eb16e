#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests stop at the first surprise")]

use proptest::prelude::*;

use super::*;

fn status(text: &str) -> u16 {
    parse(text.as_bytes()).unwrap_err().status
}

fn whole(text: &[u8]) -> (Request, usize) {
    match parse(text) {
        Ok(Parsed::Whole(request, used)) => (request, used),
        other => panic!("{other:?}"),
    }
}

#[test]
fn requests_are_taken_one_by_one() {
    let text = b"PATCH /vm?x=1 HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}GET / HTTP/1.0\r\n\r\n";
    let (first, used) = whole(text);
    assert_eq!((first.method.as_str(), first.path.as_str(), first.body.as_slice()), ("PATCH", "/vm", &b"{}"[..]));
    assert!(first.keep_alive);
    assert_eq!(first.query, "x=1");
    let (second, rest) = whole(&text[used..]);
    assert_eq!((second.path.as_str(), second.keep_alive), ("/", false));
    assert_eq!(used + rest, text.len());
}

#[test]
fn an_unfinished_request_waits() {
    let text = b"PUT /actions HTTP/1.1\r\nContent-Length: 5\r\n\r\n1234";
    for end in 0..text.len() {
        assert_eq!(parse(&text[..end]).unwrap(), Parsed::Partial { wants_continue: false });
    }
}

#[test]
fn a_client_that_waits_for_the_interim_answer_is_noticed() {
    let head = "PUT /x HTTP/1.1\r\nExpect: 100-Continue\r\nContent-Length: 2\r\n\r\n";
    assert_eq!(parse(head.as_bytes()), Ok(Parsed::Partial { wants_continue: true }));
    assert_eq!(parse(&head.as_bytes()[..head.len() - 1]), Ok(Parsed::Partial { wants_continue: false }));
    assert_eq!(whole(format!("{head}{{}}").as_bytes()).0.body, b"{}");
    assert_eq!(parse(head.replace("1.1", "1.0").as_bytes()), Ok(Parsed::Partial { wants_continue: false }));
    assert_eq!(status("PUT /x HTTP/1.1\r\nExpect: tea\r\n\r\n"), 417);
}

#[test]
fn targets_may_be_absolute() {
    for (target, path, query) in [
        ("http://localhost/vm/config?a=b", "/vm/config", "a=b"),
        ("http://localhost", "/", ""),
        ("/vm?a?b", "/vm", "a?b"),
    ] {
        let (request, _) = whole(format!("GET {target} HTTP/1.1\r\n\r\n").as_bytes());
        assert_eq!((request.path.as_str(), request.query.as_str()), (path, query));
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
    let long = String::from_utf8(Response::fault(400, &"ä".repeat(100_000)).to_bytes(true)).unwrap();
    assert!(long.len() < 3000, "an error does not repeat a client's words without bound");
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
        if let Ok(Parsed::Whole(request, used)) = parse(&text) {
            prop_assert_eq!(request.body, body);
            prop_assert_eq!(used, text.len());
        }
    }
}
