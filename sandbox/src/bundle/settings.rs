//! What the first container of a pod says of the pod.

use std::path::Path;

use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use oci_spec::runtime::Spec;

use super::mounts;
use crate::sandbox::SandboxSettings;

/// Settings of the sandbox from the specification of a pod's own ("pause") container: its host name and kernel settings hold for
/// all of its containers, and its `/dev/shm` is a tmpfs of the host whose size is meant.
pub fn sandbox_settings(spec: &Spec) -> SandboxSettings {
    let shm = spec.mounts().iter().flatten().find_map(mounts::shm_source);
    SandboxSettings {
        hostname: spec.hostname().clone().unwrap_or_default(),
        sysctls: spec.linux().as_ref().and_then(|linux| linux.sysctl().clone()).unwrap_or_default(),
        shm_size_bytes: shm.and_then(tmpfs_size).unwrap_or(0),
    }
}

fn tmpfs_size(path: &Path) -> Option<u64> {
    let stat = statfs(path).ok().filter(|stat| stat.filesystem_type() == TMPFS_MAGIC)?;
    stat.blocks().checked_mul(u64::try_from(stat.block_size()).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_pod_is_known_from_its_first_container() {
        let shm = |source: &str| {
            let spec = json!({
                "ociVersion": "1.1.0", "hostname": "pod-1", "linux": { "sysctl": { "kernel.shm_rmid_forced": "1" } },
                "mounts": [{ "destination": "/dev/shm", "type": "bind", "source": source, "options": ["rbind"] }],
            });
            sandbox_settings(&serde_json::from_value(spec).unwrap())
        };
        let settings = shm("/nonexistent/sandboxes/x/shm");
        assert_eq!((settings.hostname.as_str(), settings.sysctls.len(), settings.shm_size_bytes), ("pod-1", 1, 0));
        if tmpfs_size(Path::new("/dev/shm")).is_some() {
            assert!(shm("/dev/shm").shm_size_bytes > 0);
        }
        assert_eq!(sandbox_settings(&serde_json::from_value(json!({})).unwrap()), SandboxSettings::default());
    }
}
