//! Namespaces that a container can't have.

use oci_spec::runtime::{LinuxNamespaceType, Spec};

use crate::error::TaskError;

/// Refuses to join another container's processes or IPC for a container that is alone in its VM: the other one is in another VM.
/// It would be alone silently otherwise.
pub fn refuse_others(spec: &Spec) -> Result<(), TaskError> {
    let namespaces = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_ref());
    for namespace in namespaces.into_iter().flatten() {
        let is_shared = namespace.path().as_ref().is_some_and(|path| !path.as_os_str().is_empty());
        let kind = namespace.typ();
        if is_shared && matches!(kind, LinuxNamespaceType::Pid | LinuxNamespaceType::Ipc) {
            return Err(TaskError::precondition(format!(
                "The specification has the {kind} namespace of another container, which is in another VM: \
                 only containers of one pod can share it"
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_processes_of_another_vm_are_out_of_reach() {
        let check = |list: serde_json::Value| {
            let spec = json!({ "ociVersion": "1.1.0", "linux": { "namespaces": list } });
            refuse_others(&serde_json::from_value(spec).unwrap())
        };
        check(json!([{ "type": "pid" }, { "type": "ipc", "path": "" }])).unwrap();
        check(json!([{ "type": "network", "path": "/proc/7/ns/net" }])).unwrap();
        for kind in ["pid", "ipc"] {
            let error = check(json!([{ "type": kind, "path": format!("/proc/7/ns/{kind}") }])).unwrap_err();
            assert_eq!(error.code, ttrpc::Code::FAILED_PRECONDITION);
            assert!(error.message.contains(&format!("the {kind} namespace")), "{error}");
        }
    }
}
