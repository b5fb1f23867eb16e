//! Each test mounts in a mount namespace of its own; without the right to make one it is skipped.

use std::io::Write as _;
use std::os::unix::fs::symlink;

use nix::sched::{CloneFlags, unshare};
use tempfile::TempDir;

use super::*;

/// A directory whose mounts are shared with nobody but are shared themselves, as on a host with systemd.
fn in_own_namespace(test: impl FnOnce(&Path) + Send) {
    let alone = std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            if unshare(CloneFlags::CLONE_NEWNS).is_err() {
                return false;
            }
            mount(NONE, "/", NONE, MsFlags::MS_PRIVATE | MsFlags::MS_REC, NONE).unwrap();
            let dir = TempDir::new().unwrap();
            mount(Some("host"), dir.path(), Some("tmpfs"), MsFlags::empty(), NONE).unwrap();
            mount(NONE, dir.path(), NONE, MsFlags::MS_SHARED, NONE).unwrap();
            test(dir.path());
            umount2(dir.path(), MntFlags::MNT_DETACH).unwrap();
            true
        });
        thread.join().unwrap()
    });
    if !alone {
        let _ = writeln!(io::stderr(), "SKIPPED: no right to make a mount namespace");
    }
}

fn directory(path: PathBuf) -> PathBuf {
    fs::create_dir_all(&path).unwrap();
    path
}

fn tmpfs(path: &Path) {
    mount(Some("x"), path, Some("tmpfs"), MsFlags::empty(), NONE).unwrap();
}

fn error_of(result: io::Result<()>) -> Option<i32> {
    result.unwrap_err().raw_os_error()
}

fn mounts_below(path: &Path) -> Vec<String> {
    let all = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    all.lines().filter(|line| line.contains(path.to_str().unwrap())).map(String::from).collect()
}

fn bind(source: &Path, read_only: bool) -> BindMount {
    BindMount { source: source.to_owned(), recursive: true, read_only }
}

#[test]
fn the_guest_sees_what_is_mounted_and_nothing_that_is_not() {
    in_own_namespace(|host| {
        let (runtime, image, volume) =
            (directory(host.join("run")), directory(host.join("image")), directory(host.join("volume/sub")));
        let volume = volume.parent().unwrap();
        fs::write(image.join("file"), "image").unwrap();
        fs::write(volume.join("file"), "volume").unwrap();
        fs::write(host.join("plain"), "plain").unwrap();
        tmpfs(&volume.join("sub"));

        let shared = SharedDir::create(&runtime).unwrap();
        let export = SharedDir::export(&runtime);
        let binds = [bind(volume, false), bind(volume, true), bind(&host.join("plain"), true)];
        let mut mounts = shared.mount_container("c", &BundleRoot::Directory(image.clone()), &binds).unwrap();
        let read = |path: &str| fs::read_to_string(export.join("c").join(path));
        assert_eq!(read("rootfs/file").unwrap(), "image");
        assert_eq!((read("mounts/1/file").unwrap(), read("mounts/2").unwrap()), ("volume".into(), "plain".into()));

        // What the guest may write it writes to the host's file system.
        fs::write(export.join("c/rootfs/new"), "x").unwrap();
        fs::write(export.join("c/mounts/0/sub/new"), "x").unwrap();
        assert!(image.join("new").exists() && volume.join("sub/new").exists());
        for refused in ["new", "c/new", "c/mounts/1/new", "c/mounts/1/sub/new", "c/mounts/2"] {
            assert_eq!(error_of(fs::write(export.join(refused), "x")), Some(libc::EROFS), "{refused}");
        }

        // A later mount of the host arrives.
        let late = directory(volume.join("late"));
        tmpfs(&late);
        fs::write(late.join("file"), "late").unwrap();
        assert_eq!(read("mounts/0/late/file").unwrap(), "late");

        mounts.remove().unwrap();
        assert!(!export.join("c").exists());
        assert!(volume.join("sub/new").exists() && late.join("file").exists(), "the host's own mounts stay");
        drop(mounts);
        remove(&runtime).unwrap();
        assert_eq!(mounts_below(&runtime), Vec::<String>::new());
    });
}

