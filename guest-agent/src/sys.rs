//! System calls that have no safe wrapper elsewhere. The only module with `unsafe`.
#![allow(unsafe_code, reason = "thin wrappers over system calls, each with its reason")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;

use nix::errno::Errno;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal};
use nix::unistd::{ForkResult, Pid};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The program's entry, in place of the standard library's: that one aborts when the standard descriptors are closed and
/// there is no `/dev/null`, which is how the kernel starts an init from an initramfs without device nodes.
#[cfg(not(test))]
// SAFETY: the only symbol of this name in the program; the C library calls it with this signature.
#[unsafe(no_mangle)]
extern "C" fn main(_count: libc::c_int, _arguments: *const *const libc::c_char) -> libc::c_int {
    // As the standard library does it: a write to a closed pipe is an error and not the end.
    let _ = ignore_signal(Signal::SIGPIPE);
    crate::run().into()
}

/// Time since boot (CLOCK_BOOTTIME) in nanoseconds.
pub fn boot_time_ns() -> u64 {
    clock_ns(nix::time::ClockId::CLOCK_BOOTTIME)
}

/// Wall clock (CLOCK_REALTIME) in nanoseconds since the epoch.
pub fn wall_clock_ns() -> u64 {
    clock_ns(nix::time::ClockId::CLOCK_REALTIME)
}

fn clock_ns(clock: nix::time::ClockId) -> u64 {
    let Ok(time) = nix::time::clock_gettime(clock) else {
        return 0;
    };
    let seconds = u64::try_from(time.tv_sec()).unwrap_or(0);
    let nanoseconds = u64::try_from(time.tv_nsec()).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds)
}

/// Takes ownership of a descriptor that the agent passed to this process by number.
pub fn inherited_fd(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: fcntl with F_GETFD only looks whether the number is an open descriptor.
    Errno::result(unsafe { libc::fcntl(fd, libc::F_GETFD) })?;
    // SAFETY: the descriptor is open and the agent passed it for this one owner.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Registers a non-blocking descriptor with the runtime.
pub fn register(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the AsyncFd owns the descriptor, which nothing replaces or closes while it is registered.
    Ok(unsafe { AsyncFd::register(fd) }?)
}

/// Registers a descriptor for these conditions only.
pub fn register_with_interest(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: as in `register`.
    Ok(unsafe { AsyncFd::register_with_interest(fd, interest) }?)
}

/// Forks. Only for the single-threaded helper.
pub fn fork() -> io::Result<ForkResult> {
    // SAFETY: the helper has one thread, so that no lock is held by another one in the child.
    Ok(unsafe { nix::unistd::fork() }?)
}

/// A descriptor for process `pid`.
pub fn pidfd_open(pid: Pid) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open takes two integers.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) })?;
    let fd = RawFd::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just returned this descriptor to us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sets all descriptors from 3 on to be closed by the next exec.
pub fn close_on_exec_from_3() -> io::Result<()> {
    // SAFETY: CLOSE_RANGE_CLOEXEC closes nothing; it only sets a flag.
    let done = unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    Ok(Errno::result(done).map(drop)?)
}

/// Whether the working directory is below this process's root, as the kernel sees it: after a change of root or mount
/// namespace it may be a directory outside, which the C library's getcwd would look for from the inside.
pub fn is_inside_root() -> io::Result<bool> {
    // A path of PATH_MAX bytes with "(unreachable)" before it.
    let mut path = [0_u8; 4096 + 16];
    // SAFETY: getcwd writes at most as many bytes as it is told that the buffer has.
    Errno::result(unsafe { libc::syscall(libc::SYS_getcwd, path.as_mut_ptr(), path.len()) })?;
    Ok(path.starts_with(b"/"))
}

