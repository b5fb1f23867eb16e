//! Extended attributes, inline after the inode.

use super::format::{put16, put32};

/// `erofs_xattr_ibody_header`.
const HEADER_BYTES: usize = 12;
/// `erofs_xattr_entry` without name and value.
const ENTRY_BYTES: usize = 4;
/// `i_xattr_icount` counts 4-byte units in 16 bits.
const MAX_BODY_BYTES: usize = (u16::MAX as usize - 1) * 4 + HEADER_BYTES;

/// Name prefixes that EROFS stores as a number.
const PREFIXES: [(u8, &[u8]); 5] = [
    (1, b"user."),
    (2, b"system.posix_acl_access"),
    (3, b"system.posix_acl_default"),
    (4, b"trusted."),
    (6, b"security."),
];

/// One attribute with its full name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Xattr {
    pub name: Box<[u8]>,
    pub value: Box<[u8]>,
}

/// Number and rest of a name, if EROFS can store it.
pub(crate) fn split_name(name: &[u8]) -> Option<(u8, &[u8])> {
    PREFIXES.iter().find_map(|(index, prefix)| {
        let rest = name.strip_prefix(*prefix)?;
        // The two ACL names are complete; the others need a rest.
        (rest.is_empty() == prefix.starts_with(b"system.") && rest.len() <= 255).then_some((*index, rest))
    })
}

/// Bytes of the attributes after the inode; `None` if they are too large for EROFS.
pub(crate) fn body_bytes(xattrs: &[Xattr]) -> Option<usize> {
    if xattrs.is_empty() {
        return Some(0);
    }
    let mut bytes = HEADER_BYTES;
    for xattr in xattrs {
        let (_, rest) = split_name(&xattr.name)?;
        u16::try_from(xattr.value.len()).ok()?;
        bytes += (ENTRY_BYTES + rest.len() + xattr.value.len()).next_multiple_of(4);
    }
    (bytes <= MAX_BODY_BYTES).then_some(bytes)
}

/// `i_xattr_icount` for a body of so many bytes.
pub(super) fn icount(body_bytes: usize) -> u16 {
    if body_bytes == 0 { 0 } else { u16::try_from((body_bytes - HEADER_BYTES) / 4 + 1).unwrap_or(u16::MAX) }
}

/// Appends the attributes; those which [`body_bytes`] refused never come here.
pub(super) fn write(xattrs: &[Xattr], bytes: &mut Vec<u8>) {
    if xattrs.is_empty() {
        return;
    }
    put32(bytes, 0); // name filter, unused
    bytes.extend([0; 8]); // no shared attributes
    for xattr in xattrs {
        let Some((index, rest)) = split_name(&xattr.name) else { continue };
        bytes.extend([u8::try_from(rest.len()).unwrap_or_default(), index]);
        put16(bytes, u16::try_from(xattr.value.len()).unwrap_or_default());
        bytes.extend(rest);
        bytes.extend(&xattr.value);
        let padding = (ENTRY_BYTES + rest.len() + xattr.value.len()).wrapping_neg() % 4;
        bytes.extend(std::iter::repeat_n(0, padding));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_announced_size_is_the_written_size() {
        let xattr = |name: &str, length| Xattr { name: name.as_bytes().into(), value: vec![7; length].into() };
        for xattrs in [vec![], vec![xattr("user.a", 0)], vec![xattr("security.capability", 20), xattr("user.bcd", 5)]] {
            let mut bytes = Vec::new();
            write(&xattrs, &mut bytes);
            assert_eq!(Some(bytes.len()), body_bytes(&xattrs));
        }
        assert_eq!(body_bytes(&[xattr("user.x", 65536)]), None);
        assert_eq!(body_bytes(&[xattr("system.other", 1)]), None);
        assert_eq!(body_bytes(&[xattr("user.", 1)]), None);
    }
}
