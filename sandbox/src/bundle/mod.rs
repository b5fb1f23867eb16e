//! OCI bundles of the host in a guest.
//!
//! A bundle's specification speaks of the host: its files, namespaces, cgroups, devices. [`translate`] makes of it one that
//! means the same in the guest; what can't mean the same is refused, with the field's name.

mod create;
mod devices;
mod mounts;
mod namespaces;
mod resources;
mod settings;

use oci_spec::runtime::Spec;
use thiserror::Error;

use crate::container::ProcessIo;
use crate::shared_dir::BindMount;

use devices::BlockDevice;

pub use crate::shared_dir::{BundleRoot, RootMount};
pub use resources::guest_resources;
pub use settings::sandbox_settings;

/// Most mounts, devices and namespaces of a specification, each.
const MAX_ITEMS: usize = 1024;
/// Longest identifier of a container.
const MAX_ID_BYTES: usize = 128;

/// A container that the host describes as for a runtime of its own.
#[derive(Debug, Clone)]
pub struct BundleContainer {
    /// Identifier, unique in the sandbox: `[A-Za-z0-9_-][A-Za-z0-9._-]*`, at most 128 bytes.
    pub id: String,
    /// The bundle's specification. `root.path` is not looked at; hooks are the caller's.
    pub spec: Spec,
    /// Root file system.
    pub root: BundleRoot,
    /// Which streams. Whether there is a terminal is said here and not in the specification.
    pub io: ProcessIo,
}

/// A specification can't be carried out in a guest.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("{field}: {reason}")]
pub struct BundleError {
    /// As in the OCI runtime specification: `linux.devices[2]`.
    pub field: String,
    /// Why not.
    pub reason: String,
}

impl BundleError {
    fn new(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { field: field.into(), reason: reason.into() }
    }
}

/// What a specification becomes.
#[derive(Debug)]
pub(crate) struct Translated {
    /// For the guest.
    pub(crate) spec: Spec,
    /// What the host binds for it, in the order of their numbers.
    pub(crate) binds: Vec<BindMount>,
    /// What is plugged for it.
    pub(crate) block_devices: Vec<BlockDevice>,
    /// The container is in the pid namespace that the sandbox's containers share.
    pub(crate) sandbox_pid_namespace: bool,
    /// The container can't write its root file system.
    pub(crate) read_only: bool,
}

/// Translates the specification of container `id`.
pub(crate) fn translate(id: &str, mut spec: Spec, terminal: bool) -> Result<Translated, BundleError> {
    check_id(id)?;
    let read_only = spec.root().as_ref().and_then(oci_spec::runtime::Root::readonly).unwrap_or(false);
    let mut process = spec.process().clone().ok_or_else(|| BundleError::new("process", "is missing"))?;
    process.set_terminal(Some(terminal)).set_apparmor_profile(None).set_selinux_label(None);
    let mut linux = spec.linux().clone().ok_or_else(|| BundleError::new("linux", "is missing"))?;

    let sandbox_pid_namespace = namespaces::translate(&mut linux)?;
    let block_devices = devices::translate(&mut linux)?;
    linux
        .set_resources(linux.resources().as_ref().map(guest_resources))
        // The agent names the cgroup; the guest has no resource control hardware and no security modules, and no network
        // devices to move about.
        .set_cgroups_path(None)
        .set_intel_rdt(None)
        .set_mount_label(None)
        .set_net_devices(None);
    let (mounts, binds) = mounts::translate(id, spec.mounts().as_deref().unwrap_or_default())?;
    spec.set_process(Some(process))
        .set_linux(Some(linux))
        .set_mounts(Some(mounts))
        // The host's, and the host's business.
        .set_root(None)
        .set_hooks(None)
        .set_annotations(None);
    Ok(Translated { spec, binds, block_devices, sandbox_pid_namespace, read_only })
}

fn check_id(id: &str) -> Result<(), BundleError> {
    let safe = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if id.is_empty() || id.len() > MAX_ID_BYTES || id.starts_with('.') || !id.chars().all(safe) {
        let reason = format!("must match [A-Za-z0-9_-][A-Za-z0-9._-]* and have at most {MAX_ID_BYTES} characters");
        return Err(BundleError::new("id", reason));
    }
    Ok(())
}

fn check_count(field: &str, count: usize) -> Result<(), BundleError> {
    if count > MAX_ITEMS {
        return Err(BundleError::new(field, format!("has {count} items; at most {MAX_ITEMS} are possible")));
    }
    Ok(())
}

#[cfg(test)]
#[path = "bundle_test.rs"]
mod tests;
