//! Bytes that show where in a stream they belong: both ends of a test make them and compare.

use std::io::{self, Read, Write};

const CHUNK_BYTES: usize = 64 << 10;

/// Writes the first `bytes` of the pattern named `seed`.
pub fn write(mut to: impl Write, seed: u64, bytes: u64) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut at = 0;
    while at < bytes {
        fill(&mut chunk, seed, at);
        let count = chunk.len().min(usize::try_from(bytes - at).unwrap_or(usize::MAX));
        to.write_all(chunk.get(..count).unwrap_or_default())?;
        at += count as u64;
    }
    Ok(())
}

/// Reads to the end of data and returns how many bytes there were; an error if they aren't the pattern's.
pub fn check(mut from: impl Read, seed: u64) -> io::Result<u64> {
    let mut expected = vec![0; CHUNK_BYTES];
    let mut got = vec![0; CHUNK_BYTES];
    let mut at = 0;
    loop {
        fill(&mut expected, seed, at);
        let mut filled = 0;
        while filled < got.len() {
            match from.read(got.get_mut(filled..).unwrap_or_default())? {
                0 => break,
                count => filled += count,
            }
        }
        if got.get(..filled) != expected.get(..filled) {
            return Err(io::Error::other(format!("wrong bytes in the chunk at {at}")));
        }
        at += filled as u64;
        if filled < got.len() {
            return Ok(at);
        }
    }
}

/// `at` is a multiple of 8.
fn fill(chunk: &mut [u8], seed: u64, at: u64) {
    for (index, word) in (at / 8..).zip(chunk.chunks_exact_mut(8)) {
        word.copy_from_slice(&(index ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(31).to_le_bytes());
    }
}
