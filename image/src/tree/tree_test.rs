use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::cancel::Cancel;
use crate::erofs::data::DataArea;
use crate::testing::{TarBytes, chain, flatten, flatten_with, fsck, read_back, refusal};

/// Paths of an image, without the root.
fn paths(layers: &[Vec<u8>]) -> Vec<String> {
    read_back(&flatten(layers)).into_keys().filter(|path| !path.is_empty()).collect()
}

#[test]
fn whiteouts_hide_lower_layers_only() {
    let lower = TarBytes::new().dir("d").file("d/a", b"1").file("d/b", b"2").file("gone", b"3").finish();
    let upper = TarBytes::new()
        .file("d/.wh.a", b"")
        .file("d/c", b"4")
        .file("new", b"5")
        .file(".wh.new", b"")
        .file(".wh.gone", b"");
    assert_eq!(paths(&[lower, upper.finish()]), ["d", "d/b", "d/c", "new"]);
}

#[test]
fn a_whiteout_of_a_directory_keeps_what_its_layer_put_there() {
    let lower = TarBytes::new().dir("d").file("d/a", b"1").dir("d/e").file("d/e/f", b"2").finish();
    for upper in [
        TarBytes::new().file(".wh.d", b"").dir("d").file("d/n", b"3"),
        TarBytes::new().dir("d").file("d/n", b"3").file(".wh.d", b""),
        TarBytes::new().dir("d").file("d/n", b"3").file("d/.wh..wh..opq", b""),
    ] {
        assert_eq!(paths(&[lower.clone(), upper.finish()]), ["d", "d/n"]);
    }
    let upper = TarBytes::new().file(".wh.d", b"").finish();
    assert_eq!(paths(&[lower.clone(), upper]), Vec::<String>::new());
    let nothing = TarBytes::new().file(".wh.none", b"").file("no/.wh.x", b"").file("no/.wh..wh..opq", b"").finish();
    assert_eq!(paths(&[lower, nothing]).len(), 4);
}

/// Entries that the markers of the last layer looked at.
fn visited(layers: &[Vec<u8>]) -> u64 {
    let dir = tempfile::tempdir().unwrap();
    let mut tree = Tree::new(&Limits::default());
    let file = tempfile::tempfile().unwrap();
    let mut area = DataArea::new(file, dir.path(), &Limits::default(), &Cancel::default());
    for (number, layer) in (1..).zip(layers) {
        tree.visited = 0;
        apply::apply_layer(&mut tree, &mut area, layer.as_slice(), number).unwrap();
    }
    tree.visited
}

#[test]
fn repeated_markers_cost_no_more_than_there_are_entries() {
    const ENTRIES: u64 = 500;
    let lower = (0..ENTRIES).fold(TarBytes::new(), |archive, n| archive.file(&format!("d/low{n}/f"), b"")).finish();
    // The same directory again and again, while the layer fills it with what stays.
    let wide = (0..ENTRIES).fold(TarBytes::new(), |archive, n| {
        archive.file(&format!("d/{n}/f"), b"").file("d/.wh..wh..opq", b"").file(".wh.d", b"")
    });
    // Directories below one another, each with a marker: those above see those below.
    let deep: Vec<String> = (1..40).map(|depth| "d/".repeat(depth)).collect();
    let nested = deep.iter().fold(TarBytes::new(), |archive, path| archive.file(&format!("{path}f"), b""));
    let nested = deep.iter().rev().fold(nested, |archive, path| archive.file(&format!("{path}.wh..wh..opq"), b""));
    for upper in [wide.finish(), nested.finish()] {
        let visited = visited(&[lower.clone(), upper]);
        assert!(visited > ENTRIES && visited <= 2 * 4 * ENTRIES, "{visited}");
    }
}

#[test]
fn a_marker_counts_again_in_the_next_layer() {
    let layer = |name: &str| TarBytes::new().file("d/.wh..wh..opq", b"").file(&format!("d/{name}"), b"");
    assert_eq!(paths(&[layer("a").finish(), layer("b").finish(), layer("c").finish()]), ["d", "d/c"]);
}

