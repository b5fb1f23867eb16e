//! One sandbox: one microVM and the containers in it.
//!
//! Every front door (command line, containerd shim, OCI command) goes through this crate:
//!
//! | module | subject |
//! |---|---|
//! | [`runtime_dir`] | where running sandboxes are recorded, locked and swept |
//! | [`locate`] | the guest's kernel and initramfs, the monitor's program |
//! | [`sizing`] | how much memory and how many processors a VM gets |
//! | [`monitor`] | the `hull-vmm` process, its events and how it ended |
//! | [`sandbox`] | boot, readiness, teardown |
//! | [`shared_dir`] | what of the host's files containers see |
//! | [`bundle`] | OCI bundles of the host in a guest |
//! | `volume` | configuration that the host replaces while containers use it |
//! | [`block_devices`] | block devices of the host in containers |
//! | [`container`] | containers and their processes |
//! | [`machine`] | changes of a running VM: devices, processors, memory |
//! | [`network`] | interfaces of a network namespace, for the guest |
//! | [`hooks`] | OCI hooks that run on the host |
//! | [`spec`] | OCI runtime specifications with Docker's defaults |
//! | [`parse`] | the texts that people type: sizes, limits, environment |
//! | [`timeline`] | boot phases |
//!
//! The guest is not trusted: each wait has a limit, each reply a bound, each connection a token.

#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        reason = "tests stop at the first surprise"
    )
)]

pub mod agent;
pub mod block_devices;
pub mod bundle;
pub mod container;
mod control;
pub mod error;
pub mod hooks;
pub mod host_cgroup;
pub mod locate;
pub mod machine;
pub mod monitor;
mod monitor_fds;
pub mod network;
pub mod parse;
mod random;
pub mod runtime_dir;
pub mod sandbox;
pub mod shared_dir;
pub mod sizing;
pub mod spec;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod text;
pub mod timeline;
mod token_gate;
mod volume;

pub use agent::{AgentError, AgentErrorKind};
pub use bundle::{BundleContainer, BundleError, BundleRoot, RootMount};
pub use container::{
    Container, ContainerConfig, ContainerState, ContainerStatus, Exit, Process, ProcessIo, ProcessStreams, TerminalSize,
};
pub use control::ControlError;
pub use error::SandboxError;
/// A network as [`Sandbox::configure_network`] takes it.
pub use host_cgroup::{HostCgroup, HostCgroupError};
pub use hull_protocol::agent::{ConfigureNetworkRequest, IpNetwork, Neighbour, NetworkInterface, Route};
pub use hull_vmm::config::{Drive, MAX_DRIVE_ID_BYTES, is_identifier};
pub use hull_vmm::fd::raise_limit as raise_file_limit;
pub use machine::Machine;
pub use monitor::VmEnd;
pub use network::NetworkNamespace;
pub use runtime_dir::{RuntimeRoot, SandboxRecord};
pub use sandbox::{Sandbox, SandboxConfig, SandboxSettings};

#[cfg(test)]
mod sandbox_test;
