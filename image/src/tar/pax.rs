//! PAX extended headers: `LENGTH KEY=VALUE\n` records.

use super::TarError;
use super::sparse::{MAX_SEGMENTS, Piece};

/// Most extended attributes of one entry. Each is compared with those before it, so that more cost too much time.
const MAX_XATTRS: usize = 1024;

/// What an extended header says about the next entry; `None` where it is silent.
#[derive(Default)]
pub(super) struct Pax {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) mtime: Option<(i64, u32)>,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) sparse: Option<SparseMap>,
}

/// GNU's three ways of writing a sparse map in PAX archives (0.0, 0.1 and 1.0).
#[derive(Default)]
pub(super) struct SparseMap {
    pub(super) name: Option<Vec<u8>>,
    pub(super) real_size: Option<u64>,
    pub(super) map: Vec<Piece>,
    /// Format 1.0: the map stands at the start of the data.
    pub(super) in_data: bool,
    pending_offset: Option<u64>,
}

impl Pax {
    pub(super) fn parse(mut data: &[u8]) -> Result<Self, TarError> {
        let mut pax = Pax::default();
        while !data.is_empty() {
            // Some writers pad the last block with NULs inside of the size.
            if data.iter().all(|byte| *byte == 0) {
                break;
            }
            let (record, rest) = split_record(data)?;
            pax.record(record.0, record.1)?;
            data = rest;
        }
        Ok(pax)
    }

    fn record(&mut self, key: &[u8], value: &[u8]) -> Result<(), TarError> {
        match key {
            // An empty value cancels the record.
            b"path" => self.path = text(value)?,
            b"linkpath" => self.link = text(value)?,
            b"size" => self.size = optional(value, "size")?,
            b"uid" => self.uid = optional(value, "uid")?,
            b"gid" => self.gid = optional(value, "gid")?,
            b"mtime" if value.is_empty() => self.mtime = None,
            b"mtime" => self.mtime = Some(time(value).ok_or(TarError::Pax("mtime is not a time"))?),
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.set_xattr(name, value)?;
                } else if let Some(name) = key.strip_prefix(b"GNU.sparse.") {
                    self.sparse.get_or_insert_default().record(name, value)?;
                }
            }
        }
        Ok(())
    }

    fn set_xattr(&mut self, name: &[u8], value: &[u8]) -> Result<(), TarError> {
        self.xattrs.retain(|(known, _)| known != name);
        if self.xattrs.len() >= MAX_XATTRS {
            return Err(TarError::Pax("too many extended attributes"));
        }
        self.xattrs.push((name.to_vec(), value.to_vec()));
        Ok(())
    }
}

impl SparseMap {
    fn record(&mut self, key: &[u8], value: &[u8]) -> Result<(), TarError> {
        match key {
            b"major" => self.in_data = value == b"1",
            b"name" => self.name = text(value)?,
            b"size" | b"realsize" => self.real_size = Some(decimal(value, "sparse size")?),
            b"offset" => self.pending_offset = Some(decimal(value, "sparse offset")?),
            b"numbytes" => {
                let offset = self.pending_offset.take().ok_or(TarError::Sparse("length without offset"))?;
                self.push(Piece { offset, bytes: decimal(value, "sparse length")? })?;
            }
            b"map" => {
                let mut numbers = value.split(|byte| *byte == b',').filter(|number| !number.is_empty());
                while let Some(offset) = numbers.next() {
                    let bytes = numbers.next().ok_or(TarError::Sparse("offset without length"))?;
                    let offset = decimal(offset, "sparse offset")?;
                    self.push(Piece { offset, bytes: decimal(bytes, "sparse length")? })?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn push(&mut self, piece: Piece) -> Result<(), TarError> {
        if self.map.len() >= MAX_SEGMENTS {
            return Err(TarError::Sparse("too many pieces"));
        }
        self.map.push(piece);
        Ok(())
    }
}

type Record<'a> = (&'a [u8], &'a [u8]);

/// Splits the first record off: `((key, value), rest)`.
fn split_record(data: &[u8]) -> Result<(Record<'_>, &[u8]), TarError> {
    let space = data.iter().position(|byte| *byte == b' ').ok_or(TarError::Pax("no length"))?;
    let digits = data.get(..space).unwrap_or_default();
    let length = usize::try_from(decimal(digits, "length")?).map_err(|_| TarError::Pax("length out of range"))?;
    if length <= space + 1 || length > data.len() {
        return Err(TarError::Pax("length out of range"));
    }
    let (record, rest) = data.split_at(length);
    let body = record.get(space + 1..).unwrap_or_default();
    let body = body.strip_suffix(b"\n").ok_or(TarError::Pax("no newline at the end"))?;
    let equals = body.iter().position(|byte| *byte == b'=').ok_or(TarError::Pax("no '='"))?;
    let key = body.get(..equals).unwrap_or_default();
    if key.is_empty() || key.contains(&0) {
        return Err(TarError::Pax("bad key"));
    }
    Ok(((key, body.get(equals + 1..).unwrap_or_default()), rest))
}

fn text(value: &[u8]) -> Result<Option<Vec<u8>>, TarError> {
    if value.contains(&0) {
        return Err(TarError::Pax("NUL in a path"));
    }
    Ok((!value.is_empty()).then(|| value.to_vec()))
}

fn optional<T: TryFrom<u64>>(value: &[u8], what: &'static str) -> Result<Option<T>, TarError> {
    if value.is_empty() {
        return Ok(None);
    }
    T::try_from(decimal(value, what)?).map(Some).map_err(|_| TarError::Number(what))
}

pub(super) fn decimal(value: &[u8], what: &'static str) -> Result<u64, TarError> {
    let number = value.iter().try_fold(0_u64, |number, byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        number.checked_mul(10)?.checked_add(digit)
    });
    number.filter(|_| !value.is_empty()).ok_or(TarError::Number(what))
}

/// Seconds with an optional fraction, possibly negative: `-1.25` is `(-2, 750_000_000)`.
fn time(value: &[u8]) -> Option<(i64, u32)> {
    let (negative, value) = match value.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, value),
    };
    let mut parts = value.splitn(2, |byte| *byte == b'.');
    let seconds = i64::try_from(decimal(parts.next()?, "mtime").ok()?).ok()?;
    let fraction = parts.next().unwrap_or_default();
    let mut nanoseconds = 0_u32;
    for index in 0..9 {
        let digit = fraction.get(index).copied().unwrap_or(b'0');
        nanoseconds = nanoseconds * 10 + u32::from(digit.is_ascii_digit().then(|| digit - b'0')?);
    }
    match (negative, nanoseconds) {
        (false, _) => Some((seconds, nanoseconds)),
        (true, 0) => Some((-seconds, 0)),
        (true, _) => Some((-seconds - 1, 1_000_000_000 - nanoseconds)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_has_a_bounded_number_of_attributes() {
        let record = |number: usize| format!("30 SCHILY.xattr.user.{number:05}=aa\n").into_bytes();
        assert_eq!(record(0).len(), 30);
        let header = |count: usize| (0..count).flat_map(record).collect::<Vec<_>>();
        assert_eq!(Pax::parse(&header(MAX_XATTRS)).unwrap().xattrs.len(), MAX_XATTRS);
        assert!(matches!(Pax::parse(&header(MAX_XATTRS + 1)), Err(TarError::Pax(_))));
    }
}
