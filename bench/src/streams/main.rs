//! `bench-streams`: moves bytes between a guest and its host over TCP or vsock, for comparisons of two monitors in one run.
//!
//! Both halves are this program: `serve` on the host, `drive` in the guest. The guest says a line for each step.

#![allow(missing_docs, reason = "a program of measurements")]

mod endpoint;

use std::fs;
use std::io::{Read, Write};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use endpoint::{Listener, Stream};

const MIB: u64 = 1 << 20;
const BLOCK_BYTES: usize = 64 << 10;
const MESSAGE_BYTES: usize = 64;
/// Time for the host to read its counters before the next step.
const GAP: Duration = Duration::from_secs(3);
const USAGE: &str =
    "usage: bench-streams serve|drive ENDPOINT, where it is tcp:ADDRESS:PORT, vsock:CID:PORT or unix:PATH";

/// What a connection is for; its first byte.
#[derive(Clone, Copy)]
enum Work {
    /// The guest sends so many bytes, and waits for one back.
    Upload,
    /// The host sends so many bytes.
    Download,
    /// So many messages come back as they are, one at a time.
    RoundTrips,
}

fn main() -> Result<()> {
    let words: Vec<_> = std::env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["serve", endpoint] => serve(&Listener::bind(endpoint)?),
        ["drive", endpoint] => drive(endpoint),
        _ => bail!(USAGE),
    }
}

/// Serves one connection after the other until it is killed.
fn serve(listener: &Listener) -> Result<()> {
    loop {
        let mut stream = listener.accept()?;
        let mut order = [0; 9];
        stream.read_exact(&mut order).context("Read the order")?;
        let [kind, count @ ..] = order;
        let count = u64::from_le_bytes(count);
        match kind {
            b'u' => {
                transfer(count, |block| stream.read_exact(block))?;
                stream.write_all(&[0])?;
            }
            b'd' => transfer(count, |block| stream.write_all(block))?,
            b'r' => {
                let mut message = [0; MESSAGE_BYTES];
                for _ in 0..count {
                    stream.read_exact(&mut message)?;
                    stream.write_all(&message)?;
                }
            }
            _ => bail!("{kind:#x} is no work"),
        }
    }
}

fn drive(endpoint: &str) -> Result<()> {
    report("start", 0, || Ok(()))?;
    report("upload-MiB", 64, || order(endpoint, Work::Upload, 64 * MIB))?;
    report("download-MiB", 64, || order(endpoint, Work::Download, 64 * MIB))?;
    report("round-trips", 1000, || order(endpoint, Work::RoundTrips, 1000))
}

fn order(endpoint: &str, work: Work, count: u64) -> Result<()> {
    let mut stream = Stream::connect(endpoint)?;
    let kind = match work {
        Work::Upload => b'u',
        Work::Download => b'd',
        Work::RoundTrips => b'r',
    };
    stream.write_all(&[&[kind], count.to_le_bytes().as_slice()].concat())?;
    match work {
        Work::Upload => {
            transfer(count, |block| stream.write_all(block))?;
            stream.read_exact(&mut [0])?;
        }
        Work::Download => transfer(count, |block| stream.read_exact(block))?,
        Work::RoundTrips => {
            let mut message = [7; MESSAGE_BYTES];
            for _ in 0..count {
                stream.write_all(&message)?;
                stream.read_exact(&mut message)?;
            }
        }
    }
    Ok(())
}

/// Whole blocks: counts are multiples of their size.
fn transfer(count: u64, mut act: impl FnMut(&mut [u8]) -> std::io::Result<()>) -> Result<()> {
    let mut block = vec![0; BLOCK_BYTES];
    for _ in 0..count / BLOCK_BYTES as u64 {
        act(&mut block)?;
    }
    Ok(())
}

fn report(what: &str, count: u64, act: impl FnOnce() -> Result<()>) -> Result<()> {
    let (start, before) = (Instant::now(), interrupts()?);
    act().with_context(|| what.to_owned())?;
    println!("bench {what} {count} {} {}", start.elapsed().as_micros(), interrupts()? - before);
    std::thread::sleep(GAP);
    Ok(())
}

/// Interrupts of the guest's network and vsock devices so far.
fn interrupts() -> Result<u64> {
    let table = fs::read_to_string("/proc/interrupts")?;
    let ours = |line: &&str| ["-input", "-output", "-rx", "-tx"].iter().any(|queue| line.contains(queue));
    let counts =
        |line: &str| -> u64 { line.split_whitespace().skip(1).map_while(|word| word.parse::<u64>().ok()).sum() };
    Ok(table.lines().filter(ours).map(counts).sum())
}
