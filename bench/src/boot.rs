//! One boot, from process start to the agent's ready message.

use std::io::Read;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use hull_protocol::{BOOT_TOKEN_PARAMETER, READY_PORT, Token};
use serde::Serialize;

use crate::memory::{self, Memory};
use crate::monitor::Monitor;
use crate::trace::{Counts, Tracer};

/// A boot that takes longer has failed.
const BOOT_TIMEOUT: Duration = Duration::from_secs(120);

/// What all monitors boot.
pub struct Setup {
    /// Path of our monitor.
    pub hull_vmm: PathBuf,
    /// Guest kernel.
    pub kernel: PathBuf,
    /// Guest initramfs.
    pub initramfs: PathBuf,
    /// A raw disk image.
    pub disk: PathBuf,
    /// Kernel command line words for the agent.
    pub boot_args: String,
    /// Guest memory.
    pub memory_mib: u32,
    /// Virtual processors.
    pub vcpus: u8,
    scratch: tempfile::TempDir,
}

/// The token is no secret here: nothing but the agent runs in the guest.
const TOKEN: Token = Token::from_random(*b"bench-boot-token");

impl Setup {
    /// Looks the files up in the prefix tree and makes a disk.
    pub fn new(prefix: &Path, memory_mib: u32, vcpus: u8) -> Result<Self> {
        let scratch = tempfile::tempdir().context("Can't make a scratch directory")?;
        let disk = scratch.path().join("disk");
        std::fs::File::create(&disk)?.set_len(16 << 20)?;
        let setup = Self {
            hull_vmm: prefix.join("bin/hull-vmm"),
            kernel: prefix.join("lib/hull/vmlinux"),
            initramfs: prefix.join("lib/hull/initramfs.cpio"),
            disk,
            boot_args: format!("{BOOT_TOKEN_PARAMETER}={TOKEN}"),
            memory_mib,
            vcpus,
            scratch,
        };
        for path in [&setup.hull_vmm, &setup.kernel, &setup.initramfs] {
            ensure!(path.exists(), "{} does not exist", path.display());
        }
        Ok(setup)
    }
}

/// What one boot cost.
#[derive(Serialize)]
pub struct Sample {
    /// Name of the monitor.
    pub monitor: &'static str,
    /// Exits by reason.
    pub exits: Counts,
    /// Resident memory when the agent is ready.
    pub memory: Memory,
    /// From process start to the ready message. Under emulation only ratios of it mean something.
    pub wall_ms: u128,
}

/// Boots once and measures.
pub fn measure(setup: &Setup, monitor: Monitor) -> Result<Sample> {
    let dir = tempfile::tempdir_in(setup.scratch.path())?;
    let mut command = monitor.command(setup, dir.path())?;
    let ready = Ready::listen(monitor, dir.path())?;
    let tracer = Tracer::start()?;
    let start = Instant::now();
    let mut child = Guard::spawn(&mut command)?;
    ready.wait(&mut child.0)?;
    let wall_ms = start.elapsed().as_millis();
    let exits = tracer.finish()?;
    let memory = memory::of(child.0.id(), setup.memory_mib)?;
    Ok(Sample { monitor: monitor.name(), exits, memory, wall_ms })
}

/// Ends the monitor in every case.
struct Guard(Child);

impl Guard {
    fn spawn(command: &mut Command) -> Result<Self> {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .map(Self)
            .with_context(|| format!("Can't start {:?}", command.get_program()))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Where the agent's ready message arrives.
enum Ready {
    Unix(UnixListener),
    Vsock(vsock::Listener),
}

impl Ready {
    fn listen(monitor: Monitor, dir: &Path) -> Result<Self> {
        Ok(match monitor {
            Monitor::Hull => {
                let listener = UnixListener::bind(dir.join(format!("vsock_{READY_PORT}")))?;
                listener.set_nonblocking(true)?;
                Self::Unix(listener)
            }
            Monitor::QemuMicrovm => Self::Vsock(vsock::Listener::bind(READY_PORT)?),
        })
    }

    fn wait(&self, child: &mut Child) -> Result<()> {
        let start = Instant::now();
        loop {
            let message = match self {
                Self::Unix(listener) => listener.accept().ok().map(|(mut stream, _)| {
                    stream.set_nonblocking(false)?;
                    read_token(&mut stream)
                }),
                Self::Vsock(listener) => listener.accept().map(|mut stream| read_token(&mut stream)),
            };
            if let Some(message) = message {
                ensure!(message? == *TOKEN.as_bytes(), "The ready message has a wrong token");
                return Ok(());
            }
            if let Some(status) = child.try_wait()? {
                bail!("The monitor ended before the agent was ready: {status}");
            }
            ensure!(start.elapsed() < BOOT_TIMEOUT, "The agent is not ready after {BOOT_TIMEOUT:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn read_token(stream: &mut impl Read) -> std::io::Result<[u8; Token::LENGTH]> {
    let mut token = [0; Token::LENGTH];
    stream.read_exact(&mut token)?;
    Ok(token)
}

mod vsock {
    //! The host's AF_VSOCK, for monitors that use vhost.
    #![allow(unsafe_code, reason = "the standard library has no AF_VSOCK")]

    use std::fs::File;
    use std::io::{Error, Result};
    use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

    /// A listening AF_VSOCK socket that does not block.
    pub struct Listener(OwnedFd);

    impl Listener {
        /// Listens on `port` of the host.
        pub fn bind(port: u32) -> Result<Self> {
            // SAFETY: no memory is passed; the result is checked before it is owned.
            let fd = unsafe {
                libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC, 0)
            };
            if fd < 0 {
                return Err(Error::last_os_error());
            }
            // SAFETY: `fd` was just opened and nobody else owns it.
            let fd = unsafe { OwnedFd::from_raw_fd(fd) };
            // SAFETY: all-zero is a valid sockaddr_vm.
            let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
            address.svm_family = libc::sa_family_t::try_from(libc::AF_VSOCK).map_err(Error::other)?;
            address.svm_cid = libc::VMADDR_CID_ANY;
            address.svm_port = port;
            let length = libc::socklen_t::try_from(size_of_val(&address)).map_err(Error::other)?;
            // SAFETY: `address` is a sockaddr_vm of `length` bytes that outlives the call.
            let bound = unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), length) };
            // SAFETY: `fd` is an open socket.
            if bound < 0 || unsafe { libc::listen(fd.as_raw_fd(), 4) } < 0 {
                return Err(Error::last_os_error());
            }
            Ok(Self(fd))
        }

        /// A connection, if one is waiting.
        pub fn accept(&self) -> Option<File> {
            // SAFETY: null pointers say that the peer's address is not wanted.
            let fd = unsafe { libc::accept(self.0.as_raw_fd(), std::ptr::null_mut(), std::ptr::null_mut()) };
            // SAFETY: a non-negative result is a descriptor that nobody else owns.
            (fd >= 0).then(|| unsafe { File::from_raw_fd(fd) })
        }
    }
}
