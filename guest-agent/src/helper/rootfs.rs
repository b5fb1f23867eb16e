//! A container's root file system: a read-only image from a disk, with a tmpfs above it; or a directory that the host shares.

use std::fs;
use std::path::{Path, PathBuf};

use hull_protocol::agent::RootFilesystem;
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};

use crate::failure::{Context, Failure};
use crate::helper::shared;
use crate::layout::{self, Bundle};

const NONE: Option<&str> = None;

/// Mounts a container's root file system and returns where.
///
/// A read-only container has a writable layer too, as in Docker: mount points and injected files have to go somewhere.
/// The container itself sees it read-only.
pub fn mount_root(bundle: &Bundle, rootfs: &RootFilesystem) -> Result<PathBuf, Failure> {
    let target = bundle.rootfs();
    fs::create_dir_all(&target).context("create the root directory")?;
    if !rootfs.shared_path.is_empty() {
        shared::bind_root(&rootfs.shared_path, &target)?;
        return Ok(target);
    }
    let image = mount_image(rootfs)?;
    let upper = bundle.upper();
    fs::create_dir_all(&upper).context("create the upper layer")?;

    let options = match rootfs.upper_size_bytes {
        0 => "mode=755".to_string(),
        size => format!("mode=755,size={size}"),
    };
    mount(Some("tmpfs"), &upper, Some("tmpfs"), MsFlags::empty(), Some(options.as_str()))
        .context("mount the upper layer")?;
    let (upper_directory, work_directory) = (upper.join("upper"), upper.join("work"));
    fs::create_dir(&upper_directory).context("create the upper layer")?;
    fs::create_dir(&work_directory).context("create the upper layer")?;

    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        image.display(),
        upper_directory.display(),
        work_directory.display()
    );
    mount(Some("overlay"), &target, Some("overlay"), MsFlags::empty(), Some(options.as_str()))
        .context("mount the overlay")?;
    Ok(target)
}

/// Mounts the disk with the wanted serial number, once for all containers that use it.
fn mount_image(rootfs: &RootFilesystem) -> Result<PathBuf, Failure> {
    let serial = rootfs.image_serial.as_str();
    if rootfs.image_type != "erofs" {
        return Err(Failure::invalid(format!("image type {:?} is not \"erofs\"", rootfs.image_type)));
    }
    let target = Path::new(layout::IMAGES).join(serial);
    match fs::create_dir(&target) {
        Ok(()) => {}
        // An existing directory is a mounted image: both come and go together.
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => return Ok(target),
        Err(error) => return Err(error).context("create the image's directory"),
    }
    let mounted = find_disk(serial).and_then(|disk| {
        let flags = MsFlags::MS_RDONLY;
        mount(Some(&disk), &target, Some("erofs"), flags, NONE).map_err(|error| match error {
            Errno::EINVAL => Failure::invalid(format!("disk {serial} holds no EROFS image")),
            error => Failure::internal(format!("mount disk {serial}: {error}")),
        })
    });
    if mounted.is_err() {
        let _ = fs::remove_dir(&target);
    }
    mounted.map(|()| target)
}

/// The block device with this virtio-blk serial number.
fn find_disk(serial: &str) -> Result<PathBuf, Failure> {
    let disks = fs::read_dir("/sys/block").context("list block devices")?;
    for disk in disks.flatten() {
        let found = fs::read_to_string(disk.path().join("serial")).unwrap_or_default();
        if found.trim_end() == serial {
            return Ok(Path::new("/dev").join(disk.file_name()));
        }
    }
    Err(Failure::invalid(format!("no disk has the serial number {serial}")))
}
