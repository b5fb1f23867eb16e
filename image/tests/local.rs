//! Images from disk: layouts, archives and directories, whole and damaged; and the life of the store.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "tests"
)]

mod fixture;

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use fixture::{
    Recorder, TestImage, gzip, image, layout_files, leftovers, line, noise, read_file, runtime, small, tar,
    write_layout, zstd,
};
use hull_image::{Error, GetOptions, Image, Limits, NoProgress, Platform, Progress, Store};

struct Fixture {
    dir: tempfile::TempDir,
    store: Store,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store")).unwrap();
        Fixture { dir, store }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    fn get_with(&self, reference: &str, options: &GetOptions) -> Result<Image, Error> {
        let reference = reference.replace("DIR", self.dir.path().to_str().unwrap()).parse()?;
        runtime().block_on(self.store.get(&reference, options, &NoProgress))
    }

    fn get(&self, reference: &str) -> Result<Image, Error> {
        self.get_with(reference, &GetOptions::default())
    }

    /// The error line of an image that must be refused, which leaves nothing behind.
    fn refused(&self, reference: &str) -> String {
        let text = line(&self.get(reference).unwrap_err());
        assert_eq!(leftovers(&self.path("store")), Vec::<String>::new());
        text
    }

    fn layout(&self, image: &TestImage) {
        write_layout(&self.path("layout"), &[image], &[image.entry(Some("t"), None)]);
    }
}

fn host() -> String {
    Platform::host().architecture
}

#[test]
fn a_layout_with_all_compressions_becomes_one_image() {
    let fixture = Fixture::new();
    let layers = [
        tar(&[("base", b"1"), ("hello", b"old")]),
        tar(&[("hello", b"new"), ("zst", b"2")]),
        tar(&[(".wh.base", b""), ("plain", b"3")]),
    ];
    let blobs = [gzip(&layers[0]), zstd(&layers[1]), layers[2].clone()];
    let pairs: Vec<_> = layers.iter().cloned().zip(blobs).collect();
    fixture.layout(&image(&pairs, &host()));
    let image = fixture.get("oci:DIR/layout:t").unwrap();
    assert_eq!(read_file(&image, "/hello"), b"new");
    assert_eq!(read_file(&image, "/zst"), b"2");
    assert_eq!(read_file(&image, "/plain"), b"3");
    let config = image.config.config().as_ref().unwrap();
    assert_eq!(config.cmd().as_ref().unwrap(), &["/hello".to_owned()]);
    assert_eq!(image.size_bytes, std::fs::metadata(&image.erofs).unwrap().len());
    // Without a tag, and found by name and by digest.
    assert_eq!(fixture.get("oci:DIR/layout").unwrap().erofs, image.erofs);
    assert_eq!(fixture.store.lookup(&image.name).unwrap().unwrap().erofs, image.erofs);
    let prefix = &image.manifest_digest["sha256:".len()..][..12];
    assert!(matches!(fixture.store.lookup(prefix), Err(Error::Ambiguous(_))));
    assert_eq!(fixture.store.list().unwrap().len(), 2);
    assert_eq!(std::fs::read_dir(fixture.path("store/tmp")).unwrap().count(), 0);
    assert_eq!(std::fs::read_dir(fixture.path("store/locks")).unwrap().count(), 0);
}

#[test]
fn layouts_in_archives_are_read_also_compressed() {
    let fixture = Fixture::new();
    let image = small("x");
    let files = layout_files(&[&image], &[image.entry(Some("t"), None)]);
    let files: Vec<(&str, &[u8])> = files.iter().map(|(name, data)| (name.as_str(), data.as_slice())).collect();
    std::fs::write(fixture.path("a.tar"), tar(&files)).unwrap();
    std::fs::write(fixture.path("a.tar.gz"), gzip(&tar(&files))).unwrap();
    let first = fixture.get("oci-archive:DIR/a.tar:t").unwrap();
    assert_eq!(read_file(&first, "/hello"), b"x");
    assert_eq!(fixture.get("oci-archive:DIR/a.tar.gz").unwrap().erofs, first.erofs);
    assert!(line(&fixture.get("oci-archive:DIR/a.tar:no").unwrap_err()).ends_with("has no image \"no\"; it has: t"));
}

