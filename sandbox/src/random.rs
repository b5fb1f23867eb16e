//! Random numbers from the kernel, by the system call: a static program has no other way that works without /dev/urandom.
#![allow(unsafe_code, reason = "there is no safe wrapper for getrandom(2)")]

use std::io;

use crate::error::SandboxError;

/// Fills `bytes`.
pub(crate) fn fill(bytes: &mut [u8]) -> Result<(), SandboxError> {
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        // SAFETY: the kernel writes at most `rest.len()` bytes to `rest`, which is borrowed for this call alone.
        let length = unsafe { libc::getrandom(rest.as_mut_ptr().cast(), rest.len(), 0) };
        match usize::try_from(length) {
            Ok(length) => filled += length,
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => (),
                error => return Err(SandboxError::Random(error)),
            },
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_bytes_are_filled() {
        let (mut a, mut b) = ([0; 1000], [0; 1000]);
        fill(&mut a).unwrap();
        fill(&mut b).unwrap();
        assert_ne!(a, b);
        assert!(a.rchunks(50).all(|part| part.iter().any(|byte| *byte != 0)));
    }
}