/// Restores the signal dispositions and mask that a new program expects.
pub fn reset_signals() -> io::Result<()> {
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    for signal in Signal::iterator().filter(|s| !matches!(s, Signal::SIGKILL | Signal::SIGSTOP)) {
        // SAFETY: the default disposition runs no code of ours.
        unsafe { nix::sys::signal::sigaction(signal, &default) }?;
    }
    Ok(SigSet::empty().thread_set_mask()?)
}

/// Lets the child that `command` starts, in a process group of its own, begin in the foreground of the terminal that is its
/// standard input, and with the signal dispositions and mask that a new program expects; it would inherit a mask of this
/// process.
pub fn begin_in_foreground(command: &mut std::process::Command) {
    let begin = || {
        // In the background, tcsetpgrp would stop the process otherwise.
        ignore_signal(Signal::SIGTTOU)?;
        // SAFETY: two integers. It fails if there is no terminal, and then there is nothing to take.
        unsafe { libc::tcsetpgrp(libc::STDIN_FILENO, libc::getpid()) };
        reset_signals()
    };
    // SAFETY: between fork and exec only system calls are made, which are async-signal-safe.
    unsafe { command.pre_exec(begin) };
}

/// Ignores a signal.
pub fn ignore_signal(signal: Signal) -> io::Result<()> {
    let ignore = SigAction::new(SigHandler::SigIgn, SaFlags::empty(), SigSet::empty());
    // SAFETY: an ignored signal runs no code of ours.
    unsafe { nix::sys::signal::sigaction(signal, &ignore) }?;
    Ok(())
}

/// Largest signal number.
pub const MAX_SIGNAL: i32 = 64;

/// Sends a signal by number, real-time signals too.
pub fn kill(pid: Pid, signal: i32) -> io::Result<()> {
    // SAFETY: kill takes two integers.
    Ok(Errno::result(unsafe { libc::kill(pid.as_raw(), signal) }).map(drop)?)
}

/// Waits for one of these signals, which are blocked, and takes it: its number, which may be that of a real-time signal.
pub fn wait_for_signal(signals: &SigSet) -> io::Result<i32> {
    let mut number = 0;
    // SAFETY: sigwait reads the set and writes one int.
    match unsafe { libc::sigwait(signals.as_ref(), &mut number) } {
        0 => Ok(number),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// How a process ended. (In place of nix's `WaitStatus`, which has no real-time signals: it fails after the kernel has
/// forgotten the process.)
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// By itself, with this exit status.
    Exited(u8),
    /// By the signal of this number, 1 to 64.
    Killed(u8),
}

impl End {
    /// The exit status that shells give it: 128 + the signal's number for one that was killed.
    pub fn status(self) -> u8 {
        match self {
            Self::Exited(status) => status,
            Self::Killed(signal) => 128 + signal,
        }
    }

    /// Reads the status word of wait(2); `None` for a process that has not ended.
    fn decode(status: libc::c_int) -> Option<Self> {
        if libc::WIFEXITED(status) {
            return u8::try_from(libc::WEXITSTATUS(status)).ok().map(Self::Exited);
        }
        let signal = libc::WIFSIGNALED(status).then(|| libc::WTERMSIG(status))?;
        u8::try_from(signal).ok().map(Self::Killed)
    }
}

/// Reaps a child that has ended; `None` if there is none. Doesn't wait.
pub fn reap() -> Option<(Pid, End)> {
    loop {
        let mut status = 0;
        // SAFETY: waitpid writes one int.
        match Errno::result(unsafe { libc::waitpid(-1, &mut status, libc::WNOHANG) }) {
            Ok(0) => return None,
            Ok(pid) => {
                if let Some(end) = End::decode(status) {
                    return Some((Pid::from_raw(pid), end));
                }
            }
            Err(Errno::EINTR) => {}
            Err(_) => return None,
        }
    }
}

/// Sets the size of a terminal (TIOCSWINSZ), given its master or its slave.
pub fn set_terminal_size(terminal: impl AsFd, columns: u16, rows: u16) -> io::Result<()> {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads one winsize.
    let done = unsafe { libc::ioctl(terminal.as_fd().as_raw_fd(), libc::TIOCSWINSZ, &size) };
    Ok(Errno::result(done).map(drop)?)
}

/// Brings a network interface of this network namespace up.
pub fn interface_up(name: &str) -> io::Result<()> {
    let socket = nix::sys::socket::socket(
        nix::sys::socket::AddressFamily::Inet,
        nix::sys::socket::SockType::Datagram,
        nix::sys::socket::SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    // SAFETY: an ifreq of zeroes is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().take(libc::IFNAMSIZ - 1).zip(name.bytes()) {
        *to = from.cast_signed();
    }
    // SAFETY: SIOCGIFFLAGS reads the name and writes the flags of one ifreq.
    Errno::result(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &mut request) })?;
    // SAFETY: SIOCGIFFLAGS has filled this member of the union; every bit pattern is valid.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    let up = libc::c_short::try_from(libc::IFF_UP).unwrap_or(1);
    request.ifr_ifru.ifru_flags = flags | up;
    // SAFETY: SIOCSIFFLAGS reads one ifreq.
    Errno::result(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &request) })?;
    Ok(())
}