#[test]
fn later_entries_replace_earlier_ones() {
    let lower = TarBytes::new().dir("x").file("x/below", b"1").file("y", b"2").symlink("z", "x").finish();
    let upper =
        TarBytes::new().file("x", b"now a file").dir("y").dir("z").file("z/in", b"3").file("x", b"last").finish();
    let items = read_back(&flatten(&[lower, upper]));
    assert_eq!(items["x"].data, b"last");
    assert_eq!((items["y"].kind, items["z"].kind), ('d', 'd'));
    assert!(items.contains_key("z/in") && !items.contains_key("x/below"));
}

#[test]
fn a_directory_entry_keeps_the_content_and_changes_the_metadata() {
    let lower = TarBytes::new().dir("d").file("d/a", b"1").finish();
    let mut header = TarBytes::header("d", tar::EntryType::Directory, 0);
    header.set_mode(0o1777);
    header.set_uid(5);
    let items = read_back(&flatten(&[lower, TarBytes::new().append(header, &[]).finish()]));
    assert_eq!((items["d"].mode, items["d"].owner), (0o1777, (5, 0)));
    assert!(items.contains_key("d/a"));
}

#[test]
fn hard_links_work_across_layers_and_survive_the_removal_of_a_name() {
    let lower = TarBytes::new().file("a", b"data").hardlink("b", "/a").finish();
    let upper = TarBytes::new().hardlink("c", "./a").file(".wh.a", b"").hardlink("c", "c").finish();
    let items = read_back(&flatten(&[lower, upper]));
    assert!(!items.contains_key("a"));
    assert_eq!(items["b"].nid, items["c"].nid);
    assert_eq!((items["b"].links, items["b"].data.as_slice()), (2, b"data".as_slice()));
}

#[test]
fn parents_that_are_symlinks_are_resolved_inside_the_image() {
    let lower = TarBytes::new().dir("usr").dir("usr/bin").symlink("bin", "usr/bin").symlink("abs", "/usr").finish();
    let upper = TarBytes::new()
        .symlink("up", "../../../../usr")
        .file("bin/sh", b"1")
        .file("abs/x", b"2")
        .file("up/y", b"3")
        .symlink("dangling", "not/there")
        .file("dangling/z", b"4");
    let found = paths(&[lower, upper.finish()]);
    for path in ["usr/bin/sh", "usr/x", "usr/y", "not/there/z"] {
        assert!(found.contains(&path.to_owned()), "{path} in {found:?}");
    }
}

#[test]
fn names_are_normalised_like_docker_does() {
    let layer = TarBytes::new().dir("./").file("/abs", b"").file("./a/./b//c", b"").finish();
    assert_eq!(paths(&[layer]), ["a", "a/b", "a/b/c", "abs"]);
}

