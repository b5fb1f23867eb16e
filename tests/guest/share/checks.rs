//! One operation after the other.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown, symlink};
use std::path::Path;

use crate::sys;

fn errno<T: std::fmt::Debug>(result: std::io::Result<T>) -> i32 {
    result.unwrap_err().raw_os_error().unwrap()
}

fn open(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).unwrap()
}

type Check = fn(&Path);

/// All checks, each in a new directory.
pub fn all(directory: &Path) {
    let checks: [(&str, Check); 12] = [
        ("contents", contents),
        ("append", append),
        ("names", names),
        ("links", links),
        ("unlinked", unlinked),
        ("attributes", attributes),
        ("extended", extended),
        ("locks", locks),
        ("mapped", mapped),
        ("holes", holes),
        ("special", special),
        ("space", space),
    ];
    for (name, check) in checks {
        let own = directory.join(name);
        fs::create_dir(&own).unwrap();
        check(&own);
        println!("checked {name}");
    }
}

fn contents(at: &Path) {
    let path = at.join("file");
    let data: Vec<u8> = (0..3_000_001u32).map(|i| (i % 253) as u8).collect();
    fs::write(&path, &data).unwrap();
    assert!(fs::read(&path).unwrap() == data);
    let mut file = open(&path);
    file.seek(SeekFrom::Start(1_000_000)).unwrap();
    file.write_all(b"inserted").unwrap();
    file.set_len(2_000_000).unwrap();
    file.sync_all().unwrap();
    let back = fs::read(&path).unwrap();
    assert_eq!(back.len(), 2_000_000);
    assert!(back[1_000_000..1_000_008] == *b"inserted" && back[..1_000_000] == data[..1_000_000]);
    let again = OpenOptions::new().write(true).truncate(true).open(&path).unwrap();
    assert_eq!(again.metadata().unwrap().len(), 0);
    assert_eq!(errno(OpenOptions::new().write(true).create_new(true).open(&path)), libc::EEXIST);
}

fn append(at: &Path) {
    let open = || OpenOptions::new().append(true).create(true).open(at.join("file")).unwrap();
    let (mut first, mut second) = (open(), open());
    for _ in 0..100 {
        first.write_all(b"1").unwrap();
        second.write_all(b"2").unwrap();
    }
    assert_eq!(fs::read_to_string(at.join("file")).unwrap(), "12".repeat(100));
}

fn names(at: &Path) {
    let long = "n".repeat(255);
    fs::write(at.join(&long), "long").unwrap();
    assert_eq!(fs::read_dir(at).unwrap().next().unwrap().unwrap().file_name().len(), 255);
    assert_eq!(errno(fs::write(at.join("n".repeat(256)), "")), libc::ENAMETOOLONG);
    fs::write(at.join("\u{20ac} \n\\ \""), "odd").unwrap();
    // As deep as a path may be.
    let mut deep = at.to_owned();
    for _ in 0..15 {
        deep = deep.join(&long);
        let made = if deep == at.join(&long) { fs::remove_file(&deep) } else { Ok(()) };
        made.unwrap();
        fs::create_dir(&deep).unwrap();
    }
    fs::write(deep.join("file"), "deep").unwrap();
    assert_eq!(fs::read_to_string(deep.join("file")).unwrap(), "deep");
    assert_eq!(errno(fs::remove_dir(at.join(&long))), libc::ENOTEMPTY);
    fs::remove_dir_all(at.join(&long)).unwrap();
    assert_eq!(fs::read_dir(at).unwrap().count(), 1);
}

fn links(at: &Path) {
    let name = |name: &str| at.join(name);
    fs::write(name("a"), "a").unwrap();
    fs::write(name("b"), "b").unwrap();
    assert_eq!(errno(sys::rename_with(&name("a"), &name("b"), libc::RENAME_NOREPLACE)), libc::EEXIST);
    sys::rename_with(&name("a"), &name("b"), libc::RENAME_EXCHANGE).unwrap();
    assert_eq!(fs::read_to_string(name("a")).unwrap(), "b");
    fs::rename(name("a"), name("b")).unwrap();
    assert_eq!(fs::read_to_string(name("b")).unwrap(), "b");
    fs::hard_link(name("b"), name("c")).unwrap();
    assert_eq!((fs::metadata(name("c")).unwrap().nlink(), name("a").exists()), (2, false));
    let target = "t".repeat(4000);
    symlink(&target, name("long")).unwrap();
    assert_eq!(fs::read_link(name("long")).unwrap().to_str().unwrap(), target);
    symlink("c", name("d")).unwrap();
    assert_eq!(fs::read_to_string(name("d")).unwrap(), "b");
    symlink("loop", name("loop")).unwrap();
    assert_eq!(errno(fs::read(name("loop"))), libc::ELOOP);
    fs::create_dir(name("dir")).unwrap();
    assert_eq!(errno(fs::rename(name("b"), name("dir"))), libc::EISDIR);
    fs::create_dir(name("dir/sub")).unwrap();
    assert_eq!(errno(fs::rename(name("dir"), name("dir/sub/dir"))), libc::EINVAL);
    assert_eq!(fs::canonicalize(name("dir/sub/../..")).unwrap(), fs::canonicalize(at).unwrap());
}

