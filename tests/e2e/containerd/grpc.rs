//! Calls to containerd that `ctr` doesn't make: `curl` speaks HTTP/2, and the few messages are written by hand.

use std::fs;
use std::process::Command;

use super::harness::Containerd;

/// What the service says of a call: its answer, or its error's text.
pub type Answer = Result<Vec<u8>, String>;

/// Calls `method`, a path with the service's name, in containerd's namespace `namespace`.
pub fn call(containerd: &Containerd, namespace: &str, method: &str, request: &[u8]) -> Answer {
    let (body, answer, headers) = (containerd.path("request"), containerd.path("answer"), containerd.path("headers"));
    let mut framed = vec![0];
    framed.extend(u32::try_from(request.len()).unwrap().to_be_bytes());
    framed.extend(request);
    fs::write(&body, framed).unwrap();
    fs::write(&answer, "").unwrap();
    let run = Command::new("curl")
        .args(["--silent", "--show-error", "--http2-prior-knowledge", "--max-time", "300", "--unix-socket"])
        .arg(containerd.path("c.sock"))
        .args(["--header", "content-type: application/grpc", "--header", "te: trailers", "--header"])
        .arg(format!("containerd-namespace: {namespace}"))
        .arg("--data-binary")
        .arg(format!("@{}", body.display()))
        .arg("--dump-header")
        .arg(&headers)
        .arg("--output")
        .arg(&answer)
        .arg(format!("http://localhost/{method}"))
        .output()
        .unwrap();
    let headers = fs::read_to_string(headers).unwrap();
    let header = |name: &str| headers.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    match header("grpc-status:") {
        Some("0") => Ok(fs::read(answer).unwrap().split_off(5)),
        Some(_) => Err(header("grpc-message:").unwrap_or_default().to_owned()),
        None => panic!("{method}: {headers} {run:?}"),
    }
}

pub fn message(fields: &[Vec<u8>]) -> Vec<u8> {
    fields.concat()
}

pub fn text(field: u8, value: &str) -> Vec<u8> {
    bytes(field, value.as_bytes())
}

pub fn bytes(field: u8, value: &[u8]) -> Vec<u8> {
    [varint(u64::from(field) << 3 | 2), varint(value.len().try_into().unwrap()), value.to_vec()].concat()
}

pub fn number(field: u8, value: u64) -> Vec<u8> {
    [varint(u64::from(field) << 3), varint(value)].concat()
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut encoded = Vec::new();
    while value >= 0x80 {
        encoded.push(u8::try_from(value & 0x7f).unwrap() | 0x80);
        value >>= 7;
    }
    encoded.push(u8::try_from(value).unwrap());
    encoded
}

/// The first field of that number, which has a length in front.
pub fn first(message: &[u8], wanted: u64) -> Vec<u8> {
    let mut rest = message;
    assert_eq!(take_varint(&mut rest), wanted << 3 | 2, "the first field is another one");
    let length = take_varint(&mut rest);
    rest[..usize::try_from(length).unwrap()].to_vec()
}

/// As [`first`], of a number.
pub fn first_number(message: &[u8], wanted: u64) -> u64 {
    let mut rest = message;
    assert_eq!(take_varint(&mut rest), wanted << 3, "the first field is another one");
    take_varint(&mut rest)
}

/// Takes a number off the front.
pub fn take_varint(message: &mut &[u8]) -> u64 {
    let (mut value, mut shift) = (0, 0);
    loop {
        let byte = message[0];
        *message = &message[1..];
        value |= u64::from(byte & 0x7f) << shift;
        shift += 7;
        if byte < 0x80 {
            return value;
        }
    }
}
