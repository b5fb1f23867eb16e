//! qcow2 images: data, chains, and headers that lie.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::cast_possible_truncation, reason = "tests")]

use std::os::unix::fs::FileExt;

use imago::FormatCreateBuilder;
use proptest::prelude::*;
use tempfile::{NamedTempFile, TempDir};

use super::*;
use crate::virtio::blk::blk_test::{Disk, IOERR, OK};
use crate::virtio::blk::{Block, BlockConfig, BlockError, Format};

const SECTORS: u64 = 2048;

fn create(path: &Path, backing: Option<(&str, &str)>) {
    let file = File::options().read(true).write(true).create(true).truncate(true).open(path).unwrap();
    let mut builder = Qcow2::<Storage>::create_builder(Storage::try_from(file).unwrap()).size(SECTORS * 512);
    if let Some((name, format)) = backing {
        builder = builder.backing(name.to_owned(), format.to_owned());
    }
    builder.create().unwrap();
}

fn config(path: &Path) -> BlockConfig {
    let (path, id) = (path.to_owned(), "q".to_owned());
    BlockConfig { path, id, read_only: true, format: Format::Qcow2, ..BlockConfig::default() }
}

/// Writes with the library itself.
fn fill(path: &Path, data: &[u8], offset: u64) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let image = Qcow2::<Storage>::builder(Storage::try_from(file).unwrap()).write(true);
    let image = image.backing(None).data_file(None).open(DenyImplicitOpenGate::default()).unwrap();
    let image = FormatAccess::new(image);
    image.write(data, offset).unwrap();
    image.flush().unwrap();
}

fn problem(path: &Path) -> String {
    match Block::new(&config(path)).err().unwrap() {
        BlockError::Qcow2 { source, .. } => source.to_string(),
        other => other.to_string(),
    }
}

fn disk(file: NamedTempFile) -> Disk {
    Disk::with(file, |config| (config.format, config.read_only, config.queues) = (Format::Qcow2, true, 2))
}

#[test]
fn data_is_read_and_nothing_else() {
    let file = NamedTempFile::new().unwrap();
    create(file.path(), None);
    let data: Vec<u8> = (0..300 * 512u32).map(|i| (i / 512) as u8).collect();
    fill(file.path(), &data, 100 * 512);
    let before = std::fs::read(file.path()).unwrap();
    let mut disk = disk(file);
    assert_eq!(disk.machine.device_read(disk.driver.device), SECTORS.to_le_bytes());
    assert_eq!(disk.request(0, 5, &[], 1024).1, [0; 1024]);
    assert!(disk.request(0, 100, &[], 300 * 512).1 == data);
    assert_eq!(disk.request(0, SECTORS, &[], 512).0, IOERR);
    assert_eq!(disk.request(1, 0, &[1; 512], 0).0, IOERR);
    assert_eq!(disk.request(4, 0, &[], 0).0, OK);
    assert_eq!(disk.driver.queues.len(), 2);
    assert!(std::fs::read(disk.file.path()).unwrap() == before);
    assert!(Block::new(&BlockConfig { read_only: false, ..config(disk.file.path()) }).is_err(), "writable");
}

#[test]
fn a_chain_shows_what_is_below() {
    let directory = TempDir::new().unwrap();
    let base = directory.path().join("base.raw");
    std::fs::write(&base, vec![7; SECTORS as usize * 512]).unwrap();
    create(&directory.path().join("middle"), Some(("base.raw", "raw")));
    let top = NamedTempFile::new_in(directory.path()).unwrap();
    create(top.path(), Some((directory.path().join("middle").to_str().unwrap(), "qcow2")));
    fill(top.path(), &[8; 65536], 65536);
    let mut disk = disk(top);
    assert_eq!(disk.request(0, 127, &[], 1024).1, [[7; 512], [8; 512]].concat());
    let busy = BlockConfig { format: Format::Raw, read_only: false, ..config(&base) };
    assert!(matches!(Block::new(&busy), Err(BlockError::InUse { .. })), "a backing file is locked");
}