/// An archive as old versions of docker save it: directories with layer.tar, some of them symlinks.
fn docker_archive(config: &[u8], layers: &[&[u8]], linked: bool) -> Vec<u8> {
    let config_name = format!("{}.json", hull_image::Digest::sha256(config).hex());
    let names: Vec<String> = (0..layers.len()).map(|n| format!("id{n}/layer.tar")).collect();
    let manifest = serde_json::json!([{"Config": config_name, "RepoTags": ["app:1", "app:latest"], "Layers": names}]);
    let mut builder = tar::Builder::new(Vec::new());
    let mut add = |name: &str, data: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(data.len() as u64);
        builder.append_data(&mut header, name, data).unwrap();
    };
    for (name, data) in names.iter().zip(layers) {
        add(if linked { "real/layer.tar" } else { name }, data);
    }
    add(&config_name, config);
    add("manifest.json", manifest.to_string().as_bytes());
    if linked {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        builder.append_link(&mut header, "id0/layer.tar", "../real/layer.tar").unwrap();
    }
    builder.into_inner().unwrap()
}

#[test]
fn archives_of_docker_save_are_read() {
    let fixture = Fixture::new();
    let content = tar(&[("hello", b"docker")]);
    let image = image(&[(content.clone(), content.clone())], &host());
    let config = &image.blobs[&image.config];
    for (name, linked) in [("plain.tar", false), ("linked.tar", true)] {
        std::fs::write(fixture.path(name), docker_archive(config, &[&content], linked)).unwrap();
        let found = fixture.get(&format!("docker-archive:DIR/{name}:app:1")).unwrap();
        assert_eq!(read_file(&found, "/hello"), b"docker");
        assert_eq!(found.manifest_digest, image.config);
        assert!(fixture.get(&format!("docker-archive:DIR/{name}")).is_ok());
    }
    let error = line(&fixture.get("docker-archive:DIR/plain.tar:2").unwrap_err());
    assert!(error.ends_with("has no image \"2\"; it has: app:1, app:latest"), "{error}");
}

#[test]
fn damaged_docker_archives_are_refused() {
    let fixture = Fixture::new();
    let content = tar(&[("hello", b"docker")]);
    let image = image(&[(content.clone(), content)], &host());
    let archive = docker_archive(&image.blobs[&image.config], &[&tar(&[("hello", b"other")])], false);
    std::fs::write(fixture.path("d.tar"), &archive).unwrap();
    let error = fixture.refused("docker-archive:DIR/d.tar");
    assert!(error.contains("The content is damaged: its digest is sha256:"), "{error}");
    std::fs::write(fixture.path("d.tar"), tar(&[("x", b"")])).unwrap();
    assert!(fixture.refused("docker-archive:DIR/d.tar").ends_with("it has no manifest.json"));
    std::fs::write(fixture.path("d.tar"), b"neither tar nor gzip".repeat(100)).unwrap();
    assert!(fixture.refused("docker-archive:DIR/d.tar").contains("is not a readable archive: Not a tar header"));
    std::fs::write(fixture.path("d.tar"), b"\x1f\x8bbroken").unwrap();
    assert!(fixture.refused("docker-archive:DIR/d.tar").contains("Cannot read"));
    assert!(fixture.refused("docker-archive:DIR/none.tar").contains("none.tar: No such file or directory"));
    assert!(fixture.refused("docker-archive:DIR").contains("Is a directory"));
}

/// Breaks one blob of a layout and returns the error line.
fn with_blob(break_it: impl FnOnce(&mut TestImage)) -> String {
    let fixture = Fixture::new();
    let content = tar(&[("hello", &noise(100_000))]);
    let mut image = image(&[(content.clone(), gzip(&content))], &host());
    break_it(&mut image);
    fixture.layout(&image);
    fixture.refused("oci:DIR/layout:t")
}

fn flip(bytes: &mut [u8], place: usize) {
    bytes[place] ^= 1;
}

