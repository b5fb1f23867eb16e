use super::*;
use crate::testing::{TarBytes, chain};
use proptest::prelude::*;

/// All entries of an archive with their data (holes as zeros).
fn read(bytes: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>, TarError> {
    let mut reader = TarReader::new(bytes);
    let mut entries = Vec::new();
    let mut buffer = [0; 1000];
    while let Some(entry) = reader.next_entry()? {
        let mut data = Vec::new();
        while let Some(chunk) = reader.next_chunk(&mut buffer)? {
            match chunk {
                Chunk::Data(length) => data.extend(&buffer[..length]),
                Chunk::Hole(bytes) if bytes < 1 << 20 => data.resize(data.len() + bytes as usize, 0),
                Chunk::Hole(_) => {}
            }
        }
        entries.push((entry, data));
    }
    Ok(entries)
}

fn paths(bytes: &[u8]) -> Vec<String> {
    read(bytes).unwrap().iter().map(|(entry, _)| String::from_utf8_lossy(&entry.path).into_owned()).collect()
}

#[test]
fn entries_of_all_types_are_read() {
    let mut device = TarBytes::header("dev", tar::EntryType::Char, 0);
    device.set_device_major(5).unwrap();
    device.set_device_minor(1).unwrap();
    let archive = TarBytes::new()
        .dir("d/")
        .file("d/f", b"hello")
        .symlink("s", "../x")
        .hardlink("h", "d/f")
        .append(device, &[])
        .append(TarBytes::header("p", tar::EntryType::Fifo, 0), &[])
        .append(TarBytes::header("old/", tar::EntryType::Regular, 0), &[])
        .finish();
    let entries = read(&archive).unwrap();
    let kinds: Vec<EntryKind> = entries.iter().map(|(entry, _)| entry.kind.clone()).collect();
    let target = |text: &[u8]| text.to_vec();
    assert_eq!(
        kinds,
        [
            EntryKind::Directory,
            EntryKind::File,
            EntryKind::Symlink { target: target(b"../x") },
            EntryKind::HardLink { target: target(b"d/f") },
            EntryKind::CharDevice { major: 5, minor: 1 },
            EntryKind::Fifo,
            EntryKind::Directory,
        ]
    );
    assert_eq!(entries[1].1, b"hello");
    assert_eq!((entries[1].0.size, entries[1].0.mtime, entries[1].0.mode), (5, 1_000_000, 0o644));
}

#[test]
fn long_names_and_links_are_read_in_gnu_and_pax_form() {
    let long = "n".repeat(300);
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(0);
    builder.append_data(&mut header, &long, &[][..]).unwrap();
    assert_eq!(paths(&builder.into_inner().unwrap()), std::slice::from_ref(&long));

    let archive =
        TarBytes::new().pax(&[("path", long.as_bytes()), ("linkpath", b"t/u")]).symlink("short", "x").finish();
    let entries = read(&archive).unwrap();
    assert_eq!(entries[0].0.path, long.as_bytes());
    assert_eq!(entries[0].0.kind, EntryKind::Symlink { target: b"t/u".to_vec() });
}

#[test]
fn pax_records_override_the_header() {
    let records: &[(&str, &[u8])] = &[
        ("uid", b"4000000000"),
        ("gid", b"7"),
        ("mtime", b"-1.25"),
        ("SCHILY.xattr.user.k", b"v\0w"),
        ("SCHILY.xattr.user.k", b"last"),
        ("unknown", b"x"),
    ];
    let archive = TarBytes::new().pax(records).file("f", b"1").file("g", b"2").finish();
    let entries = read(&archive).unwrap();
    let first = &entries[0].0;
    assert_eq!((first.uid, first.gid), (4_000_000_000, 7));
    assert_eq!((first.mtime, first.mtime_nsec), (-2, 750_000_000));
    assert_eq!(first.xattrs, [(b"user.k".to_vec(), b"last".to_vec())]);
    // They concern the next entry only.
    assert_eq!((entries[1].0.uid, entries[1].0.xattrs.len()), (0, 0));
}

#[test]
fn base_256_numbers_are_read() {
    let mut header = TarBytes::header("f", tar::EntryType::Regular, 0);
    header.set_uid(0x1234_5678);
    header.as_old_mut().mtime = [0xff; 12];
    let archive = TarBytes::new().append(header, &[]).finish();
    let entry = &read(&archive).unwrap()[0].0;
    assert_eq!((entry.uid, entry.mtime), (0x1234_5678, -1));
}

fn sparse_header(pieces: &[(u64, u64)], stored: u64, size: u64) -> tar::Header {
    let mut header = TarBytes::header("s", tar::EntryType::GNUSparse, stored);
    let gnu = header.as_gnu_mut().unwrap();
    for (slot, (offset, bytes)) in gnu.sparse.iter_mut().zip(pieces) {
        slot.offset.copy_from_slice(format!("{offset:011o}\0").as_bytes());
        slot.numbytes.copy_from_slice(format!("{bytes:011o}\0").as_bytes());
    }
    gnu.realsize.copy_from_slice(format!("{size:011o}\0").as_bytes());
    header
}

#[test]
fn sparse_files_of_all_formats_are_expanded() {
    let expected = [b"ab".as_slice(), &[0; 8], b"cd", &[0; 4]].concat();
    let old = TarBytes::new().append(sparse_header(&[(0, 2), (10, 2)], 4, 16), b"abcd").file("next", b"n").finish();
    let v00: &[(&str, &[u8])] = &[
        ("GNU.sparse.size", b"16"),
        ("GNU.sparse.offset", b"0"),
        ("GNU.sparse.numbytes", b"2"),
        ("GNU.sparse.offset", b"10"),
        ("GNU.sparse.numbytes", b"2"),
    ];
    let v01: &[(&str, &[u8])] =
        &[("GNU.sparse.size", b"16"), ("GNU.sparse.map", b"0,2,10,2"), ("GNU.sparse.name", b"s")];
    let v10: &[(&str, &[u8])] = &[
        ("GNU.sparse.major", b"1"),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.name", b"s"),
        ("GNU.sparse.realsize", b"16"),
    ];
    let mut map = b"2\n0\n2\n10\n2\n".to_vec();
    map.resize(512, 0);
    map.extend(b"abcd");
    let archives = [
        old,
        TarBytes::new().pax(v00).file("s", b"abcd").file("next", b"n").finish(),
        TarBytes::new().pax(v01).file("x", b"abcd").file("next", b"n").finish(),
        TarBytes::new().pax(v10).file("x", &map).file("next", b"n").finish(),
    ];
    for archive in archives {
        let entries = read(&archive).unwrap();
        assert_eq!((entries[0].0.path.as_slice(), entries[0].0.size), (b"s".as_slice(), 16));
        assert_eq!(entries[0].1, expected);
        assert_eq!(entries[1].1, b"n");
    }
}

#[test]
fn bad_sparse_maps_are_refused() {
    let bad = [
        (vec![(10, 2), (0, 2)], 4, 16),
        (vec![(0, 2), (10, 2)], 4, 11),
        (vec![(0, 2)], 4, 16),
        (vec![(u64::MAX >> 31, 1), (0, 3)], 4, 16),
    ];
    for (pieces, stored, size) in bad {
        let archive = TarBytes::new().append(sparse_header(&pieces, stored, size), &vec![1; stored as usize]).finish();
        assert!(matches!(read(&archive), Err(TarError::Sparse(_))), "{pieces:?}");
    }
    let pax: &[(&str, &[u8])] = &[("GNU.sparse.major", b"1"), ("GNU.sparse.realsize", b"16")];
    for map in [b"999999999\n".as_slice(), b"1\n99999999999999999999999\n", b"x\n", b"1"] {
        let archive = TarBytes::new().pax(pax).file("s", map).finish();
        assert!(read(&archive).is_err());
    }
}

#[test]
fn data_of_a_directory_by_name_is_skipped_and_not_read_as_a_header() {
    let archive = TarBytes::new().file("old/", &[1; 700]).file("next", b"n").finish();
    let entries = read(&archive).unwrap();
    assert_eq!((&entries[0].0.kind, entries[0].1.len()), (&EntryKind::Directory, 0));
    assert_eq!(entries[1].1, b"n");
}

#[test]
fn damage_is_an_error_and_not_an_end() {
    let archive = TarBytes::new().file("f", &[1; 2000]).finish();
    for cut in [1, 511, 513, 600, 512 + 2000, 512 + 2047] {
        assert!(matches!(read(&archive[..cut]), Err(TarError::Truncated)), "cut at {cut}");
    }
    // docker, too, accepts an archive without end marker.
    assert_eq!(read(&archive[..512 + 2048]).unwrap().len(), 1);
    assert!(matches!(read(&[7; 1024]), Err(TarError::Checksum)));
    let mut flipped = archive;
    flipped[3] ^= 1;
    assert!(matches!(read(&flipped), Err(TarError::Checksum)));
}

#[test]
fn oversized_and_unknown_entries_are_refused() {
    let huge_name = TarBytes::header("././@LongLink", tar::EntryType::GNULongName, 1 << 40);
    let archive = TarBytes::new().append(huge_name, &[]).finish();
    assert!(matches!(read(&archive), Err(TarError::ExtendedTooLarge(_))));
    let archive = TarBytes::new().append(TarBytes::header("x", tar::EntryType::new(b'M'), 0), &[]).finish();
    assert_eq!(chain(&read(&archive).unwrap_err()), "Unsupported entry type 'M'");
    for record in ["5 a=b\n", "99 a=b\n", "x a=b\n", "6 a=bc\n", "5 =bc\n", "-1 a=b\n", "4 ab\n"] {
        assert!(Pax::parse(record.as_bytes()).is_err(), "{record:?}");
    }
    let mut negative = TarBytes::header("f", tar::EntryType::Regular, 0);
    negative.as_old_mut().size = [0xff; 12];
    assert!(matches!(read(&TarBytes::new().append(negative, &[]).finish()), Err(TarError::Number("size"))));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..3000)) {
        let _ = read(&bytes);
        let _ = Pax::parse(&bytes);
    }

    #[test]
    fn a_damaged_archive_never_panics(
        flips in proptest::collection::vec((0_usize..6000, any::<u8>()), 1..8),
        fix_checksum in any::<bool>(),
    ) {
        let mut archive = TarBytes::new()
            .pax(&[("GNU.sparse.map", b"0,2,10,2"), ("GNU.sparse.size", b"16"), ("SCHILY.xattr.user.a", b"b")])
            .file("s", b"abcd").append(sparse_header(&[(0, 2), (10, 2)], 4, 16), b"abcd")
            .dir("d").hardlink("h", "s").finish();
        for (place, value) in flips {
            let length = archive.len();
            archive[place % length] = value;
        }
        if fix_checksum {
            for start in (0..archive.len() / 512).map(|block| block * 512) {
                let mut header = tar::Header::new_old();
                header.as_mut_bytes().copy_from_slice(&archive[start..start + 512]);
                header.set_cksum();
                archive[start..start + 512].copy_from_slice(header.as_bytes());
            }
        }
        let _ = read(&archive);
    }

    #[test]
    fn what_the_tar_crate_writes_is_read_the_same(
        files in proptest::collection::vec(("[a-zA-Z0-9/_]{1,300}", proptest::collection::vec(any::<u8>(), 0..1500), 0_u64..1 << 40), 0..8)
    ) {
        let mut builder = tar::Builder::new(Vec::new());
        let mut expected = Vec::new();
        for (name, data, mtime) in &files {
            let name = format!("p/{}", name.trim_matches('/'));
            let mut header = tar::Header::new_gnu();
            header.set_size(data.len() as u64);
            header.set_mtime(*mtime);
            header.set_mode(0o600);
            builder.append_data(&mut header, &name, data.as_slice()).unwrap();
        }
        let archive = builder.into_inner().unwrap();
        for entry in tar::Archive::new(archive.as_slice()).entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut data = Vec::new();
            Read::read_to_end(&mut entry, &mut data).unwrap();
            let path = entry.path_bytes().into_owned();
            if path.ends_with(b"/") {
                data.clear(); // a directory to us, as in docker
            }
            expected.push((path, data, entry.header().mtime().unwrap() as i64));
        }
        let found: Vec<_> =
            read(&archive).unwrap().into_iter().map(|(entry, data)| (entry.path, data, entry.mtime)).collect();
        prop_assert_eq!(found, expected);
    }
}
