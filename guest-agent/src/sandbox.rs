//! What all containers of the sandbox share.

use hull_protocol::agent::ConfigureSandboxRequest;

use crate::failure::Failure;
use crate::helper::shared;
use crate::sysctl;

/// `HOST_NAME_MAX`.
const MAX_HOSTNAME_BYTES: usize = 64;

/// See the service's ConfigureSandbox.
pub fn configure(request: &ConfigureSandboxRequest) -> Result<(), Failure> {
    if !request.hostname.is_empty() {
        set_hostname(&request.hostname)?;
    }
    sysctl::apply(&request.sysctls)?;
    if request.shm_size_bytes > 0 { shared::mount_memory(request.shm_size_bytes) } else { Ok(()) }
}

fn set_hostname(name: &str) -> Result<(), Failure> {
    if name.len() > MAX_HOSTNAME_BYTES || !name.chars().all(|c| c.is_ascii_graphic()) {
        return Err(Failure::invalid(format!("hostname {name:?} is none")));
    }
    nix::unistd::sethostname(name).map_err(|error| Failure::internal(format!("set the hostname: {error}")))
}