#[test]
fn hostile_entries_are_refused_with_layer_entry_and_cause() {
    let long = "l".repeat(256);
    let deep = "d/".repeat(3000);
    let mut device = TarBytes::header("dev", tar::EntryType::Block, 0);
    device.set_device_major(5000).unwrap();
    let cases = [
        (
            TarBytes::new().file("a/../../etc/passwd", b""),
            "\"a/../../etc/passwd\" cannot be unpacked: The path contains \"..\"",
        ),
        (TarBytes::new().file("..", b""), "contains \"..\""),
        (TarBytes::new().hardlink("h", "../../etc/shadow"), "contains \"..\""),
        (TarBytes::new().hardlink("h", "/etc/shadow"), "target \"/etc/shadow\" does not exist"),
        (TarBytes::new().dir("d").hardlink("h", "d"), "is a directory"),
        (TarBytes::new().hardlink("h", "/"), "The path is empty"),
        (TarBytes::new().file("", b""), "The path is empty"),
        (TarBytes::new().symlink("s", ""), "symbolic link's target"),
        (TarBytes::new().file("f", b"").file("f/below", b""), "The parent \"f\" is not a directory"),
        (TarBytes::new().symlink("a", "b").symlink("b", "a").file("a/x", b""), "Too many symbolic links"),
        (TarBytes::new().symlink("a", "a/a/a").file("a/x", b""), "Too many symbolic links"),
        (TarBytes::new().pax(&[("path", long.as_bytes())]).file("x", b""), "A name of 256 bytes"),
        (TarBytes::new().pax(&[("path", deep.as_bytes())]).file("x", b""), "The path of 6000 bytes is too long"),
        (TarBytes::new().append(device, &[]), "Device number 5000:0 is out of range"),
        (TarBytes::new().pax(&[("SCHILY.xattr.user.x", &[0; 70000])]).file("x", b""), "attributes are too large"),
        (
            TarBytes::new().file("evil\n\x1b[2J", b"").file("evil\n\x1b[2J/x", b""),
            "Entry \"evil\\n\\u{1b}[2J/x\" cannot",
        ),
    ];
    for (archive, expected) in cases {
        let text = refusal(&[archive.finish()]);
        assert!(text.contains(expected), "{text:?} lacks {expected:?}");
        assert!(!text.contains('\n'), "{text:?}");
    }
}

#[test]
fn limits_hold() {
    let few = Limits { max_entries: 10, ..Limits::default() };
    let many = (0..20).fold(TarBytes::new(), |archive, n| archive.file(&format!("f{n}"), b""));
    assert!(chain(&flatten_with(&[many.finish()], &few).unwrap_err()).contains("more than 10 entries"));
    let small = Limits { max_data_bytes: 1000, ..Limits::default() };
    let large = TarBytes::new().file("a", &[1; 600]).file("b", &[1; 600]).finish();
    assert!(chain(&flatten_with(&[large], &small).unwrap_err()).contains("limit of 1000 bytes"));
    let little = Limits { max_metadata_bytes: 100, ..Limits::default() };
    let attributes = TarBytes::new().pax(&[("SCHILY.xattr.user.x", &[0; 200])]).file("x", b"").finish();
    assert!(chain(&flatten_with(&[attributes], &little).unwrap_err()).contains("more than 100 bytes of names"));
    let full = Limits { min_free_bytes: u64::MAX, ..Limits::default() };
    let layer = TarBytes::new().file("a", &[1; 2 << 20]).finish();
    assert!(chain(&flatten_with(&[layer], &full).unwrap_err()).contains("No space left on the device"));
}

