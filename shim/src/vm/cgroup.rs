//! Where on the host a VM and its shim are counted.

use std::path::PathBuf;

use hull_sandbox::{HostCgroup, HostCgroupError};
use oci_spec::runtime::Spec;

use crate::config::{Config, SandboxCgroup};
use crate::error::{TaskError, one_line};

/// The cgroup of a VM.
pub struct VmCgroup {
    cgroup: HostCgroup,
    /// Where this process was before it moved there.
    home: Option<Vec<PathBuf>>,
}

/// The cgroup that the specification names, unless the configuration leaves VMs where containerd is.
pub fn locate(spec: &Spec, sandbox_id: &str, config: &Config) -> Result<Option<HostCgroup>, TaskError> {
    let path = spec.linux().as_ref().and_then(|linux| linux.cgroups_path().as_ref()).and_then(|path| path.to_str());
    match path {
        Some(path) if !path.is_empty() && config.sandbox_cgroup != SandboxCgroup::None => {
            HostCgroup::locate(path, &format!("hull-{sandbox_id}")).map_err(|error| failed(&error))
        }
        _ => Ok(None),
    }
}

impl VmCgroup {
    /// Makes it, and moves this process there if the configuration wants that. After a failure it is gone again.
    pub fn make(cgroup: HostCgroup, who: SandboxCgroup) -> Result<Self, TaskError> {
        let own = std::process::id();
        let home = (who == SandboxCgroup::All).then(|| cgroup.places(own));
        let made = Self { cgroup, home };
        let entered = made.cgroup.create().and_then(|()| match made.home {
            Some(_) => made.cgroup.enter(own),
            None => Ok(()),
        });
        match entered {
            Ok(()) => Ok(made),
            Err(error) => {
                made.clear();
                Err(failed(&error))
            }
        }
    }

    /// The cgroup itself.
    pub fn cgroup(&self) -> &HostCgroup {
        &self.cgroup
    }

    /// After the VM's end: this process leaves it, and it is removed.
    pub async fn end(self) {
        let _ = tokio::task::spawn_blocking(move || self.clear()).await;
    }

    fn clear(&self) {
        if let Some(home) = &self.home {
            self.cgroup.leave(std::process::id(), home);
        }
        if let Err(error) = self.cgroup.remove() {
            tracing::warn!(error = one_line(&error), "the cgroup of the VM is still there");
        }
    }
}

fn failed(error: &HostCgroupError) -> TaskError {
    match error {
        HostCgroupError::Path(_) => TaskError::invalid(error),
        _ => TaskError::precondition(format!(
            "{}; sandbox_cgroup = \"none\" in Hull's configuration leaves VMs where containerd is",
            one_line(error)
        )),
    }
}
