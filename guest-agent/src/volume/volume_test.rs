use std::os::unix::fs::{MetadataExt, PermissionsExt};

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

/// Writes a volume as a kubelet does: a new directory, `..data`, names, and the old directory goes.
fn write(volume: &Path, data: &str, files: &[(&str, &str)]) {
    let directory = volume.join(data);
    for (name, content) in files {
        let file = directory.join(name);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, content).unwrap();
    }
    let old = fs::read_link(volume.join(DATA)).ok();
    symlink(data, volume.join(NEXT_DATA)).unwrap();
    fs::rename(volume.join(NEXT_DATA), volume.join(DATA)).unwrap();
    let wanted: HashSet<_> = files.iter().map(|(name, _)| name.split('/').next().unwrap()).collect();
    for name in &wanted {
        let _ = symlink(Path::new(DATA).join(name), volume.join(name));
    }
    for entry in fs::read_dir(volume).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if !name.starts_with("..") && !wanted.contains(name.as_str()) {
            fs::remove_file(volume.join(name)).unwrap();
        }
    }
    if let Some(old) = old {
        fs::remove_dir_all(volume.join(old)).unwrap();
    }
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn directories() -> (TempDir, PathBuf, PathBuf) {
    let dir = TempDir::new().unwrap();
    let (source, target) = (dir.path().join("source"), dir.path().join("target"));
    fs::create_dir(&source).unwrap();
    fs::create_dir(&target).unwrap();
    (dir, source, target)
}

#[test]
fn a_copy_has_what_counts_and_nothing_of_before() {
    let (_dir, source, target) = directories();
    write(&source, "..1", &[("key", "one"), ("sub/deep/key", "deep"), ("gone", "x")]);
    let key = source.join("..1/key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).unwrap();
    fs::set_permissions(source.join("..1/sub"), fs::Permissions::from_mode(0o750)).unwrap();
    refresh(&source, &target, "..1").unwrap();
    assert_eq!(names(&target), ["..1", "..data", "gone", "key", "sub"]);
    assert_eq!(fs::read_to_string(target.join("sub/deep/key")).unwrap(), "deep");
    let (own, its) = (fs::metadata(&key).unwrap(), fs::metadata(target.join("key")).unwrap());
    assert_eq!((own.mode(), own.mtime(), own.mtime_nsec()), (its.mode(), its.mtime(), its.mtime_nsec()));
    assert_eq!(fs::metadata(target.join("sub")).unwrap().mode() & 0o7777, 0o750);

    write(&source, "..2", &[("key", "two"), ("new", "y")]);
    // Of an attempt that the end of the agent's patience interrupted.
    fs::create_dir(target.join("..2")).unwrap();
    symlink("..2", target.join(NEXT_DATA)).unwrap();
    refresh(&source, &target, "..2").unwrap();
    assert_eq!(names(&target), ["..2", "..data", "key", "new"]);
    assert_eq!(fs::read_to_string(target.join("key")).unwrap(), "two");
}

#[test]
fn a_copy_that_is_alike_is_not_touched() {
    let (_dir, source, target) = directories();
    write(&source, "..1", &[("key", "one")]);
    refresh(&source, &target, "..1").unwrap();
    let state = |path: &str| {
        let metadata = fs::symlink_metadata(target.join(path)).unwrap();
        (metadata.ino(), metadata.ctime_nsec())
    };
    let paths = ["", "..1", "..data", "key", "..1/key"];
    let before = paths.map(state);
    refresh(&source, &target, "..1").unwrap();
    assert_eq!(paths.map(state), before);
}

#[test]
fn what_the_host_has_removed_meanwhile_leaves_the_copy_as_it_was() {
    let (_dir, source, target) = directories();
    write(&source, "..1", &[("key", "one")]);
    refresh(&source, &target, "..1").unwrap();
    write(&source, "..3", &[("key", "three")]);
    let error = refresh(&source, &target, "..2").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert_eq!(names(&target), ["..1", "..data", "key"]);
    assert_eq!(fs::read_to_string(target.join("key")).unwrap(), "one");
}

#[test]
fn links_out_of_the_volume_are_not_followed() {
    let (dir, source, target) = directories();
    fs::write(dir.path().join("secret"), "secret").unwrap();
    write(&source, "..1", &[("key", "one")]);
    symlink("../../secret", source.join("..1/link")).unwrap();
    nix::unistd::mkfifo(&source.join("..1/pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    refresh(&source, &target, "..1").unwrap();
    assert_eq!(fs::read_link(target.join("..1/link")).unwrap(), Path::new("../../secret"));
    assert_eq!(names(&target.join("..1")), ["key", "link"]);
}

#[test]
fn a_volume_as_large_as_it_likes() {
    let (_dir, source, target) = directories();
    let files: Vec<_> = (0..3000).map(|number| (format!("key-{number}"), format!("value {number}"))).collect();
    let files: Vec<_> = files.iter().map(|(name, content)| (name.as_str(), content.as_str())).collect();
    write(&source, "..1", &files);
    refresh(&source, &target, "..1").unwrap();
    assert_eq!(names(&target).len(), 3002);
    assert_eq!(fs::read_to_string(target.join("key-2999")).unwrap(), "value 2999");
}

proptest! {
    #[test]
    fn names_stay_inside_of_the_volume(name in "[./a]{0,8}") {
        if let Ok(name) = checked_name(&name) {
            prop_assert!(name.starts_with("..") && name.len() > 2 && !name.contains('/'));
        }
    }
}

#[test]
fn names_of_content_are_told_from_others() {
    for refused in ["", ".", "..", "..data", "..data_tmp", "key", "..a/b", "../a", "..a/", "..a\0"] {
        assert_eq!(checked_name(refused).unwrap_err().code, ttrpc::Code::INVALID_ARGUMENT, "{refused:?}");
    }
    assert_eq!(checked_name("..2024_11_28_12_00_00.123456789").unwrap(), "..2024_11_28_12_00_00.123456789");
}