#[test]
fn attributes_that_steer_the_guests_overlay_are_dropped() {
    let layer = TarBytes::new()
        .pax(&[
            ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
            ("SCHILY.xattr.user.overlay.opaque", b"y"),
            ("SCHILY.xattr.user.kept", b"1"),
            ("SCHILY.xattr.security.capability", &[1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
            ("SCHILY.xattr.system.unknown", b"1"),
        ])
        .file("f", b"");
    let items = read_back(&flatten(&[layer.finish()]));
    let names: Vec<&[u8]> = items["f"].xattrs.keys().map(Vec::as_slice).collect();
    assert_eq!(names, [b"security.capability".as_slice(), b"user.kept"]);
}

#[test]
fn data_of_removed_files_becomes_a_hole() {
    let lower = TarBytes::new().file("big", &[0xaa; 1 << 20]).file("stays", b"x").finish();
    let upper = TarBytes::new().file(".wh.big", b"").finish();
    let bytes = flatten(&[lower, upper]);
    assert!(!bytes.windows(64).any(|window| window == [0xaa; 64]));
    fsck(&bytes);
}

/// What a random tree has at a path.
#[derive(Debug, Clone)]
enum Kind {
    File { size: usize, seed: u8, xattrs: Vec<(String, Vec<u8>)> },
    Directory,
    Symlink(String),
    Fifo,
}

fn kinds() -> impl Strategy<Value = Kind> {
    let sizes = prop_oneof![0_usize..300, 3900_usize..4300, 8000_usize..8300, 0_usize..40_000];
    let xattrs = proptest::collection::vec(("[a-z]{1,40}", proptest::collection::vec(any::<u8>(), 0..3000)), 0..4);
    prop_oneof![
        4 => (sizes, any::<u8>(), xattrs).prop_map(|(size, seed, xattrs)| Kind::File { size, seed, xattrs }),
        1 => Just(Kind::Directory),
        1 => "[a-z/.]{1,90}".prop_map(Kind::Symlink),
        1 => Just(Kind::Fifo),
    ]
}

fn content(size: usize, seed: u8) -> Vec<u8> {
    // Some blocks are all zeros: they must come back although they are never written.
    (0..size).map(|n| if n / 4096 % 3 == 1 { 0 } else { seed.wrapping_add((n % 251) as u8) }).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_random_tree_is_read_back_equal_and_writes_the_same_bytes_again(
        tree in proptest::collection::btree_map("[a-zA-Z0-9!~]{1,60}(/[a-z]{1,4}){0,3}", (kinds(), any::<u16>(), 0_u32..200_000, 0_u64..3), 0..60)
    ) {
        let mut archive = TarBytes::new();
        let mut expected = BTreeMap::new();
        let mut accepted: Vec<String> = Vec::new();
        for (path, (kind, mode, uid, mtime)) in &tree {
            // A path below a file is refused elsewhere.
            if accepted.iter().any(|other| path.starts_with(&format!("{other}/"))) {
                continue;
            }
            let (entry_type, data, target) = match kind {
                Kind::File { size, seed, .. } => (tar::EntryType::Regular, content(*size, *seed), None),
                Kind::Directory => (tar::EntryType::Directory, vec![], None),
                Kind::Symlink(target) => (tar::EntryType::Symlink, vec![], Some(target)),
                Kind::Fifo => (tar::EntryType::Fifo, vec![], None),
            };
            if !matches!(kind, Kind::Directory) {
                accepted.push(path.clone());
            }
            let mut header = TarBytes::header(path, entry_type, data.len() as u64);
            header.set_mode(u32::from(mode & 0o7777));
            header.set_uid(u64::from(*uid));
            header.set_mtime(*mtime);
            let mut xattrs = BTreeMap::new();
            if let Kind::File { xattrs: list, .. } = kind {
                let records: Vec<(String, &[u8])> =
                    list.iter().map(|(name, value)| (format!("SCHILY.xattr.user.{name}"), value.as_slice())).collect();
                let records: Vec<(&str, &[u8])> = records.iter().map(|(name, value)| (name.as_str(), *value)).collect();
                if !records.is_empty() {
                    archive = archive.pax(&records);
                }
                xattrs = list.iter().map(|(name, value)| (format!("user.{name}").into_bytes(), value.clone())).collect();
            }
            if let Some(target) = target {
                header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
            }
            archive = archive.append(header, &data);
            let data = target.map_or(data, |target| target.as_bytes().to_vec());
            expected.insert(path.clone(), (u32::from(mode & 0o7777), *uid, i64::try_from(*mtime).unwrap(), data, xattrs));
        }
        let layer = archive.finish();
        let bytes = flatten(std::slice::from_ref(&layer));
        prop_assert_eq!(&bytes, &flatten(&[layer]));
        fsck(&bytes);
        let items = read_back(&bytes);
        for (path, (mode, uid, mtime, data, xattrs)) in expected {
            let item = &items[&path];
            prop_assert_eq!((item.mode, item.owner.0, item.mtime.0), (mode, uid, mtime), "{}", path);
            prop_assert!(item.data == data, "data of {} differs", path);
            prop_assert_eq!(&item.xattrs, &xattrs);
        }
    }

    #[test]
    fn random_layers_never_panic(
        layers in proptest::collection::vec(proptest::collection::vec((0_u8..7, "[ab./]{0,8}", "[ab./]{0,8}"), 0..20), 1..4)
    ) {
        let mut tree = Tree::new(&Limits::default());
        let dir = tempfile::tempdir().unwrap();
        let mut area = DataArea::new(tempfile::tempfile().unwrap(), dir.path(), &Limits::default(), &Cancel::default());
        for (number, entries) in (1..).zip(layers) {
            for (kind, path, target) in entries {
                // Each entry is an archive of its own, so that a refused one doesn't hide the others.
                let archive = match kind {
                    0 => TarBytes::new().file(&path, b"data"),
                    1 => TarBytes::new().dir(&path),
                    2 => TarBytes::new().symlink(&path, &target),
                    3 => TarBytes::new().hardlink(&path, &target),
                    4 => TarBytes::new().file(&format!("{path}/.wh.{target}"), b""),
                    5 => TarBytes::new().file(&format!("{path}/.wh..wh..opq"), b""),
                    _ => TarBytes::new().file(&format!("{path}/.wh.a"), b""),
                };
                let _ = apply::apply_layer(&mut tree, &mut area, archive.finish().as_slice(), number);
            }
        }
        let (mut file, _) = crate::erofs::writer::finish(&tree, area, [0; 16]).unwrap();
        let mut bytes = Vec::new();
        std::io::Seek::rewind(&mut file).unwrap();
        std::io::Read::read_to_end(&mut file, &mut bytes).unwrap();
        read_back(&bytes);
    }
}

/// A tar stream of one endless file, given up after some bytes; counts what is read.
struct GivenUp<'a> {
    head: std::io::Cursor<Vec<u8>>,
    read_bytes: &'a std::cell::Cell<u64>,
    cancel: Cancel,
}

const CANCEL_AFTER_BYTES: u64 = 4 << 20;

impl std::io::Read for GivenUp<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let mut read = self.head.read(buffer)?;
        if read == 0 {
            buffer.fill(1);
            read = buffer.len();
        }
        self.read_bytes.set(self.read_bytes.get() + read as u64);
        if self.read_bytes.get() > CANCEL_AFTER_BYTES {
            self.cancel.cancel();
        }
        Ok(read)
    }
}

