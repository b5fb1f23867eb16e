//! Calls to containerd that `ctr` doesn't make: `curl` speaks HTTP/2, and the few messages are written by hand ([`super::message`]).

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