/// How long the machine may be silent before its watchdog acts (WDIOC_GETTIMEOUT), in seconds.
pub fn watchdog_timeout_s(watchdog: impl AsFd) -> io::Result<u32> {
    /// `_IOR('W', 7, int)` of linux/watchdog.h.
    const WDIOC_GETTIMEOUT: libc::Ioctl = 0x8004_5707;

    let mut seconds: libc::c_int = 0;
    // SAFETY: WDIOC_GETTIMEOUT writes one int.
    Errno::result(unsafe { libc::ioctl(watchdog.as_fd().as_raw_fd(), WDIOC_GETTIMEOUT, &mut seconds) })?;
    u32::try_from(seconds).ok().filter(|seconds| *seconds > 0).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Largest seed that [`add_entropy`] takes, in bytes.
pub const MAX_ENTROPY_BYTES: usize = 256;

/// Gives entropy to the kernel and credits it (RNDADDENTROPY).
pub fn add_entropy(seed: &[u8]) -> io::Result<()> {
    #[repr(C)]
    struct PoolInfo {
        entropy_bits: libc::c_int,
        size_bytes: libc::c_int,
        buffer: [u8; MAX_ENTROPY_BYTES],
    }
    /// `_IOW('R', 0x03, int[2])` of linux/random.h.
    const RNDADDENTROPY: libc::Ioctl = 0x4008_5203;

    let mut pool = PoolInfo { entropy_bits: 0, size_bytes: 0, buffer: [0; MAX_ENTROPY_BYTES] };
    let (Some(target), Ok(size)) = (pool.buffer.get_mut(..seed.len()), i32::try_from(seed.len())) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    target.copy_from_slice(seed);
    pool.size_bytes = size;
    pool.entropy_bits = size * 8;
    let random = std::fs::OpenOptions::new().write(true).open("/dev/random")?;
    // SAFETY: RNDADDENTROPY reads the two integers and `size_bytes` bytes after them, which the buffer holds.
    let done = unsafe { libc::ioctl(random.as_raw_fd(), RNDADDENTROPY, &pool) };
    Ok(Errno::result(done).map(drop)?)
}

/// One instruction of an eBPF program.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BpfInstruction {
    /// Operation.
    pub code: u8,
    /// Destination register in the low half, source register in the high half.
    pub registers: u8,
    /// Jump or memory offset.
    pub offset: i16,
    /// Constant.
    pub immediate: i32,
}

