//! Whether somebody uses a device that shall go.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use hull_protocol::agent::{Device, DeviceKind};

use crate::failure::{Context, Failure};

/// Most processes, and files of each, that are looked at.
const MAX_PROCESSES: usize = 100_000;
const MAX_FILES: usize = 100_000;
/// Most bytes of one list of mounts.
const MAX_MOUNTS_BYTES: u64 = 4 << 20;

/// Keeps others from beginning to use a device, as long as it lives.
pub struct Claim {
    _disk: Option<File>,
}

/// Makes sure that nobody uses the device, and that nobody begins to.
pub fn claim(kind: DeviceKind, device: &Device) -> Result<Claim, Failure> {
    match kind {
        DeviceKind::DEVICE_KIND_DRIVE => claim_disk(device).map(|disk| Claim { _disk: Some(disk) }),
        DeviceKind::DEVICE_KIND_SHARE => no_mount(&device.name).map(|()| Claim { _disk: None }),
        // An interface goes with its addresses, as when a cable is pulled out.
        _ => Ok(Claim { _disk: None }),
    }
}

/// Opens the disk exclusively, which fails while a file system in any mount namespace, swap or another driver has it; then
/// looks for processes that have opened it. What was written is written out.
fn claim_disk(device: &Device) -> Result<File, Failure> {
    let path = Path::new("/dev").join(&device.guest_name);
    let open = |write: bool| OpenOptions::new().read(true).write(write).custom_flags(libc::O_EXCL).open(&path);
    let disk = open(true).or_else(|error| match error.raw_os_error() {
        Some(libc::EROFS | libc::EACCES) => open(false),
        _ => Err(error),
    });
    let disk = disk.map_err(|error| match error.raw_os_error() {
        Some(libc::EBUSY) => in_use(device, "it is mounted"),
        _ => Failure::internal(format!("open {}: {error}", path.display())),
    })?;
    let number = disk.metadata().context("look at the disk")?.rdev();
    if let Some(process) = who_has_open(number).context("look for users of the disk")? {
        return Err(in_use(device, &format!("process {process} has it open")));
    }
    disk.sync_all().context("write the disk's data out")?;
    Ok(disk)
}

fn in_use(device: &Device, why: &str) -> Failure {
    Failure::precondition(format!("{:?} is in use: {why}", device.name))
}

/// A process other than this one that has opened the block device.
fn who_has_open(number: u64) -> io::Result<Option<u32>> {
    let own = std::process::id();
    for process in processes()?.filter(|process| *process != own) {
        // One that has ended meanwhile has nothing open.
        let Ok(files) = fs::read_dir(format!("/proc/{process}/fd")) else { continue };
        let opened = files.take(MAX_FILES).flatten().any(|file| {
            let target = fs::metadata(file.path());
            target.is_ok_and(|target| target.file_type().is_block_device() && target.rdev() == number)
        });
        if opened {
            return Ok(Some(process));
        }
    }
    Ok(None)
}

/// A shared file system is mounted nowhere. Processes with other mount namespaces have other lists.
fn no_mount(tag: &str) -> Result<(), Failure> {
    for process in processes().context("look for users of the share")? {
        let mut mounts = Vec::new();
        let Ok(file) = File::open(format!("/proc/{process}/mountinfo")) else { continue };
        if file.take(MAX_MOUNTS_BYTES).read_to_end(&mut mounts).is_ok() && mounts_share(&mounts, tag) {
            return Err(Failure::precondition(format!("{tag:?} is in use: it is mounted")));
        }
    }
    Ok(())
}

/// Whether a list in the form of `/proc/PID/mountinfo` has a virtiofs of this source.
fn mounts_share(mountinfo: &[u8], tag: &str) -> bool {
    String::from_utf8_lossy(mountinfo).lines().any(|line| {
        // After the separator: file system type, source, options.
        let mut words = line.split(" - ").nth(1).unwrap_or_default().split(' ');
        words.next() == Some("virtiofs") && words.next() == Some(tag)
    })
}

fn processes() -> io::Result<impl Iterator<Item = u32>> {
    let entries = fs::read_dir("/proc")?.take(MAX_PROCESSES).flatten();
    Ok(entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mounted_share_is_found_by_its_tag() {
        let list = b"1 0 0:1 / / rw - rootfs rootfs rw\n2 1 0:30 / /data rw shared:1 - virtiofs work rw\n";
        assert!(mounts_share(list, "work"));
        assert!(!mounts_share(list, "wor") && !mounts_share(list, "rootfs") && !mounts_share(b" - virtiofs", "work"));
    }

    #[test]
    fn an_open_file_of_another_kind_is_no_use_of_a_disk() {
        assert_eq!(who_has_open(u64::MAX).unwrap(), None);
    }
}
