//! Where a shim serves.

use std::fmt;
use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::sys::stat::{Mode, umask};
use sha2::{Digest, Sha256};

/// containerd's directory for the sockets of shims.
const DIRECTORY: &str = "/run/containerd/s";

const SCHEME: &str = "unix://";

/// The address of a shim's socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address(PathBuf);

impl Address {
    /// That of the shim of container `id`. By containerd's convention it is derived from what the container is known by, so
    /// that the other containers of a pod find it.
    pub fn new(directory: Option<&Path>, containerd: &str, namespace: &str, id: &str) -> Self {
        let name = Path::new(containerd).join(namespace).join(id);
        let name = hex::encode(Sha256::digest(name.as_os_str().as_encoded_bytes()));
        Self(directory.unwrap_or(Path::new(DIRECTORY)).join(name))
    }

    /// An address as it is written.
    pub fn parse(text: &str) -> Option<Self> {
        text.trim().strip_prefix(SCHEME).filter(|path| path.starts_with('/')).map(|path| Self(path.into()))
    }

    /// Listens there, for root alone.
    pub fn bind(&self) -> io::Result<UnixListener> {
        if let Some(directory) = self.0.parent() {
            DirBuilder::new().recursive(true).mode(0o711).create(directory)?;
        }
        // `start` has one thread, so that nothing else is made with this mask.
        let before = umask(Mode::from_bits_truncate(0o177));
        let listener = UnixListener::bind(&self.0);
        umask(before);
        listener
    }

    /// Somebody accepts connections there.
    pub fn is_served(&self) -> bool {
        UnixStream::connect(&self.0).is_ok()
    }

    /// Removes the socket.
    pub fn remove(&self) {
        // What is gone already is no error, and for anything else there is no better answer than the next bind's.
        let _ = std::fs::remove_file(&self.0);
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}", self.0.display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_container_has_an_address_of_its_own_that_fits_into_a_socket_name() {
        let address = |ns, id| Address::new(None, "/run/containerd/containerd.sock", ns, id);
        let one = address("default", "one");
        assert_eq!(one, address("default", "one"));
        assert!(one != address("default", "two") && one != address("k8s.io", "one"));
        assert!(one.0.as_os_str().len() < 107);
        // As containerd's own runtimes have it.
        let expected = "unix:///run/containerd/s/807c19c0f9e3589fd68d61496d6cc415b3a5bdfef35f683f88a1d6c8cd58eed9";
        assert_eq!(one.to_string(), expected);
        assert_eq!(Address::parse(&format!("{one}\n")), Some(one));
        assert_eq!(Address::parse("/run/x"), None);
    }

    #[test]
    fn an_address_is_served_while_somebody_listens() {
        let dir = tempfile::tempdir().unwrap();
        let address = Address::new(Some(dir.path()), "c", "n", "i");
        assert!(!address.is_served());
        let listener = address.bind().unwrap();
        assert!(address.is_served());
        drop(listener);
        assert!(!address.is_served());
        assert_eq!(address.bind().unwrap_err().kind(), io::ErrorKind::AddrInUse);
        address.remove();
        address.bind().unwrap();
    }
}
