//! The 512-byte header block: POSIX ustar and GNU variants.

use super::sparse::{self, Piece};
use super::{EntryKind, TarError};

/// Size of a header and of the unit in which data is padded.
pub(super) const BLOCK: usize = 512;

/// A header block whose checksum is right.
pub(super) struct Header {
    block: [u8; BLOCK],
}

impl Header {
    pub(super) fn parse(block: [u8; BLOCK]) -> Result<Self, TarError> {
        let header = Header { block };
        let stored = octal(header.slice(148, 8)).ok_or(TarError::Checksum)?;
        let counted = |index: usize, byte: u8| if (148..156).contains(&index) { b' ' } else { byte };
        let unsigned: u64 = block.iter().enumerate().map(|(index, byte)| u64::from(counted(index, *byte))).sum();
        // Some historic writers summed signed bytes.
        let signed: i64 =
            block.iter().enumerate().map(|(index, byte)| i64::from(counted(index, *byte).cast_signed())).sum();
        if stored == unsigned || i64::try_from(stored).is_ok_and(|stored| stored == signed) {
            Ok(header)
        } else {
            Err(TarError::Checksum)
        }
    }

    pub(super) fn type_flag(&self) -> u8 {
        self.byte(156)
    }

    pub(super) fn path(&self) -> Vec<u8> {
        let name = self.text(0, 100);
        let prefix = if self.is_ustar() { self.text(345, 155) } else { Vec::new() };
        if prefix.is_empty() {
            return name;
        }
        [prefix.as_slice(), b"/", name.as_slice()].concat()
    }

    pub(super) fn link(&self) -> Vec<u8> {
        self.text(157, 100)
    }

    pub(super) fn kind(&self, path: &[u8], target: Vec<u8>) -> Result<EntryKind, TarError> {
        Ok(match self.type_flag() {
            // Before POSIX a directory was a file whose name ends in a slash.
            b'0' | 0 if path.ends_with(b"/") => EntryKind::Directory,
            b'0' | 0 | b'7' | b'S' => EntryKind::File,
            b'1' => EntryKind::HardLink { target },
            b'2' => EntryKind::Symlink { target },
            b'3' => EntryKind::CharDevice { major: self.small(329, "devmajor")?, minor: self.small(337, "devminor")? },
            b'4' => EntryKind::BlockDevice { major: self.small(329, "devmajor")?, minor: self.small(337, "devminor")? },
            b'5' => EntryKind::Directory,
            b'6' => EntryKind::Fifo,
            other => return Err(TarError::UnsupportedType(other)),
        })
    }

    pub(super) fn mode(&self) -> Result<u16, TarError> {
        let mode = self.number(100, 8, "mode")?;
        u16::try_from(mode & 0o7777).map_err(|_| TarError::Number("mode"))
    }

    pub(super) fn uid(&self) -> Result<u32, TarError> {
        u32::try_from(self.number(108, 8, "uid")?).map_err(|_| TarError::Number("uid"))
    }

    pub(super) fn gid(&self) -> Result<u32, TarError> {
        u32::try_from(self.number(116, 8, "gid")?).map_err(|_| TarError::Number("gid"))
    }

    pub(super) fn size(&self) -> Result<u64, TarError> {
        u64::try_from(self.number(124, 12, "size")?).map_err(|_| TarError::Number("size"))
    }

    pub(super) fn mtime(&self) -> Result<i64, TarError> {
        self.number(136, 12, "mtime")
    }

    /// The first pieces of an old-format GNU sparse file.
    pub(super) fn sparse_map(&self) -> Result<Vec<Piece>, TarError> {
        let mut map = Vec::new();
        sparse::read_gnu_pieces(self.slice(386, 4 * 24), &mut map)?;
        Ok(map)
    }

    /// More blocks of sparse pieces follow the header.
    pub(super) fn sparse_continues(&self) -> bool {
        self.byte(482) != 0
    }

    pub(super) fn sparse_real_size(&self) -> Result<u64, TarError> {
        u64::try_from(self.number(483, 12, "realsize")?).map_err(|_| TarError::Number("realsize"))
    }

    fn is_ustar(&self) -> bool {
        self.slice(257, 6) == b"ustar\0"
    }

    /// Device numbers are absent (zero or blank) in pre-POSIX headers.
    fn small(&self, offset: usize, field: &'static str) -> Result<u32, TarError> {
        u32::try_from(self.number(offset, 8, field)?).map_err(|_| TarError::Number(field))
    }

    fn number(&self, offset: usize, length: usize, field: &'static str) -> Result<i64, TarError> {
        number(self.slice(offset, length)).ok_or(TarError::Number(field))
    }

    /// A NUL-terminated text field.
    fn text(&self, offset: usize, length: usize) -> Vec<u8> {
        self.slice(offset, length).iter().copied().take_while(|byte| *byte != 0).collect()
    }

    fn byte(&self, offset: usize) -> u8 {
        self.block.get(offset).copied().unwrap_or_default()
    }

    fn slice(&self, offset: usize, length: usize) -> &[u8] {
        self.block.get(offset..offset + length).unwrap_or_default()
    }
}

/// A numeric field: octal digits, or GNU base-256 when the first bit is set.
pub(super) fn number(field: &[u8]) -> Option<i64> {
    let first = *field.first()?;
    if first & 0x80 == 0 {
        return octal(field).and_then(|value| i64::try_from(value).ok());
    }
    // Two's complement, big endian, in all bits but the first.
    let negative = first & 0x40 != 0;
    let mut value: i128 = if negative { -1 } else { 0 };
    for (index, byte) in field.iter().enumerate() {
        let bits = if index == 0 && !negative { byte & 0x7f } else { *byte };
        value = (value << 8) | i128::from(bits);
    }
    i64::try_from(value).ok()
}

/// Octal digits, padded by spaces and NULs on either side; an empty field is zero.
fn octal(field: &[u8]) -> Option<u64> {
    let mut value: u64 = 0;
    let digits = field.iter().skip_while(|byte| **byte == b' ').take_while(|byte| !matches!(byte, b' ' | 0));
    for digit in digits {
        if !(b'0'..=b'7').contains(digit) {
            return None;
        }
        value = value.checked_mul(8)?.checked_add(u64::from(digit - b'0'))?;
    }
    Some(value)
}
