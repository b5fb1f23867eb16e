//! What a guest may ask of the library's file system.
//!
//! The library gives a name to the kernel as it is. With a `/` or `..` in it, that would be a path out of the directory. It also
//! passes flags and numbers on, some of which it doesn't expect. So every request is checked here, and nothing reaches the
//! library that isn't a name, a flag or a number of the kind that Linux sends.

use std::ffi::CStr;
use std::io;
use std::time::Duration;

use virtiofsd::filesystem::{
    Context, Entry, Extensions, FileSystem, FsOptions, GetxattrReply, ListxattrReply, OpenOptions, SetattrValid,
    SetxattrFlags, ZeroCopyReader, ZeroCopyWriter,
};
use virtiofsd::fuse::{Attr, SetattrIn};
use virtiofsd::passthrough::PassthroughFs;
use virtiofsd::soft_idmap::Id;

type Inode = <PassthroughFs as FileSystem>::Inode;
type Handle = <PassthroughFs as FileSystem>::Handle;

/// `O_LARGEFILE` of x86-64: the C library has 0, the guest's kernel sets it.
const O_LARGEFILE: i32 = 0o100_000;
/// Flags of an open file that pass. What isn't among them is dropped: it makes no difference for the host (`O_NOCTTY`), or opens
/// something else than the file asked for (`O_TMPFILE`, `O_PATH`, `O_CREAT`).
const OPEN_FLAGS: i32 = libc::O_ACCMODE
    | libc::O_APPEND
    | libc::O_DIRECT
    | libc::O_DIRECTORY
    | libc::O_DSYNC
    | libc::O_EXCL
    | libc::O_NOATIME
    | libc::O_NOFOLLOW
    | libc::O_NONBLOCK
    | libc::O_SYNC
    | libc::O_TRUNC
    | O_LARGEFILE;
/// Most bytes of one copy from file to file. The guest asks again for the rest; a longer one would hold up a stop.
const MAX_COPY_BYTES: u64 = 16 << 20;
/// File type bits.
const TYPE: u32 = libc::S_IFMT;

/// The file system that the library's server gets: the library's, behind checks.
pub struct Gate {
    files: PassthroughFs,
    read_only: bool,
}

impl Gate {
    /// Puts the gate before `files`.
    pub fn new(files: PassthroughFs, read_only: bool) -> Self {
        Self { files, read_only }
    }

    fn writable(&self) -> io::Result<()> {
        if self.read_only { Err(error(libc::EROFS)) } else { Ok(()) }
    }

    /// Checks a change of a name.
    fn change(&self, name: &CStr) -> io::Result<()> {
        self.writable()?;
        check_name(name)
    }

    /// Checks the creation of something by `context`.
    fn creation(&self, context: Context, name: &CStr, extensions: &Extensions) -> io::Result<()> {
        self.change(name)?;
        let groups = extensions.sup_gids.iter().map(|gid| gid.into_inner());
        // This number means "as it is" to the system calls that change identity, which here is the monitor's own.
        let mut ids = groups.chain([context.uid.into_inner(), context.gid.into_inner()]);
        if ids.any(|id| id == u32::MAX) { Err(error(libc::EINVAL)) } else { Ok(()) }
    }

    fn open_flags(&self, flags: u32) -> io::Result<u32> {
        let flags = flags.cast_signed() & OPEN_FLAGS;
        let access = flags & libc::O_ACCMODE;
        if access == libc::O_ACCMODE {
            return Err(error(libc::EINVAL));
        }
        if access != libc::O_RDONLY || flags & libc::O_TRUNC != 0 {
            self.writable()?;
        }
        Ok(flags.cast_unsigned())
    }
}

fn error(number: i32) -> io::Error {
    io::Error::from_raw_os_error(number)
}

/// A name is one step in a directory that isn't back.
fn check_name(name: &CStr) -> io::Result<()> {
    let name = name.to_bytes();
    if matches!(name, b"" | b"." | b"..") || name.contains(&b'/') { Err(error(libc::EINVAL)) } else { Ok(()) }
}

/// Positions in files are signed; the library relies on that.
fn check_range(offset: u64, bytes: u64) -> io::Result<()> {
    let end = offset.checked_add(bytes);
    if end.is_some_and(|end| i64::try_from(end).is_ok()) { Ok(()) } else { Err(error(libc::EINVAL)) }
}