/// Loads a BPF_PROG_TYPE_CGROUP_DEVICE program and attaches it to a cgroup, beside programs that are there.
pub fn attach_device_program(program: &[BpfInstruction], cgroup: impl AsFd) -> io::Result<()> {
    const BPF_PROG_LOAD: libc::c_int = 5;
    const BPF_PROG_ATTACH: libc::c_int = 8;
    const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
    const BPF_CGROUP_DEVICE: u32 = 6;
    const BPF_F_ALLOW_MULTI: u32 = 2;

    /// The head of `union bpf_attr` for BPF_PROG_LOAD; what follows it counts as zero.
    #[repr(C)]
    struct Load {
        program_type: u32,
        instruction_count: u32,
        instructions: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log_buffer: u64,
        kernel_version: u32,
        flags: u32,
    }
    #[repr(C)]
    struct Attach {
        target_fd: u32,
        program_fd: u32,
        attach_type: u32,
        flags: u32,
    }

    let load = Load {
        program_type: BPF_PROG_TYPE_CGROUP_DEVICE,
        instruction_count: u32::try_from(program.len()).map_err(io::Error::other)?,
        instructions: program.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log_buffer: 0,
        kernel_version: 0,
        flags: 0,
    };
    // SAFETY: the attribute and what it points to outlive the call, and the size is the attribute's.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &load, size_of::<Load>()) })?;
    let fd = RawFd::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just returned this descriptor to us.
    let loaded = unsafe { OwnedFd::from_raw_fd(fd) };
    let raw = |fd: RawFd| u32::try_from(fd).map_err(io::Error::other);
    let attach = Attach {
        target_fd: raw(cgroup.as_fd().as_raw_fd())?,
        program_fd: raw(loaded.as_raw_fd())?,
        attach_type: BPF_CGROUP_DEVICE,
        flags: BPF_F_ALLOW_MULTI,
    };
    // SAFETY: the attribute outlives the call, and the size is the attribute's.
    let done = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_ATTACH, &attach, size_of::<Attach>()) };
    Ok(Errno::result(done).map(drop)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    #[test]
    fn every_end_of_a_process_is_read() {
        for (script, end) in
            [("exit 7", End::Exited(7)), ("kill -9 $$", End::Killed(9)), ("kill -34 $$", End::Killed(34))]
        {
            let status = Command::new("sh").args(["-c", script]).status().expect("sh");
            assert_eq!(End::decode(status.into_raw()), Some(end), "{script}");
        }
        assert_eq!(End::Killed(64).status(), 192);
        // Stopped.
        assert_eq!(End::decode(0x137f), None);
    }

    #[test]
    fn a_working_directory_outside_of_the_root_is_seen() {
        use nix::sched::{CloneFlags, unshare};
        assert!(is_inside_root().expect("getcwd"));
        for (enter, answer) in [("/", Errno::EEXIST), (".", Errno::EXDEV)] {
            let directory = tempfile::tempdir().expect("directory");
            let mut command = Command::new("/");
            let root = directory.path().to_path_buf();
            let check = move || {
                // A change of root needs a right that a new user namespace gives.
                let _ = unshare(CloneFlags::CLONE_NEWUSER);
                nix::unistd::chroot(&root)?;
                nix::unistd::chdir(enter)?;
                let answer = if is_inside_root()? { Errno::EEXIST } else { Errno::EXDEV };
                Err(answer.into())
            };
            // SAFETY: the child has one thread, and only makes system calls.
            unsafe { command.pre_exec(check) };
            assert_eq!(command.status().expect_err("an answer").raw_os_error(), Some(answer as i32), "{enter}");
        }
    }

    #[test]
    fn real_time_signals_are_taken_by_number() {
        let signals = SigSet::all();
        signals.thread_set_mask().expect("block");
        for signal in [libc::SIGHUP, libc::SIGRTMIN(), MAX_SIGNAL] {
            // SAFETY: raise takes an integer, and the signal is blocked.
            assert_eq!(unsafe { libc::raise(signal) }, 0);
            assert_eq!(wait_for_signal(&signals).expect("wait"), signal);
        }
    }
}