#[test]
fn backing_files_from_elsewhere_are_refused() {
    let directory = TempDir::new().unwrap();
    let image = directory.path().join("image");
    for name in ["/etc/passwd", "../x", "sub/x", "/"] {
        create(&image, Some((name, "raw")));
        assert!(problem(&image).contains("Backing file"), "{name}: {}", problem(&image));
    }
    create(&image, Some(("missing", "raw")));
    assert!(problem(&image).contains("No such file"), "{}", problem(&image));
    create(&image, Some(("image", "vmdk")));
    assert!(problem(&image).contains("neither raw nor qcow2"), "{}", problem(&image));
    create(&image, Some(("image", "qcow2")));
    assert!(problem(&image).contains("More than 8 files"), "{}", problem(&image));
}

#[test]
fn the_format_is_never_guessed() {
    let directory = TempDir::new().unwrap();
    let raw = directory.path().join("raw");
    std::fs::write(&raw, vec![0; 1 << 20]).unwrap();
    assert!(problem(&raw).contains("Not a qcow2 image"));
    create(&raw, None);
    let as_raw = Block::new(&BlockConfig { format: Format::Raw, ..config(&raw) }).unwrap();
    let capacity = crate::virtio::device::VirtioDevice::config_space(&as_raw)[..8].try_into().unwrap();
    assert_eq!(u64::from_le_bytes(capacity), std::fs::metadata(&raw).unwrap().len() / 512);
}

#[test]
fn headers_beyond_the_limits_are_refused() {
    let directory = TempDir::new().unwrap();
    let image = directory.path().join("image");
    for (at, value, says) in [
        (4, 1u32, "Version"),
        (20, 8, "Clusters"),
        (20, 21, "Clusters"),
        (20, u32::MAX, "Clusters"),
        (24, 1, ""),
        (24, 1 << 16, "larger"),
        (32, 1, "Encrypted"),
        (36, u32::MAX, "L1"),
        (56, u32::MAX, "refcount"),
        (40, u32::MAX, "behind"),
    ] {
        create(&image, None);
        File::options().write(true).open(&image).unwrap().write_all_at(&value.to_be_bytes(), at).unwrap();
        if !says.is_empty() {
            assert!(problem(&image).contains(says), "{at}: {}", problem(&image));
        }
    }
    std::fs::write(&image, [0; 50]).unwrap();
    assert!(problem(&image).contains("Too short"));
}

#[test]
fn a_part_of_a_feature_name_is_refused() {
    let directory = TempDir::new().unwrap();
    let image = directory.path().join("image");
    create(&image, None);
    let extension = [FEATURE_NAME_TABLE.to_be_bytes(), 49u32.to_be_bytes()].concat();
    File::options().write(true).open(&image).unwrap().write_all_at(&extension, 104).unwrap();
    let file = File::options().write(true).open(&image).unwrap();
    file.write_all_at(&104u32.to_be_bytes(), 100).unwrap();
    assert!(problem(&image).contains("feature name"), "{}", problem(&image));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: std::env::var("HULL_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(60), ..ProptestConfig::default() })]

    /// Whatever is in an image, using it gives data or an error.
    #[test]
    fn broken_images_do_no_harm(
        changes in prop::collection::vec((prop_oneof![3 => 0u64..160, 2 => 0u64..0x40010, 1 => Just(0x30000u64)], any::<[u8; 8]>(), 1usize..8), 1..6),
    ) {
        let file = NamedTempFile::new().unwrap();
        create(file.path(), None);
        fill(file.path(), &[3; 70 * 512], 0);
        for (at, bytes, length) in &changes {
            file.as_file().write_all_at(&bytes[..*length], *at).unwrap();
        }
        if Block::new(&config(file.path())).is_ok() {
            let mut disk = disk(file);
            for sector in [0, 64, 128, 1000, SECTORS - 8] {
                disk.request(0, sector, &[], 4096);
            }
        }
    }
}
