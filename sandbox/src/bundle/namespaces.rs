//! Namespaces: those of the host become the guest's.

use oci_spec::runtime::{Linux, LinuxNamespaceType};

use super::{BundleError, check_count};

/// Takes out namespaces with a path, which are the host's. The guest as a whole takes the place of a shared IPC or UTS
/// namespace, and of any network namespace: the sandbox's interfaces are the guest's. Tells whether the container is to be in
/// the pid namespace that the sandbox's containers share.
pub(super) fn translate(linux: &mut Linux) -> Result<bool, BundleError> {
    use LinuxNamespaceType as Kind;

    let namespaces = linux.namespaces().clone().unwrap_or_default();
    check_count("linux.namespaces", namespaces.len())?;
    let mut sandbox_pid_namespace = false;
    let mut guest = Vec::new();
    for (index, namespace) in namespaces.into_iter().enumerate() {
        let kind = namespace.typ();
        // Some engines write an empty path for a new namespace.
        let is_new = namespace.path().as_ref().is_none_or(|path| path.as_os_str().is_empty());
        match kind {
            Kind::Network => (),
            _ if is_new => {
                let mut namespace = namespace;
                namespace.set_path(None);
                guest.push(namespace);
            }
            Kind::Ipc | Kind::Uts => (),
            Kind::Pid => sandbox_pid_namespace = true,
            Kind::Mount | Kind::User | Kind::Cgroup | Kind::Time => {
                let reason = format!("the {kind} namespace has a path, and a guest can't join a namespace of its host");
                return Err(BundleError::new(format!("linux.namespaces[{index}].path"), reason));
            }
        }
    }
    if !guest.iter().any(|namespace| namespace.typ() == Kind::Mount) {
        return Err(BundleError::new("linux.namespaces", "a container needs a mount namespace"));
    }
    linux.set_namespaces(Some(guest));
    Ok(sandbox_pid_namespace)
}
