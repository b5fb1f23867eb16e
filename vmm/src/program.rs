//! The pages of the program itself.
//!
//! Reading the configuration, loading the kernel and making devices touches most of the program, and the host's kernel maps 16 pages
//! around each one that is touched. A running guest needs a small part of that.
#![allow(unsafe_code, reason = "madvise takes an address, and the linker tells where the program lies")]

use std::io;

unsafe extern "C" {
    /// First byte of the program.
    static __executable_start: u8;
    /// First byte behind its code.
    static etext: u8;
}

/// Unmaps constants and code; what is needed again is mapped again from the host's page cache. Breakpoints that a debugger has set
/// are lost.
pub fn forget_pages() -> io::Result<()> {
    let start = (&raw const __executable_start).addr();
    // The page that code shares with what follows isn't touched: it may have been written to.
    let end = (&raw const etext).addr() / PAGE_BYTES * PAGE_BYTES;
    let Some(length) = end.checked_sub(start) else { return Ok(()) };
    // SAFETY: the linker puts nothing that is written to, relocated data included, before the end of the code. So each of these
    // pages is as in the file, and comes from there again. The call itself is in the kernel and may unmap its caller.
    match unsafe { libc::madvise((&raw const __executable_start).cast_mut().cast(), length, libc::MADV_DONTNEED) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

const PAGE_BYTES: usize = 4096;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests stop at the first surprise")]

    use super::*;
    use crate::memory::HostRange;
    use crate::resident::ResidentMemory;
    use vm_memory::GuestAddress;

    #[test]
    fn code_is_unmapped_and_comes_again() {
        // Reads the numbers of the mappings in this range as if they were a guest's.
        let code = HostRange {
            guest: GuestAddress(0),
            host: (&raw const __executable_start).addr() as u64,
            size: ((&raw const etext).addr() - (&raw const __executable_start).addr()) as u64,
        };
        let resident = ResidentMemory::new(vec![code]).unwrap();
        let kib = || resident.read().unwrap().guest_resident_kib;
        // Each page of it, so that there is something to unmap.
        let touched = (code.host..code.host + code.size).step_by(PAGE_BYTES).fold(0u8, |sum, address| {
            // SAFETY: the page is a part of the program.
            sum ^ unsafe { (address as *const u8).read_volatile() }
        });
        let all = kib();
        assert!(all >= code.size / 1024 - 8, "{all} KiB, {touched}");
        // Other tests run meanwhile and need their code, too.
        let fewer = (0..100).any(|_| forget_pages().is_ok() && kib() < all / 4 * 3);
        assert!(fewer, "{all} KiB before");
    }
}