#[test]
fn every_blob_is_verified() {
    let error = with_blob(|image| flip(image.blobs.get_mut(&image.manifest.clone()).unwrap(), 40));
    assert!(error.contains("layout is damaged: blob sha256:"), "{error}");
    let error = with_blob(|image| flip(image.blobs.get_mut(&image.config.clone()).unwrap(), 3));
    assert!(error.contains("is damaged: blob sha256:"), "{error}");
    // In the compressed data, in gzip's checksum, and by truncation: the digest or size is what is reported.
    let layer = |image: &TestImage| image.layers[0].clone();
    let error = with_blob(|image| flip(image.blobs.get_mut(&layer(image)).unwrap(), 5000));
    assert!(error.contains("The blob is damaged: its digest is sha256:"), "{error}");
    let error = with_blob(|image| {
        let blob = image.blobs.get_mut(&layer(image)).unwrap();
        let place = blob.len() - 6;
        flip(blob, place);
    });
    assert!(error.contains("The blob is damaged: its digest is sha256:"), "{error}");
    let error = with_blob(|image| image.blobs.get_mut(&layer(image)).unwrap().truncate(3000));
    assert!(error.contains("The blob has 3000 bytes, its manifest says"), "{error}");
    let error = with_blob(|image| image.blobs.get_mut(&layer(image)).unwrap().extend(b"more"));
    assert!(error.contains("More than") || error.contains("The blob has"), "{error}");
    let error = with_blob(|image| drop(image.blobs.remove(&layer(image))));
    assert!(error.contains("layout lacks blobs/sha256/"), "{error}");
}

#[test]
fn a_layer_that_is_not_what_the_configuration_says_is_refused() {
    let fixture = Fixture::new();
    fixture.layout(&image(&[(tar(&[("a", b"1")]), gzip(&tar(&[("a", b"2")])))], &host()));
    assert!(fixture.refused("oci:DIR/layout").contains("The content is damaged: its digest is"));
}

#[test]
fn decompression_bombs_are_stopped() {
    let fixture = Fixture::new();
    let content = tar(&[("zeros", &vec![0; 64 << 20])]);
    fixture.layout(&image(&[(content.clone(), gzip(&content))], &host()));
    let limits = Limits { max_layer_bytes: 1 << 20, ..Limits::default() };
    let error = fixture.get_with("oci:DIR/layout", &GetOptions { limits, ..GetOptions::default() }).unwrap_err();
    assert!(line(&error).ends_with("More than 1048576 bytes"), "{}", line(&error));
    let limits = Limits { max_data_bytes: 1 << 20, ..Limits::default() };
    let error = fixture.get_with("oci:DIR/layout", &GetOptions { limits, ..GetOptions::default() }).unwrap_err();
    assert!(line(&error).ends_with("The image unpacks to more than the limit of 1048576 bytes"));
    assert_eq!(leftovers(&fixture.path("store")), Vec::<String>::new());
}

#[test]
fn a_full_disk_is_one_line_and_leaves_nothing() {
    let fixture = Fixture::new();
    let content = tar(&[("noise", &noise(3 << 20))]);
    fixture.layout(&image(&[(content.clone(), gzip(&content))], &host()));
    let limits = Limits { min_free_bytes: u64::MAX, ..Limits::default() };
    let error = fixture.get_with("oci:DIR/layout", &GetOptions { limits, ..GetOptions::default() }).unwrap_err();
    assert_eq!(
        line(&error),
        format!("No space left for the image in the store at {}", fixture.path("store").display())
    );
    assert_eq!(leftovers(&fixture.path("store")), Vec::<String>::new());
}

#[test]
fn what_is_missing_is_named() {
    let fixture = Fixture::new();
    assert!(fixture.refused("oci:DIR/nothing").ends_with("is not an OCI image layout: it has no index.json"));
    let (one, two) = (small("1"), small("2"));
    write_layout(&fixture.path("two"), &[&one, &two], &[one.entry(Some("a"), None), two.entry(Some("b"), None)]);
    assert!(fixture.refused("oci:DIR/two").ends_with("has several images, choose one by its tag: a, b"));
    assert!(fixture.refused("oci:DIR/two:c").ends_with("has no image \"c\"; it has: a, b"));
    let foreign = image(&[], "s390x");
    fixture.layout(&foreign);
    assert_eq!(fixture.refused("oci:DIR/layout"), format!("The image is for linux/s390x, not for linux/{}", host()));
    write_layout(
        &fixture.path("multi"),
        &[&foreign],
        &[foreign.entry(None, Some(("linux", "s390x"))), foreign.entry(None, Some(("linux", "riscv64")))],
    );
    let error = fixture.refused("oci:DIR/multi");
    assert_eq!(error, format!("No image for linux/{}; available: linux/riscv64, linux/s390x", host()));
    let options = GetOptions { platform: Some("linux/s390x".parse().unwrap()), ..GetOptions::default() };
    assert!(fixture.get_with("oci:DIR/multi", &options).is_ok());
}

