//! What host and guest say to each other.
//!
//! Three kinds of vsock connections exist:
//!
//! | who dials | port | what it carries |
//! |---|---|---|
//! | agent | [`READY_PORT`] of the host | the boot [`Token`], once, then closed: the agent listens now |
//! | host | [`AGENT_PORT`] of the guest | ttrpc, service [`agent_ttrpc`] |
//! | agent | [`STREAM_PORT`] of the host | a [`Token`], then the raw bytes of one standard stream |
//!
//! AF_VSOCK is not namespaced in the guest, so a container can dial the host too. That is why a connection without a token
//! that the host issued is closed, and why each token serves once.

mod token;

pub use token::{Token, TokenError};

/// Version of the service definition. Host and agent must agree: both come from one build.
pub const PROTOCOL_VERSION: u32 = 4;

/// Context identifier of the host in AF_VSOCK.
pub const HOST_CID: u32 = 2;

/// Context identifier given to every guest: each VM has its own address space of ports, so that it need not differ.
pub const GUEST_CID: u32 = 3;

/// Guest port on which the agent serves ttrpc.
pub const AGENT_PORT: u32 = 1024;

/// Host port that the agent dials once when it listens on [`AGENT_PORT`].
pub const READY_PORT: u32 = 1024;

/// Host port for the standard streams of processes.
pub const STREAM_PORT: u32 = 1025;

/// Connections from the guest that have not sent their [`Token`] yet and that the host keeps, the newest ones.
pub const MAX_UNPROVEN: usize = 128;

/// Where Docker's containers find its resolver.
pub const RESOLVER: std::net::Ipv4Addr = std::net::Ipv4Addr::new(127, 0, 0, 11);

/// Longest name query or answer, in bytes (RFC 1035, section 4.2.2).
pub const MAX_NAME_MESSAGE_BYTES: usize = 65_535;

/// Tag of the sandbox's shared directory, where the file systems of its containers appear (virtio-fs).
pub const SHARE_TAG: &str = "hull";

/// Where the guest mounts the sandbox's shared directory.
pub const SHARED_DIR: &str = "/run/hull/shared";

/// Where the guest mounts the memory that all containers of the sandbox share (`/dev/shm`).
pub const SHM_DIR: &str = "/run/hull/shm";

/// Where the guest has copies of volumes that the host replaces in one step: in a directory for each container, by their numbers.
pub const VOLUMES_DIR: &str = "/run/hull/volumes";

/// Upper bound for one ttrpc message in either direction, in bytes.
pub const MAX_MESSAGE_BYTES: usize = 4 << 20;

// ttrpc is what enforces it, when it sends and when it receives, on both sides.
const _: () = assert!(MAX_MESSAGE_BYTES == ttrpc::proto::MESSAGE_LENGTH_MAX);

/// Kernel command line parameter that carries the boot token as 32 hexadecimal digits.
pub const BOOT_TOKEN_PARAMETER: &str = "hull.boot_token";

/// Generated messages of `proto/agent.proto`.
#[allow(missing_docs, unused_qualifications, warnings, clippy::all, clippy::pedantic, reason = "generated code")]
pub mod agent {
    include!(concat!(env!("OUT_DIR"), "/agent.rs"));
}

/// Generated ttrpc client and service trait of `proto/agent.proto`.
#[allow(missing_docs, unused_qualifications, warnings, clippy::all, clippy::pedantic, reason = "generated code")]
pub mod agent_ttrpc {
    include!(concat!(env!("OUT_DIR"), "/agent_ttrpc.rs"));
}
