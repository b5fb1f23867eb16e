//! Files as block devices (loop(4)), for snapshotters whose layers are images of file systems.
#![allow(unsafe_code, reason = "the ioctls of loop devices have no safe wrapper")]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

/// Somebody else may take the free device first.
const ATTEMPTS: usize = 32;

// linux/loop.h.
const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4c82;
const LOOP_CONFIGURE: libc::Ioctl = 0x4c0a;
const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;

/// `struct loop_config` with `struct loop_info64` in it. Zeros mean: the whole file, the driver's block size.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info_ids_and_range: [u64; 5],
    info_number_and_encryption: [u32; 3],
    info_flags: u32,
    info_names_and_key: [u8; 160],
    info_init: [u64; 2],
    reserved: [u64; 8],
}

const _: () = assert!(size_of::<LoopConfig>() == 304);

/// A loop device over a file. The device goes away by itself when nobody uses it any more: neither a mount nor `_open`.
pub struct LoopDevice {
    /// Its node.
    pub path: PathBuf,
    _open: File,
}

impl LoopDevice {
    /// Takes a free device for `file`.
    pub fn attach(file: &Path, read_only: bool) -> io::Result<Self> {
        let backing = OpenOptions::new().read(true).write(!read_only).open(file)?;
        let control = OpenOptions::new().read(true).write(true).open("/dev/loop-control")?;
        for _ in 0..ATTEMPTS {
            // SAFETY: the ioctl takes no argument.
            let number = Errno::result(unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) })?;
            let path = PathBuf::from(format!("/dev/loop{number}"));
            let device = OpenOptions::new().read(true).write(!read_only).open(&path)?;
            match configure(&device, &backing, read_only) {
                Ok(()) => return Ok(Self { path, _open: device }),
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => (),
                Err(error) => return Err(error),
            }
        }
        Err(io::Error::other("others take every loop device that is free"))
    }
}

fn configure(device: &File, backing: &File, read_only: bool) -> io::Result<()> {
    let config = LoopConfig {
        fd: u32::try_from(backing.as_raw_fd()).map_err(io::Error::other)?,
        block_size: 0,
        info_ids_and_range: [0; 5],
        info_number_and_encryption: [0; 3],
        info_flags: LO_FLAGS_AUTOCLEAR | if read_only { LO_FLAGS_READ_ONLY } else { 0 },
        info_names_and_key: [0; 160],
        info_init: [0; 2],
        reserved: [0; 8],
    };
    // SAFETY: the kernel reads one `struct loop_config`, whose layout this is.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config) };
    Ok(Errno::result(result).map(drop)?)
}