/// Identifiers that the map forbids come without an error number from the library, which would become `EIO`.
fn not_permitted<T>(result: io::Result<T>) -> io::Result<T> {
    result.map_err(|source| match source.raw_os_error() {
        None if source.kind() == io::ErrorKind::PermissionDenied => error(libc::EPERM),
        _ => source,
    })
}

/// Requests that need no check.
macro_rules! pass {
    ($(fn $name:ident($($argument:ident: $kind:ty),*) $(-> $result:ty)?;)*) => {
        $(fn $name(&self, $($argument: $kind),*) $(-> $result)? {
            self.files.$name($($argument),*)
        })*
    };
}

/// Requests with a check before them.
macro_rules! pass_if {
    ($(fn $name:ident($gate:ident, $($argument:ident: $kind:ty),*) -> $result:ty where $check:expr;)*) => {
        $(fn $name(&self, $($argument: $kind),*) -> $result {
            let $gate = self;
            $check?;
            not_permitted(self.files.$name($($argument),*))
        })*
    };
}

impl FileSystem for Gate {
    type Inode = Inode;
    type Handle = Handle;
    type DirIter = <PassthroughFs as FileSystem>::DirIter;

    pass! {
        fn init(capable: FsOptions) -> io::Result<FsOptions>;
        fn destroy();
        fn forget(context: Context, inode: Inode, count: u64);
        fn batch_forget(context: Context, requests: Vec<(Inode, u64)>);
        fn getattr(context: Context, inode: Inode, handle: Option<Handle>) -> io::Result<(Attr, Duration)>;
        fn readlink(context: Context, inode: Inode) -> io::Result<Vec<u8>>;
        fn flush(context: Context, inode: Inode, handle: Handle, lock_owner: u64) -> io::Result<()>;
        fn fsync(context: Context, inode: Inode, datasync: bool, handle: Handle) -> io::Result<()>;
        fn release(
            context: Context, inode: Inode, flags: u32, handle: Handle, flush: bool, flock_release: bool,
            lock_owner: Option<u64>
        ) -> io::Result<()>;
        fn statfs(context: Context, inode: Inode) -> io::Result<libc::statvfs64>;
        fn getxattr(context: Context, inode: Inode, name: &CStr, size: u32) -> io::Result<GetxattrReply>;
        fn listxattr(context: Context, inode: Inode, size: u32) -> io::Result<ListxattrReply>;
        fn fsyncdir(context: Context, inode: Inode, datasync: bool, handle: Handle) -> io::Result<()>;
        fn releasedir(context: Context, inode: Inode, flags: u32, handle: Handle) -> io::Result<()>;
        fn syncfs(context: Context, inode: Inode) -> io::Result<()>;
    }

    pass_if! {
        fn lookup(_gate, context: Context, parent: Inode, name: &CStr) -> io::Result<Entry> where check_name(name);
        fn setattr(
            gate, context: Context, inode: Inode, attributes: SetattrIn, handle: Option<Handle>, valid: SetattrValid
        ) -> io::Result<(Attr, Duration)> where gate.writable().and_then(|()| check_range(attributes.size, 0));
        fn symlink(
            gate, context: Context, target: &CStr, parent: Inode, name: &CStr, extensions: Extensions
        ) -> io::Result<Entry> where gate.creation(context, name, &extensions);
        fn mkdir(
            gate, context: Context, parent: Inode, name: &CStr, mode: u32, umask: u32, extensions: Extensions
        ) -> io::Result<Entry> where gate.creation(context, name, &extensions);
        fn mknod(
            gate, context: Context, parent: Inode, name: &CStr, mode: u32, device: u32, umask: u32,
            extensions: Extensions
        ) -> io::Result<Entry> where gate.creation(context, name, &extensions).and_then(|()| check_node(mode, device));
        fn unlink(gate, context: Context, parent: Inode, name: &CStr) -> io::Result<()> where gate.change(name);
        fn rmdir(gate, context: Context, parent: Inode, name: &CStr) -> io::Result<()> where gate.change(name);
        fn rename(
            gate, context: Context, from: Inode, name: &CStr, to: Inode, new_name: &CStr, flags: u32
        ) -> io::Result<()> where gate.change(name).and_then(|()| check_name(new_name));
        fn link(
            gate, context: Context, inode: Inode, parent: Inode, name: &CStr
        ) -> io::Result<Entry> where gate.change(name);
        fn fallocate(
            gate, context: Context, inode: Inode, handle: Handle, mode: u32, offset: u64, length: u64
        ) -> io::Result<()> where gate.writable().and_then(|()| check_range(offset, length));
        fn setxattr(
            gate, context: Context, inode: Inode, name: &CStr, value: &[u8], flags: u32, extra: SetxattrFlags
        ) -> io::Result<()> where gate.writable();
        fn removexattr(gate, context: Context, inode: Inode, name: &CStr) -> io::Result<()> where gate.writable();
        fn readdir(
            _gate, context: Context, inode: Inode, handle: Handle, size: u32, offset: u64
        ) -> io::Result<Self::DirIter> where check_range(offset, 0);
        fn lseek(
            _gate, context: Context, inode: Inode, handle: Handle, offset: u64, whence: u32
        ) -> io::Result<u64> where check_range(offset, 0);
    }

