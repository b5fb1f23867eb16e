//! Copies of directories, with owners and permissions.

use std::fs::{self, DirBuilder, File, FileTimes, Metadata, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown, fchown, symlink};
use std::path::Path;

/// Deepest directory of a volume.
const MAX_DEPTH: usize = 64;

/// Copies a directory with everything in it to a place where nothing is. Links stay links; devices and pipes are left out.
pub fn tree(source: &Path, target: &Path) -> io::Result<()> {
    entry(source, target, MAX_DEPTH)
}

/// Makes a directory like another one, without what is in it.
pub fn directory(source: &Path, target: &Path) -> io::Result<()> {
    let metadata = fs::metadata(source)?;
    DirBuilder::new().mode(0o700).create(target)?;
    own(target, &metadata)
}

fn entry(source: &Path, target: &Path, depth: usize) -> io::Result<()> {
    let metadata = fs::symlink_metadata(source)?;
    let kind = metadata.file_type();
    if kind.is_symlink() {
        symlink(fs::read_link(source)?, target)
    } else if kind.is_file() {
        file(source, target)
    } else if kind.is_dir() {
        let depth = depth.checked_sub(1).ok_or_else(|| io::Error::other("its directories are nested too deeply"))?;
        DirBuilder::new().mode(0o700).create(target)?;
        for child in fs::read_dir(source)? {
            let name = child?.file_name();
            entry(&source.join(&name), &target.join(&name), depth)?;
        }
        own(target, &metadata)
    } else {
        Ok(())
    }
}

fn file(source: &Path, target: &Path) -> io::Result<()> {
    let mut from = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(source)?;
    let metadata = from.metadata()?;
    let mut to = File::options().write(true).create_new(true).mode(0o600).open(target)?;
    io::copy(&mut from, &mut to)?;
    to.set_times(FileTimes::new().set_modified(metadata.modified()?))?;
    fchown(&to, Some(metadata.uid()), Some(metadata.gid()))?;
    to.set_permissions(Permissions::from_mode(metadata.mode() & 0o7777))
}

fn own(directory: &Path, metadata: &Metadata) -> io::Result<()> {
    chown(directory, Some(metadata.uid()), Some(metadata.gid()))?;
    fs::set_permissions(directory, Permissions::from_mode(metadata.mode() & 0o7777))
}