#[test]
fn several_who_want_the_same_image_build_it_once() {
    let fixture = Fixture::new();
    let content = tar(&[("noise", &noise(8 << 20))]);
    fixture.layout(&image(&[(content.clone(), gzip(&content))], &host()));
    let reference = format!("oci:{}:t", fixture.path("layout").display()).parse().unwrap();
    let recorder = Recorder::default();
    let root = fixture.path("store");
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                // As if in another process: a store and a runtime of its own.
                let store = Store::open(&root).unwrap();
                let image = runtime().block_on(store.get(&reference, &GetOptions::default(), &recorder)).unwrap();
                assert_eq!(read_file(&image, "/noise").len(), 8 << 20);
            });
        }
    });
    assert_eq!(recorder.finished.lock().unwrap().len(), 1);
    assert_eq!(std::fs::read_dir(fixture.path("store/erofs")).unwrap().count(), 1);
}

#[test]
fn a_crashed_build_is_cleaned_up_but_not_one_under_way() {
    let fixture = Fixture::new();
    let (dead, alive) = (fixture.path("store/tmp/dead"), fixture.path("store/tmp/alive"));
    std::fs::write(&dead, b"half").unwrap();
    std::fs::write(&alive, b"half").unwrap();
    let holder = std::fs::File::open(&alive).unwrap();
    holder.lock().unwrap();
    Store::open(&fixture.path("store")).unwrap();
    assert!(!dead.exists() && alive.exists());
    drop(holder);
    Store::open(&fixture.path("store")).unwrap();
    assert!(!alive.exists());
}

/// Looks into the store's directory of temporary files while an image is built.
struct Spy(std::path::PathBuf, std::sync::Mutex<Vec<usize>>);

impl Progress for Spy {
    fn started(&self, _item: &str, _total_bytes: Option<u64>) {}
    fn advanced(&self, _item: &str, _bytes: u64) {
        self.message("");
    }
    fn finished(&self, _item: &str) {
        self.message("");
    }
    fn message(&self, _text: &str) {
        self.1.lock().unwrap().push(std::fs::read_dir(&self.0).unwrap().count());
    }
}

#[test]
fn a_build_that_is_killed_leaves_nothing_because_its_file_has_no_name_yet() {
    let fixture = Fixture::new();
    let content = tar(&[("noise", &noise(8 << 20))]);
    fixture.layout(&image(&[(content.clone(), gzip(&content))], &host()));
    let spy = Spy(fixture.path("store/tmp"), std::sync::Mutex::default());
    let reference = format!("oci:{}", fixture.path("layout").display()).parse().unwrap();
    let named = |reference: &hull_image::ImageReference| {
        runtime().block_on(fixture.store.get(reference, &GetOptions::default(), &spy)).unwrap();
        let counts = std::mem::take(&mut *spy.1.lock().unwrap());
        assert!(!counts.is_empty());
        counts.into_iter().max().unwrap()
    };
    if std::fs::File::options()
        .write(true)
        .custom_flags(rustix::fs::OFlags::TMPFILE.bits().cast_signed())
        .open(fixture.dir.path())
        .is_err()
    {
        let _ = writeln!(std::io::stderr(), "SKIPPED: no unnamed files in {}", fixture.dir.path().display());
        return;
    }
    assert_eq!(named(&reference), 0);
    make_rootfs(&fixture.path("root"));
    assert_eq!(named(&format!("rootfs:{}", fixture.path("root").display()).parse().unwrap()), 0);
}

#[test]
fn an_image_in_use_is_only_removed_by_force() {
    let fixture = Fixture::new();
    fixture.layout(&small("x"));
    let image = fixture.get("oci:DIR/layout:t").unwrap();
    assert!(matches!(fixture.store.remove(&image.name, false), Err(Error::InUse(_))));
    assert!(image.erofs.exists());
    let removed = fixture.store.remove(&image.name, true).unwrap();
    assert_eq!((removed.names.len(), removed.deleted.len()), (1, 1));
    assert!(removed.freed_bytes > 0 && !image.erofs.exists());
    drop(image);
    assert_eq!(leftovers(&fixture.path("store")), Vec::<String>::new());
    assert!(matches!(fixture.store.remove("oci:/none", false), Err(Error::NotFound(_))));
    assert!(matches!(fixture.store.remove("No Name", false), Err(Error::Reference(_))));
}

