//! Whose network a VM has.

use hull_sandbox::NetworkNamespace;
use oci_spec::runtime::{LinuxNamespaceType, Spec};

use crate::error::TaskError;

/// The network namespace that the specification asks for: one with a path, or a new one.
pub fn namespace(spec: &Spec) -> Result<NetworkNamespace, TaskError> {
    let namespaces = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_ref());
    let network = namespaces.into_iter().flatten().find(|namespace| namespace.typ() == LinuxNamespaceType::Network);
    let Some(network) = network else {
        return Err(TaskError::precondition(
            "The specification has no network namespace: a VM can't be in the host's network (hostNetwork, --net-host)",
        ));
    };
    Ok(match network.path() {
        Some(path) if !path.as_os_str().is_empty() => NetworkNamespace::Path(path.clone()),
        _ => NetworkNamespace::New,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn namespaces(list: serde_json::Value) -> Spec {
        serde_json::from_value(json!({ "ociVersion": "1.1.0", "linux": { "namespaces": list } })).unwrap()
    }

    #[test]
    fn the_network_is_a_path_or_new_and_never_the_hosts() {
        let with_path = namespaces(json!([{ "type": "ipc" }, { "type": "network", "path": "/run/netns/a" }]));
        assert_eq!(namespace(&with_path).unwrap(), NetworkNamespace::Path("/run/netns/a".into()));
        for new in [json!([{ "type": "network" }]), json!([{ "type": "network", "path": "" }])] {
            assert_eq!(namespace(&namespaces(new)).unwrap(), NetworkNamespace::New);
        }
        let error = namespace(&namespaces(json!([{ "type": "ipc" }]))).unwrap_err();
        assert_eq!(error.code, ttrpc::Code::FAILED_PRECONDITION);
        assert!(error.message.contains("hostNetwork"), "{error}");
    }
}