#[test]
fn a_huge_file_of_a_layer_is_given_up_in_its_middle() {
    let (read_bytes, cancel) = (std::cell::Cell::new(0), Cancel::default());
    let mut header = TarBytes::header("huge", tar::EntryType::Regular, 64 << 20);
    header.set_cksum();
    let head = std::io::Cursor::new(header.as_bytes().to_vec());
    let archive = GivenUp { head, read_bytes: &read_bytes, cancel: cancel.clone() };
    let dir = tempfile::tempdir().unwrap();
    let mut area = DataArea::new(tempfile::tempfile().unwrap(), dir.path(), &Limits::default(), &cancel);
    let mut tree = Tree::new(&Limits::default());
    let error = apply::apply_layer(&mut tree, &mut area, archive, 1).unwrap_err();
    assert_eq!(chain(&error), "Entry \"huge\" cannot be unpacked: The image was given up");
    assert!(read_bytes.get() < CANCEL_AFTER_BYTES + (1 << 20), "{}", read_bytes.get());
}

#[test]
fn a_huge_file_of_a_directory_is_given_up_in_its_middle() {
    let dir = tempfile::tempdir().unwrap();
    let (source, spool) = (dir.path().join("source"), dir.path().join("spool"));
    std::fs::create_dir(&source).unwrap();
    std::fs::create_dir(&spool).unwrap();
    // A minute of work, but no space on disk.
    std::fs::File::create(source.join("huge")).unwrap().set_len(64 << 30).unwrap();
    let (limits, cancel) = (Limits::default(), Cancel::default());
    let mut area = DataArea::new(tempfile::tempfile().unwrap(), &spool, &limits, &cancel);
    let error = std::thread::scope(|scope| {
        let work = scope.spawn(|| walk::read_directory(&source, &mut area, &limits).map(drop));
        std::thread::sleep(std::time::Duration::from_millis(50));
        drop(cancel.on_drop());
        work.join().unwrap().unwrap_err()
    });
    assert!(chain(&error).ends_with("huge: The image was given up"), "{}", chain(&error));
}
