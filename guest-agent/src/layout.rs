//! Where things are in the guest.

use std::path::PathBuf;

/// Everything the agent keeps about its containers; a tmpfs.
pub const RUN: &str = "/run/hull";

/// libcontainer's own state, one directory a container.
pub const STATE: &str = "/run/hull/containers";

/// Images that are mounted, by disk serial number.
pub const IMAGES: &str = "/run/hull/images";

/// Console sockets. Short, because a socket's path has at most 107 bytes.
pub const CONSOLES: &str = "/run/hull/tty";

/// Cgroup that holds one cgroup for each container.
pub const CGROUP: &str = "/sys/fs/cgroup/hull";

/// Where the agent's binary appears in a container that asked for an init process.
pub const CONTAINER_INIT: &str = "/dev/.hull-init";

/// Device nodes of a container that are not in its `/dev`. The identifier has been checked ([`crate::identifier::check`]).
pub fn devices(id: &str) -> PathBuf {
    PathBuf::from("/dev/.hull").join(id)
}

/// Files of one container. The identifier has been checked ([`crate::identifier::check`]).
pub struct Bundle(PathBuf);

impl Bundle {
    /// The directory of container `id`.
    pub fn new(id: &str) -> Self {
        Self(PathBuf::from(RUN).join("bundles").join(id))
    }

    /// The bundle itself: holds `config.json`.
    pub fn path(&self) -> PathBuf {
        self.0.clone()
    }

    /// Where the container's root file system is mounted.
    pub fn rootfs(&self) -> PathBuf {
        self.0.join("rootfs")
    }

    /// The tmpfs with the overlay's upper and work directories.
    pub fn upper(&self) -> PathBuf {
        self.0.join("upper")
    }
}
