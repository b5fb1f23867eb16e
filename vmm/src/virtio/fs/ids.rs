//! User and group identifiers of the guest on the host, and back.

use virtiofsd::soft_idmap::cmdline::IdMap;

use crate::config::IdRange;

/// What the guest sees where its map has no number: `nobody`, as the kernel does in user namespaces.
const OVERFLOW_ID: u32 = 65534;

/// The map for the library: `None` if all identifiers stay as they are.
///
/// `own` is the monitor's identifier if that isn't root's. It can't create files for others, so by default the guest's root
/// becomes it and nobody else becomes anybody.
pub fn library_map(ranges: &[IdRange], own: Option<u32>) -> Option<Vec<IdMap>> {
    let default = own.map(|host| IdRange { guest: 0, host, count: 1 });
    let ranges: Vec<_> = if ranges.is_empty() { default.into_iter().collect() } else { ranges.to_vec() };
    if ranges.is_empty() {
        return None;
    }
    let both = ranges.iter().map(|&IdRange { guest, host, count }| IdMap::Bidirectional { guest, host, count });
    let forbidden =
        gaps(&ranges, |range| range.guest).map(|(from_guest, count)| IdMap::ForbidGuest { from_guest, count });
    let unknown = gaps(&ranges, |range| range.host).map(|(from_host, count)| IdMap::SquashHost {
        from_host,
        to_guest: OVERFLOW_ID,
        count,
    });
    Some(both.chain(forbidden).chain(unknown).collect())
}

/// Start and length of what lies between ranges, which don't overlap.
fn gaps(ranges: &[IdRange], start: fn(&IdRange) -> u32) -> impl Iterator<Item = (u32, u32)> {
    let mut taken: Vec<_> = ranges.iter().map(|range| (start(range), range.count)).collect();
    taken.sort_unstable();
    taken.push((u32::MAX, 0));
    let mut at = 0u32;
    taken.into_iter().filter_map(move |(start, count)| {
        let gap = (at, start.saturating_sub(at));
        at = start.saturating_add(count);
        (gap.1 > 0).then_some(gap)
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::convert::TryFrom;

    use virtiofsd::soft_idmap::{GuestUid, HostUid, Id, IdMap as Map};

    use super::*;

    fn map(ranges: &[IdRange], own: Option<u32>) -> Map<GuestUid, HostUid> {
        Map::try_from(library_map(ranges, own).unwrap()).unwrap()
    }

    #[test]
    fn root_without_a_map_changes_nothing() {
        assert!(library_map(&[], None).is_none());
    }

    #[test]
    fn ranges_map_both_ways_and_the_rest_is_refused() {
        let ranges = [IdRange { guest: 1000, host: 5, count: 2 }, IdRange { guest: 0, host: 100_000, count: 1000 }];
        let map = map(&ranges, None);
        let to_host = |id: u32| map.map_guest(GuestUid::from(id)).map(Id::into_inner).ok();
        let to_guest = |id: u32| map.map_host(HostUid::from(id)).unwrap().into_inner();
        assert_eq!([0, 999, 1000, 1001].map(to_host), [100_000, 100_999, 5, 6].map(Some));
        assert_eq!([1002, 65534, u32::MAX - 1].map(to_host), [None; 3]);
        assert_eq!([100_000, 6, 0, 7, u32::MAX - 1].map(to_guest), [0, 1001, 65534, 65534, 65534]);
    }

    #[test]
    fn without_rights_the_guests_root_is_the_monitors_user() {
        let map = map(&[], Some(1000));
        assert_eq!(map.map_guest(GuestUid::from(0)).unwrap().into_inner(), 1000);
        assert!(map.map_guest(GuestUid::from(1)).is_err());
        assert_eq!(map.map_host(HostUid::from(1000)).unwrap().into_inner(), 0);
        assert_eq!(map.map_host(HostUid::from(0)).unwrap().into_inner(), 65534);
    }
}