    fn open(
        &self,
        context: Context,
        inode: Inode,
        kill_priv: bool,
        flags: u32,
    ) -> io::Result<(Option<Handle>, OpenOptions)> {
        // Here it has no meaning, and on the host it would have one for block devices only.
        let flags = self.open_flags(flags)? & !libc::O_EXCL.cast_unsigned();
        self.files.open(context, inode, kill_priv, flags)
    }

    fn opendir(&self, context: Context, inode: Inode, flags: u32) -> io::Result<(Option<Handle>, OpenOptions)> {
        let kept = (libc::O_NOATIME | libc::O_NONBLOCK | O_LARGEFILE).cast_unsigned();
        self.files.opendir(context, inode, flags & kept)
    }

    fn create(
        &self,
        context: Context,
        parent: Inode,
        name: &CStr,
        mode: u32,
        kill_priv: bool,
        flags: u32,
        umask: u32,
        extensions: Extensions,
    ) -> io::Result<(Entry, Option<Handle>, OpenOptions)> {
        self.creation(context, name, &extensions)?;
        let flags = self.open_flags(flags)?;
        not_permitted(self.files.create(context, parent, name, mode, kill_priv, flags, umask, extensions))
    }

    fn read<W: ZeroCopyWriter>(
        &self,
        context: Context,
        inode: Inode,
        handle: Handle,
        to: W,
        size: u32,
        offset: u64,
        lock_owner: Option<u64>,
        flags: u32,
    ) -> io::Result<usize> {
        check_range(offset, u64::from(size))?;
        self.files.read(context, inode, handle, to, size, offset, lock_owner, flags)
    }

    fn write<R: ZeroCopyReader>(
        &self,
        context: Context,
        inode: Inode,
        handle: Handle,
        from: R,
        size: u32,
        offset: u64,
        lock_owner: Option<u64>,
        delayed_write: bool,
        kill_priv: bool,
        flags: u32,
    ) -> io::Result<usize> {
        self.writable()?;
        check_range(offset, u64::from(size))?;
        let files = &self.files;
        files.write(context, inode, handle, from, size, offset, lock_owner, delayed_write, kill_priv, flags)
    }

    fn access(&self, context: Context, inode: Inode, mask: u32) -> io::Result<()> {
        if mask & libc::W_OK.cast_unsigned() != 0 {
            self.writable()?;
        }
        self.files.access(context, inode, mask)
    }

    fn copyfilerange(
        &self,
        context: Context,
        from: Inode,
        from_handle: Handle,
        from_offset: u64,
        to: Inode,
        to_handle: Handle,
        to_offset: u64,
        bytes: u64,
        flags: u64,
    ) -> io::Result<usize> {
        self.writable()?;
        let bytes = bytes.min(MAX_COPY_BYTES);
        check_range(from_offset, bytes)?;
        check_range(to_offset, bytes)?;
        let files = &self.files;
        files.copyfilerange(context, from, from_handle, from_offset, to, to_handle, to_offset, bytes, flags)
    }
}

/// Devices of the guest's are none of the host's: a device file that a guest made would work for everyone there. Character
/// device 0:0 is no device but how overlay file systems mark what is deleted.
fn check_node(mode: u32, device: u32) -> io::Result<()> {
    match mode & TYPE {
        0 | libc::S_IFREG | libc::S_IFIFO | libc::S_IFSOCK => Ok(()),
        libc::S_IFCHR if device == 0 => Ok(()),
        _ => Err(error(libc::EPERM)),
    }
}
