//! The guest's half of the tests of vsock streams: says one line on standard output.

#![allow(missing_docs, reason = "a program of tests")]

#[path = "pattern.rs"]
mod pattern;

use std::error::Error;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::thread;

use nix::sys::socket::{
    AddressFamily, Backlog, Shutdown, SockFlag, SockType, VsockAddr, accept, bind, connect, listen, shutdown, socket,
};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

const HOST_CID: u32 = 2;
const ANY_CID: u32 = u32::MAX;
const STACK_BYTES: usize = 64 << 10;
const USAGE: &str = "send PORT BYTES | receive PORT BYTES | echo PORT | many PORT COUNT | half PORT";

fn main() -> Result<()> {
    let words: Vec<_> = std::env::args().skip(1).collect();
    let words: Vec<_> = words.iter().map(String::as_str).collect();
    match *words.as_slice() {
        ["send", port, bytes] => send(port.parse()?, bytes.parse()?),
        ["receive", port, bytes] => receive(port.parse()?, bytes.parse()?),
        ["echo", port] => echo(port.parse()?),
        ["many", port, count] => many(port.parse()?, count.parse()?),
        ["half", port] => half(port.parse()?),
        _ => Err(USAGE.into()),
    }
}

fn dial(port: u32) -> Result<File> {
    let fd = socket(AddressFamily::Vsock, SockType::Stream, SockFlag::empty(), None)?;
    connect(fd.as_raw_fd(), &VsockAddr::new(HOST_CID, port))?;
    Ok(File::from(fd))
}

/// Sends the pattern, then waits for what the host says of it.
fn send(port: u32, bytes: u64) -> Result<()> {
    let mut stream = dial(port)?;
    pattern::write(&stream, u64::from(port), bytes)?;
    shutdown(stream.as_raw_fd(), Shutdown::Write)?;
    let mut verdict = String::new();
    stream.read_to_string(&mut verdict)?;
    println!("sent, the host says {verdict}");
    Ok(())
}

fn receive(port: u32, bytes: u64) -> Result<()> {
    let got = pattern::check(dial(port)?, u64::from(port))?;
    println!("received {got} of {bytes} bytes");
    Ok(())
}

/// Sends everything back, on any number of streams.
fn echo(port: u32) -> Result<()> {
    let fd = socket(AddressFamily::Vsock, SockType::Stream, SockFlag::empty(), None)?;
    bind(fd.as_raw_fd(), &VsockAddr::new(ANY_CID, port))?;
    listen(&fd, Backlog::MAXCONN)?;
    println!("listening");
    loop {
        let stream = accepted(accept(fd.as_raw_fd())?);
        thread::Builder::new().stack_size(STACK_BYTES).spawn(move || echo_one(&stream))?;
    }
}

#[allow(unsafe_code, reason = "nix gives a plain number")]
fn accepted(fd: i32) -> File {
    // SAFETY: the descriptor is new and nobody else has it.
    File::from(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn echo_one(mut stream: &File) -> Result<()> {
    let mut buffer = [0; 16 << 10];
    loop {
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        stream.write_all(buffer.get(..count).unwrap_or_default())?;
    }
    shutdown(stream.as_raw_fd(), Shutdown::Write)?;
    // The stream ends when the host has had enough.
    while stream.read(&mut buffer)? > 0 {}
    Ok(())
}

/// Opens many streams, writes a number to each, then reads it back from each.
fn many(port: u32, count: u32) -> Result<()> {
    let streams = (0..count).map(|_| dial(port)).collect::<Result<Vec<_>>>()?;
    for (number, mut stream) in (0u32..).zip(&streams) {
        stream.write_all(&number.to_le_bytes())?;
    }
    for (number, mut stream) in (0u32..).zip(&streams) {
        let mut answer = [0; 4];
        stream.read_exact(&mut answer)?;
        if answer != number.to_le_bytes() {
            return Err(format!("stream {number} answers {answer:?}").into());
        }
    }
    println!("{count} streams at once");
    Ok(())
}

/// Stops receiving: the host can't send any more, and still reads to the end.
fn half(port: u32) -> Result<()> {
    let mut stream = dial(port)?;
    shutdown(stream.as_raw_fd(), Shutdown::Read)?;
    stream.write_all(b"still sending")?;
    println!("half closed");
    Ok(())
}
