//! Content digests, and readers that compute them on the way.

use std::fmt;
use std::io::Read;
use std::str::FromStr;

use sha2::{Digest as _, Sha256, Sha512};

/// A digest is not one.
#[derive(Debug, thiserror::Error)]
#[error("Not a sha256 or sha512 digest: {0:?}")]
pub struct DigestError(String);

/// Digest of a blob: `sha256:<64 hex digits>` or `sha512:<128 hex digits>`.
///
/// Always lower case, so that it is safe as a file name and compares as a string.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest {
    algorithm: Algorithm,
    hex: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Algorithm {
    Sha256,
    Sha512,
}

impl Digest {
    /// SHA-256 of `bytes`.
    #[must_use]
    pub fn sha256(bytes: &[u8]) -> Self {
        Digest { algorithm: Algorithm::Sha256, hex: hex::encode(Sha256::digest(bytes)) }
    }

    /// `sha256` or `sha512`.
    #[must_use]
    pub fn algorithm(&self) -> &'static str {
        match self.algorithm {
            Algorithm::Sha256 => "sha256",
            Algorithm::Sha512 => "sha512",
        }
    }

    /// The hexadecimal part.
    #[must_use]
    pub fn hex(&self) -> &str {
        &self.hex
    }

    /// A hasher of this digest's algorithm.
    pub(crate) fn hasher(&self) -> Hasher {
        match self.algorithm {
            Algorithm::Sha256 => Hasher::Sha256(Sha256::new()),
            Algorithm::Sha512 => Hasher::Sha512(Box::default()),
        }
    }

    /// Whether `bytes` have this digest.
    pub(crate) fn matches(&self, bytes: &[u8]) -> bool {
        let mut hasher = self.hasher();
        hasher.update(bytes);
        hasher.finish() == *self
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}", self.algorithm(), self.hex)
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let (algorithm, hex, length) = match text.split_once(':') {
            Some(("sha256", hex)) => (Algorithm::Sha256, hex, 64),
            Some(("sha512", hex)) => (Algorithm::Sha512, hex, 128),
            _ => return Err(DigestError(text.chars().take(160).collect())),
        };
        let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if hex.len() == length && hex.bytes().all(is_hex) {
            Ok(Digest { algorithm, hex: hex.to_owned() })
        } else {
            Err(DigestError(text.chars().take(160).collect()))
        }
    }
}

impl<'de> serde::Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl serde::Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Computes a digest piece by piece.
pub(crate) enum Hasher {
    Sha256(Sha256),
    Sha512(Box<Sha512>),
}

impl Hasher {
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match self {
            Hasher::Sha256(hasher) => hasher.update(bytes),
            Hasher::Sha512(hasher) => hasher.update(bytes),
        }
    }

    pub(crate) fn finish(self) -> Digest {
        match self {
            Hasher::Sha256(hasher) => Digest { algorithm: Algorithm::Sha256, hex: hex::encode(hasher.finalize()) },
            Hasher::Sha512(hasher) => Digest { algorithm: Algorithm::Sha512, hex: hex::encode(hasher.finalize()) },
        }
    }
}

/// Passes a stream through while hashing it, up to a limit.
pub(crate) struct HashingReader<R> {
    inner: R,
    hasher: Hasher,
    bytes: u64,
    limit: u64,
}

/// The stream is longer than allowed.
#[derive(Debug, thiserror::Error)]
#[error("More than {0} bytes")]
pub(crate) struct TooLong(pub(crate) u64);

impl<R: Read> HashingReader<R> {
    /// Fails with [`TooLong`] as soon as more than `limit` bytes come.
    pub(crate) fn new(inner: R, hasher: Hasher, limit: u64) -> Self {
        HashingReader { inner, hasher, bytes: 0, limit }
    }

    /// Reads to the end and returns the digest and the length.
    pub(crate) fn finish(self) -> std::io::Result<(Digest, u64)> {
        let (drained, result) = self.drain();
        result?;
        Ok((drained.hasher.finish(), drained.bytes))
    }

    /// Reads to the end.
    pub(crate) fn drain(mut self) -> (Self, std::io::Result<()>) {
        let mut buffer = vec![0; 64 << 10];
        loop {
            match self.read(&mut buffer) {
                Ok(0) => return (self, Ok(())),
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return (self, Err(error)),
            }
        }
    }

    /// The digest of what was read, and the stream.
    pub(crate) fn into_parts(self) -> (Digest, R) {
        (self.hasher.finish(), self.inner)
    }
}

impl<R: Read> Read for HashingReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.hasher.update(buffer.get(..read).unwrap_or_default());
        self.bytes += read as u64;
        if self.bytes > self.limit {
            return Err(std::io::Error::other(TooLong(self.limit)));
        }
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_parse_strictly() {
        let hex = "a".repeat(64);
        assert_eq!(format!("sha256:{hex}").parse::<Digest>().unwrap().to_string(), format!("sha256:{hex}"));
        for bad in ["", "sha256:", "sha256:../../etc", &format!("sha256:{}", "A".repeat(64)), "md5:00", &hex] {
            assert!(bad.parse::<Digest>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_hashing_reader_hashes_and_bounds() {
        let reader = HashingReader::new(&b"hello"[..], Hasher::Sha256(Sha256::new()), 5);
        assert_eq!(reader.finish().unwrap(), (Digest::sha256(b"hello"), 5));
        assert!(HashingReader::new(&b"hello"[..], Hasher::Sha256(Sha256::new()), 4).finish().is_err());
    }
}