#[test]
fn a_tag_that_moves_takes_the_old_image_with_it() {
    let fixture = Fixture::new();
    fixture.layout(&small("old"));
    let old = fixture.get("oci:DIR/layout:t").unwrap().erofs;
    fixture.layout(&small("new"));
    let new = fixture.get("oci:DIR/layout:t").unwrap();
    assert_eq!(read_file(&new, "/hello"), b"new");
    assert!(!old.exists() && new.erofs.exists());
    assert_eq!(fixture.store.list().unwrap().len(), 1);
}

fn make_rootfs(dir: &Path) {
    std::fs::create_dir_all(dir.join("etc/deep")).unwrap();
    std::fs::write(dir.join("etc/a"), noise(10_000)).unwrap();
    std::fs::hard_link(dir.join("etc/a"), dir.join("etc/deep/b")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", dir.join("link")).unwrap();
}

#[test]
fn a_directory_becomes_an_image_without_following_links() {
    let fixture = Fixture::new();
    let dir = fixture.path("root");
    make_rootfs(&dir);
    let image = fixture.get("rootfs:DIR/root").unwrap();
    assert_eq!(read_file(&image, "/etc/deep/b"), noise(10_000));
    let bytes = std::fs::read(&image.erofs).unwrap();
    let fs = erofs_rs::EroFS::new(erofs_rs::backend::SliceImage::new(&bytes)).unwrap();
    let entries: Vec<_> = fs.walk_dir("/").unwrap().map(Result::unwrap).collect();
    let links: Vec<u32> =
        entries.iter().filter(|entry| entry.inode.is_file()).map(|entry| entry.inode.nlink()).collect();
    assert_eq!(links, [2, 2]);
    assert!(entries.iter().any(|entry| entry.inode.is_symlink()));
    drop(image);
    // The same content is the same image; a changed mode is another.
    let again = fixture.get("rootfs:DIR/root").unwrap();
    assert_eq!(std::fs::read_dir(fixture.path("store/erofs")).unwrap().count(), 1);
    std::fs::set_permissions(dir.join("etc/a"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    assert_ne!(fixture.get("rootfs:DIR/root").unwrap().erofs, again.erofs);
    assert!(line(&fixture.get("rootfs:DIR/none").unwrap_err()).contains("none: No such file or directory"));
}

/// Runs a tool of erofs-utils; `None`, loudly, if it isn't installed.
fn tool(name: &str, arguments: &[&std::ffi::OsStr]) -> Option<String> {
    match std::process::Command::new(name).args(arguments).output() {
        Ok(output) => {
            assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
            Some(String::from_utf8_lossy(&output.stdout).into_owned())
        }
        Err(error) => {
            // Not by `eprintln`, which the test harness hides.
            let _ = writeln!(std::io::stderr(), "SKIPPED: {name} cannot run ({error}); install erofs-utils");
            None
        }
    }
}

#[test]
fn large_directories_and_files_over_4_gib_pass_fsck() {
    let fixture = Fixture::new();
    let mut builder = tar::Builder::new(Vec::new());
    for n in 0..12_000 {
        let mut header = tar::Header::new_gnu();
        header.set_size(3);
        builder.append_data(&mut header, format!("many/{n}-{}", "x".repeat(n % 240)), &b"abc"[..]).unwrap();
    }
    // 5 GiB, of which two bytes are stored.
    let mut header = tar::Header::new_gnu();
    header.set_path("big").unwrap();
    header.set_entry_type(tar::EntryType::GNUSparse);
    header.set_size(2);
    let gnu = header.as_gnu_mut().unwrap();
    gnu.sparse[0].offset.copy_from_slice(format!("{:011o}\0", (5_u64 << 30) - 2).as_bytes());
    gnu.sparse[0].numbytes.copy_from_slice(b"00000000002\0");
    gnu.realsize.copy_from_slice(format!("{:011o}\0", 5_u64 << 30).as_bytes());
    header.set_cksum();
    builder.append(&header, &b"zz"[..]).unwrap();
    let content = builder.into_inner().unwrap();
    fixture.layout(&image(&[(content.clone(), gzip(&content))], &host()));
    let image = fixture.get("oci:DIR/layout").unwrap();
    use std::os::unix::fs::MetadataExt;
    assert!(image.size_bytes > 5 << 30 && image.file().metadata().unwrap().blocks() * 512 < 16 << 20);
    tool("fsck.erofs", &[image.erofs.as_os_str()]);
    if let Some(text) = tool("dump.erofs", &["--path=/big".as_ref(), image.erofs.as_os_str()]) {
        assert!(text.contains(&format!("{}", 5_u64 << 30)), "{text}");
    }
}