fn unlinked(at: &Path) {
    let mut file = open(&at.join("file"));
    file.write_all(b"before").unwrap();
    fs::remove_file(at.join("file")).unwrap();
    file.write_all(b" and after").unwrap();
    assert_eq!(file.metadata().unwrap().nlink(), 0);
    let mut text = String::new();
    file.rewind().unwrap();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "before and after");
    // Unnamed files aren't possible (docs/decisions); programs fall back to named ones at this error.
    let unnamed = OpenOptions::new().read(true).write(true).custom_flags(libc::O_TMPFILE).open(at);
    assert_eq!(errno(unnamed), libc::EOPNOTSUPP);
}

fn attributes(at: &Path) {
    let path = at.join("file");
    let file = OpenOptions::new().write(true).create_new(true).mode(0o640).open(&path).unwrap();
    assert_eq!(file.metadata().unwrap().permissions().mode() & 0o7777, 0o640);
    let mode = || fs::metadata(&path).unwrap().permissions().mode() & 0o7777;
    let set_mode = |mode| fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
    set_mode(0o4711);
    assert_eq!(mode(), 0o4711);
    chown(&path, Some(1234), Some(4321)).unwrap();
    let seen = fs::metadata(&path).unwrap();
    assert_eq!((seen.uid(), seen.gid()), (1234, 4321));
    // A new owner must not get what the old one could do, says chown(2), whoever asks.
    assert_eq!(mode(), 0o711);
    set_mode(0o4711);
    let then = std::time::UNIX_EPOCH + std::time::Duration::new(1_000_000_007, 123_456_789);
    file.set_modified(then).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), then);
    OpenOptions::new().write(true).create_new(true).mode(0o000).open(at.join("closed")).unwrap();
    assert_eq!(fs::metadata(at.join("closed")).unwrap().permissions().mode() & 0o7777, 0);
}

fn extended(at: &Path) {
    let path = at.join("file");
    fs::write(&path, "").unwrap();
    // Not every file system of a host has names for users; for file capabilities all of them have.
    let capability = [1u8, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let (name, value) = match sys::set_xattr(&path, "user.hull", b"value") {
        Ok(()) => ("user.hull", &b"value"[..]),
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
            sys::set_xattr(&path, "security.capability", &capability).unwrap();
            ("security.capability", &capability[..])
        }
        Err(error) => panic!("{error}"),
    };
    println!("extended attribute {name}");
    assert_eq!(sys::get_xattr(&path, name).unwrap(), value);
    assert_eq!(sys::list_xattr(&path).unwrap(), format!("{name}\0"));
    sys::remove_xattr(&path, name).unwrap();
    assert_eq!(errno(sys::get_xattr(&path, name)), libc::ENODATA);
}

fn locks(at: &Path) {
    let (first, second) = (open(&at.join("file")), open(&at.join("file")));
    sys::lock_whole(&first, libc::LOCK_EX).unwrap();
    assert_eq!(errno(sys::lock_whole(&second, libc::LOCK_SH)), libc::EWOULDBLOCK);
    sys::lock_whole(&first, libc::LOCK_UN).unwrap();
    sys::lock_whole(&second, libc::LOCK_EX).unwrap();
    sys::lock_range(&first, libc::F_WRLCK).unwrap();
    assert_eq!(errno(sys::lock_range(&second, libc::F_RDLCK)), libc::EAGAIN);
    drop(first);
    sys::lock_range(&second, libc::F_WRLCK).unwrap();
}

fn mapped(at: &Path) {
    let file = open(&at.join("file"));
    file.set_len(100_000).unwrap();
    let mut mapping = sys::Mapping::new(&file, 100_000).unwrap();
    mapping.write(50_000, b"through memory");
    mapping.sync().unwrap();
    let mut back = [0; 14];
    file.read_exact_at(&mut back, 50_000).unwrap();
    assert_eq!(&back, b"through memory");
    file.write_all_at(b"through a call", 70_000).unwrap();
    assert_eq!(mapping.read(70_000, 14), b"through a call");
}

fn holes(at: &Path) {
    let file = open(&at.join("file"));
    file.write_all_at(b"end", 10 << 20).unwrap();
    assert!(file.metadata().unwrap().blocks() < 100, "a hole takes space");
    assert_eq!(sys::seek(&file, 0, libc::SEEK_DATA).unwrap(), 10 << 20);
    assert_eq!(sys::seek(&file, 10 << 20, libc::SEEK_HOLE).unwrap(), (10 << 20) + 3);
    sys::allocate(&file, 0, 0, 1 << 20).unwrap();
    assert!(file.metadata().unwrap().blocks() >= 2048);
    file.write_all_at(&[1; 65536], 0).unwrap();
    sys::allocate(&file, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, 4096, 4096).unwrap();
    let mut back = vec![9; 12288];
    file.read_exact_at(&mut back, 0).unwrap();
    assert!(back[4096..8192].iter().all(|&b| b == 0) && back[..4096].iter().all(|&b| b == 1));
}

fn special(at: &Path) {
    sys::make_node(&at.join("fifo"), libc::S_IFIFO | 0o600, 0).unwrap();
    assert!(fs::metadata(at.join("fifo")).unwrap().file_type().is_fifo());
    sys::make_node(&at.join("whiteout"), libc::S_IFCHR, 0).unwrap();
    assert_eq!(errno(sys::make_node(&at.join("disk"), libc::S_IFBLK | 0o600, 0xfe00)), libc::EPERM);
    let socket = std::os::unix::net::UnixListener::bind(at.join("socket"));
    assert!(socket.is_ok());
}

fn space(at: &Path) {
    let (free, all) = sys::blocks(at).unwrap();
    assert!(free > 0 && all >= free);
}