#[test]
fn snapshots_are_mounted_as_they_are_described() {
    in_own_namespace(|host| {
        let layers: Vec<_> = ["a", "b", "upper", "work"].map(|name| directory(host.join(name))).into();
        fs::write(layers[0].join("file"), "a").unwrap();
        let runtime = directory(host.join("run"));
        let shared = SharedDir::create(&runtime).unwrap();
        // So often that the names don't fit into a page, as with very many layers.
        let lower: Vec<_> =
            (0..90).map(|n| directory(host.join(format!("a-layer-with-a-rather-long-name-{n}")))).collect();
        let lower: Vec<_> = layers[..2].iter().chain(&lower).map(|layer| layer.to_str().unwrap()).collect();
        assert!(lower.join(":").len() > 4096);
        let options = vec![
            format!("workdir={}", layers[3].display()),
            format!("upperdir={}", layers[2].display()),
            format!("lowerdir={}", lower.join(":")),
        ];
        let overlay = RootMount { fs_type: "overlay".into(), source: "overlay".into(), options };
        let mounts = shared.mount_container("c", &BundleRoot::Mounts(vec![overlay]), &[]).unwrap();
        let rootfs = SharedDir::export(&runtime).join("c/rootfs");
        assert_eq!(fs::read_to_string(rootfs.join("file")).unwrap(), "a");
        fs::write(rootfs.join("new"), "x").unwrap();
        assert!(layers[2].join("new").exists());
        drop(mounts);
        assert!(!rootfs.exists());
        remove(&runtime).unwrap();
    });
}

#[test]
fn a_failure_leaves_nothing() {
    in_own_namespace(|host| {
        let runtime = directory(host.join("run"));
        let image = BundleRoot::Directory(directory(host.join("image")));
        let shared = SharedDir::create(&runtime).unwrap();
        let before = mounts_below(&runtime);
        let missing = [bind(&host.join("image"), false), bind(&host.join("none"), false)];
        let error = shared.mount_container("c", &image, &missing).unwrap_err();
        assert!(error.to_string().contains("none"), "{error}");
        nix::unistd::mkfifo(&host.join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let fifo = shared.mount_container("c", &image, &[bind(&host.join("fifo"), false)]);
        assert!(matches!(fifo, Err(SharedDirError::Kind(_))), "{fifo:?}");
        let unknown = RootMount { fs_type: "nofs".into(), source: "x".into(), options: Vec::new() };
        let error = shared.mount_container("c", &BundleRoot::Mounts(vec![unknown]), &[]).unwrap_err();
        assert!(error.to_string().contains("nofs"), "{error}");
        assert_eq!(mounts_below(&runtime), before);
        assert_eq!(fs::read_dir(runtime.join(SHARED)).unwrap().count(), 0);
        // The name is free again.
        drop(shared.mount_container("c", &image, &[]).unwrap());
        remove(&runtime).unwrap();
    });
}

#[test]
fn what_a_dead_owner_left_goes_away_and_its_sources_stay() {
    in_own_namespace(|host| {
        let runtime = directory(host.join("run"));
        let volume = directory(host.join("volume"));
        fs::write(volume.join("precious"), "x").unwrap();
        let shared = SharedDir::create(&runtime).unwrap();
        let image = BundleRoot::Directory(volume.clone());
        // Nobody drops these.
        std::mem::forget(shared.mount_container("c", &image, &[bind(&volume, false)]).unwrap());
        // Nor this, which a guest may hold open.
        let open = fs::File::open(SharedDir::export(&runtime).join("c/rootfs/precious")).unwrap();
        symlink(&volume, runtime.join("link")).unwrap();
        remove(&runtime).unwrap();
        fs::remove_dir_all(&runtime).unwrap();
        assert_eq!(fs::read_to_string(volume.join("precious")).unwrap(), "x");
        drop(open);
    });
}
