//! What the thread of a share can reach.
//!
//! A measure against confusion, not against a monitor that is taken over: all threads share one address space. A path that is
//! resolved by mistake, or a link that is followed, ends inside the directory, and rights that serving files doesn't need are
//! not there to be misused.
#![allow(unsafe_code, reason = "reads and sets a thread's capabilities, which no safe interface covers")]

use std::io;
use std::os::fd::BorrowedFd;

use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, umask};

/// What root's rights over files consist of: owner, mode, identity of a creator, device numbers of overlay marks, file
/// capabilities. Not among them: mounting, another root directory, opening by handle, tracing, networks.
const KEPT: u64 = bit(0) | bit(1) | bit(3) | bit(4) | bit(6) | bit(7) | bit(27) | bit(31);
const SYS_CHROOT: u64 = bit(18);
/// `_LINUX_CAPABILITY_VERSION_3`: two words a set.
const VERSION: u32 = 0x2008_0522;

const fn bit(capability: u32) -> u64 {
    1 << capability
}

/// Makes `directory` the working directory of this thread, and its root directory if the thread may do that, and drops rights.
///
/// The thread must not be one that others rely on: nothing of this can be undone.
pub fn enter(directory: BorrowedFd<'_>) -> io::Result<()> {
    // Root, working directory and mask belong to the process unless a thread takes its own.
    unshare(CloneFlags::CLONE_FS)?;
    // Modes are the guest's to decide.
    umask(Mode::empty());
    nix::unistd::fchdir(directory)?;
    let mut sets = Sets::of_this_thread()?;
    if sets.effective() & SYS_CHROOT != 0 {
        nix::unistd::chroot(".")?;
    }
    sets.keep(KEPT);
    sets.set()
}

/// `struct __user_cap_data_struct`, twice: low and high capabilities.
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Words {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// `struct __user_cap_header_struct`.
#[repr(C)]
struct Header {
    version: u32,
    /// 0: the calling thread.
    pid: libc::c_int,
}

struct Sets([Words; 2]);

impl Sets {
    fn of_this_thread() -> io::Result<Self> {
        let mut header = Header { version: VERSION, pid: 0 };
        let mut words = [Words::default(); 2];
        // SAFETY: both pointers are to live values of the kernel's layout for this version.
        let result = unsafe { libc::syscall(libc::SYS_capget, &raw mut header, words.as_mut_ptr()) };
        if result == 0 { Ok(Self(words)) } else { Err(io::Error::last_os_error()) }
    }

    fn effective(&self) -> u64 {
        let [low, high] = self.0;
        u64::from(high.effective) << 32 | u64::from(low.effective)
    }

    /// Leaves nothing to be inherited, and of the rest only `kept`.
    fn keep(&mut self, kept: u64) {
        for (words, shift) in self.0.iter_mut().zip([0, 32]) {
            let kept = u32::try_from(kept >> shift & 0xffff_ffff).unwrap_or(0);
            *words = Words { effective: words.effective & kept, permitted: words.permitted & kept, inheritable: 0 };
        }
    }

    fn set(&self) -> io::Result<()> {
        let mut header = Header { version: VERSION, pid: 0 };
        // SAFETY: as in `of_this_thread`; the kernel only reads the sets. It changes the calling thread alone.
        let result = unsafe { libc::syscall(libc::SYS_capset, &raw mut header, self.0.as_ptr()) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::fs::File;
    use std::io::Write as _;
    use std::os::fd::AsFd;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_thread_gets_its_own_root_and_few_rights() {
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("secret"), "secret").unwrap();
        let share = outside.path().join("share");
        std::fs::create_dir(&share).unwrap();
        symlink(outside.path().join("secret"), share.join("absolute")).unwrap();
        symlink("../secret", share.join("relative")).unwrap();
        let directory = File::open(&share).unwrap();
        let here = std::env::current_dir().unwrap();
        let rights = Sets::of_this_thread().unwrap().effective();
        let inside = std::thread::spawn(move || {
            enter(directory.as_fd()).unwrap();
            assert_eq!(Sets::of_this_thread().unwrap().effective(), rights & KEPT);
            [std::fs::read("absolute"), std::fs::read("relative"), std::fs::read("../secret")]
        });
        let reads = inside.join().unwrap();
        if rights & SYS_CHROOT == 0 {
            let _ = writeln!(io::stderr(), "SKIPPED the part about the root directory: no CAP_SYS_CHROOT");
        } else {
            assert!(reads.iter().all(|read| read.as_ref().is_err_and(|e| e.kind() == io::ErrorKind::NotFound)));
        }
        assert_eq!(std::env::current_dir().unwrap(), here, "other threads stay where they are");
        assert_eq!(Sets::of_this_thread().unwrap().effective(), rights, "other threads keep their rights");
    }
}
