//! Directories of the host that the guest may use.

use std::collections::HashSet;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{ConfigError, check, check_path};

/// Most shares: each may hold its part of the monitor's open files.
pub const MAX_SHARES: usize = 16;
/// Longest tag (virtio 1.2, section 5.11.4).
pub const MAX_TAG_BYTES: usize = 36;
/// Most ranges of an identifier map.
const MAX_ID_RANGES: usize = 32;

/// A directory that the guest mounts by its tag: `mount -t virtiofs TAG DIR`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Share {
    /// Name that the guest mounts by, 1 to 36 bytes.
    pub tag: String,
    /// Directory.
    pub path_on_host: PathBuf,
    /// Refuse every change.
    #[serde(default)]
    pub is_read_only: bool,
    /// How much the guest may keep in its memory.
    #[serde(default)]
    pub cache: ShareCache,
    /// Let the guest collect writes and send them later. Needs `cache` to be `auto` or `always`; only for directories that
    /// nobody else writes.
    #[serde(default)]
    pub writeback: bool,
    /// Pass extended attributes through.
    #[serde(default)]
    pub xattr: bool,
    /// User identifiers. Empty: all are the same on both sides; without root's rights, the guest's root is the monitor's user.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub uid_map: Vec<IdRange>,
    /// Group identifiers, likewise.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gid_map: Vec<IdRange>,
}

/// What the guest may keep in its memory instead of asking.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ShareCache {
    /// Nothing: what the host changes is seen at once.
    Never,
    /// Names and attributes for a second, contents until a file is opened again.
    #[default]
    Auto,
    /// All, for a day: only for directories that nothing but the guest changes.
    Always,
}

/// Identifiers `guest` to `guest + count - 1` in the guest are `host` to `host + count - 1` on the host. Identifiers that no range
/// covers can't be given to a file by the guest, and it sees them as 65534.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IdRange {
    /// First identifier in the guest.
    pub guest: u32,
    /// First identifier on the host.
    pub host: u32,
    /// How many.
    pub count: u32,
}

pub(super) fn validate_all(shares: &[Share]) -> Result<(), ConfigError> {
    check(shares.len() <= MAX_SHARES, "shares", &format!("at most {MAX_SHARES} are possible, not {}", shares.len()))?;
    let mut tags = HashSet::new();
    for (index, share) in shares.iter().enumerate() {
        let field = |name: &str| format!("shares[{index}].{name}");
        share.validate(&field)?;
        check(tags.insert(&share.tag), &field("tag"), &format!("another share is called {} already", share.tag))?;
    }
    Ok(())
}

impl Share {
    fn validate(&self, field: &dyn Fn(&str) -> String) -> Result<(), ConfigError> {
        let tag = self.tag.as_bytes();
        let valid = (1..=MAX_TAG_BYTES).contains(&tag.len()) && tag.iter().all(u8::is_ascii_graphic);
        check(
            valid,
            &field("tag"),
            &format!("must have 1 to {MAX_TAG_BYTES} printable ASCII characters and no spaces"),
        )?;
        check_path(&self.path_on_host, &field("path_on_host"), libc::PATH_MAX as usize)?;
        let cached = self.cache != ShareCache::Never;
        check(!self.writeback || cached, &field("writeback"), "needs cache to be auto or always")?;
        check_map(&self.uid_map, &field("uid_map"))?;
        check_map(&self.gid_map, &field("gid_map"))
    }
}

fn check_map(ranges: &[IdRange], field: &str) -> Result<(), ConfigError> {
    check(ranges.len() <= MAX_ID_RANGES, field, &format!("must have at most {MAX_ID_RANGES} ranges"))?;
    for range in ranges {
        // The largest number is no identifier: it means "leave as it is".
        let fits = |start: u32| start.checked_add(range.count).is_some();
        check(range.count > 0, field, "count must be at least 1")?;
        check(fits(range.guest) && fits(range.host), field, "a range ends behind 4294967294")?;
    }
    let sides: [fn(&IdRange) -> u32; 2] = [|range| range.guest, |range| range.host];
    for start in sides {
        let mut sorted: Vec<_> = ranges.iter().collect();
        sorted.sort_by_key(|range| start(range));
        for (range, next) in sorted.iter().zip(sorted.iter().skip(1)) {
            check(start(range).saturating_add(range.count) <= start(next), field, "ranges overlap")?;
        }
    }
    Ok(())
}
