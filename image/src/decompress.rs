//! Gzip, zstd or nothing, found by looking at the first bytes.

use std::io::{BufRead, BufReader, Read};

/// Largest zstd window, as a power of two: 128 MiB, what `zstd --long` makes and the tool accepts by default.
const MAX_ZSTD_WINDOW_LOG: u32 = 27;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Compression {
    /// Looks at the next bytes without consuming them.
    pub(crate) fn of(reader: &mut impl BufRead) -> std::io::Result<Self> {
        let start = reader.fill_buf()?;
        Ok(match start {
            [0x1f, 0x8b, ..] => Compression::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Compression::Zstd,
            // A skippable frame, with which some tools begin.
            [magic, 0x2a, 0x4d, 0x18, ..] if magic & 0xf0 == 0x50 => Compression::Zstd,
            _ => Compression::None,
        })
    }
}

/// A stream that decompresses whatever comes.
pub(crate) enum Decompressor<R: Read> {
    None(BufReader<R>),
    Gzip(Box<flate2::bufread::MultiGzDecoder<BufReader<R>>>),
    Zstd(Box<zstd::stream::read::Decoder<'static, BufReader<R>>>),
}

impl<R: Read> Decompressor<R> {
    pub(crate) fn new(mut input: BufReader<R>) -> std::io::Result<Self> {
        Ok(match Compression::of(&mut input)? {
            Compression::None => Decompressor::None(input),
            Compression::Gzip => Decompressor::Gzip(Box::new(flate2::bufread::MultiGzDecoder::new(input))),
            Compression::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(input)?;
                decoder.window_log_max(MAX_ZSTD_WINDOW_LOG)?;
                Decompressor::Zstd(Box::new(decoder))
            }
        })
    }

    /// The compressed stream. What is buffered is lost to it, but passed through it.
    pub(crate) fn into_inner(self) -> R {
        match self {
            Decompressor::None(input) => input.into_inner(),
            Decompressor::Gzip(decoder) => decoder.into_inner().into_inner(),
            Decompressor::Zstd(decoder) => decoder.finish().into_inner(),
        }
    }
}

impl<R: Read> Read for Decompressor<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        match self {
            Decompressor::None(input) => input.read(buffer),
            Decompressor::Gzip(decoder) => decoder.read(buffer),
            Decompressor::Zstd(decoder) => decoder.read(buffer),
        }
    }
}
