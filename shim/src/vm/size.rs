//! How large the VM of a container or of a pod is.

use std::collections::HashMap;

use hull_sandbox::parse::{Cpus, MemorySize};
use hull_sandbox::sizing;
use oci_spec::runtime::Spec;

use crate::bundle::Role;
use crate::config::Config;

/// containerd's CRI adds up what the containers of a pod may use.
const POD_MEMORY: &str = "io.kubernetes.cri.sandbox-memory";
const POD_CPU_QUOTA: &str = "io.kubernetes.cri.sandbox-cpu-quota";
const POD_CPU_PERIOD: &str = "io.kubernetes.cri.sandbox-cpu-period";

/// The kernel's default period of a processor limit, in microseconds.
const DEFAULT_PERIOD_US: u64 = 100_000;

/// Processors and memory of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Processors in use at the start.
    pub vcpus: u8,
    /// Processors that it can have in use.
    pub max_vcpus: u8,
    /// Memory in MiB.
    pub memory_mib: u32,
}

/// Limits; what is not limited is `None`.
#[derive(Debug, Default)]
struct Limits {
    memory_bytes: Option<u64>,
    quota_us: Option<i64>,
    period_us: Option<u64>,
}

/// The size that fits the limits of a container, or those that the annotations of a pod's sandbox name; where there are none,
/// what the configuration says.
pub fn of(spec: &Spec, role: &Role, config: &Config) -> Size {
    let limits = match role {
        Role::Sandbox => of_pod(spec.annotations().as_ref()),
        _ => of_container(spec),
    };
    let memory = limits.memory_bytes.and_then(|bytes| bytes.to_string().parse::<MemorySize>().ok());
    let cpus = limits.cpus();
    let sizes = config.sizes();
    let vcpus = sizes.vcpus(None, cpus);
    let max_vcpus = match role {
        // Its containers come later, and their limits may change.
        Role::Sandbox => sizing::max_cpus().clamp(vcpus, config.max_vcpus.max(vcpus)),
        _ => vcpus,
    };
    Size { vcpus, max_vcpus, memory_mib: sizes.memory_mib(None, memory) }
}

fn of_container(spec: &Spec) -> Limits {
    let Some(resources) = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref()) else {
        return Limits::default();
    };
    let memory = resources.memory().as_ref().and_then(|memory| memory.limit());
    let cpu = resources.cpu().as_ref();
    Limits {
        memory_bytes: memory.and_then(|bytes| u64::try_from(bytes).ok()).filter(|bytes| *bytes > 0),
        quota_us: cpu.and_then(|cpu| cpu.quota()),
        period_us: cpu.and_then(|cpu| cpu.period()),
    }
}

fn of_pod(annotations: Option<&HashMap<String, String>>) -> Limits {
    let number = |name: &str| annotations?.get(name)?.parse::<i64>().ok().filter(|number| *number > 0);
    Limits {
        memory_bytes: number(POD_MEMORY).and_then(|bytes| u64::try_from(bytes).ok()),
        quota_us: number(POD_CPU_QUOTA),
        period_us: number(POD_CPU_PERIOD).and_then(|period| u64::try_from(period).ok()),
    }
}

impl Limits {
    fn cpus(&self) -> Option<Cpus> {
        let quota = u64::try_from(self.quota_us?).ok().filter(|quota| *quota > 0)?;
        let period = self.period_us.filter(|period| *period > 0).unwrap_or(DEFAULT_PERIOD_US);
        let thousandths = quota.saturating_mul(1000).div_ceil(period).clamp(10, 512_000);
        format!("{}.{:03}", thousandths / 1000, thousandths % 1000).parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(json: &str) -> Spec {
        serde_json::from_str(&format!(r#"{{"ociVersion":"1.0.2",{json}}}"#)).unwrap()
    }

    fn of(spec: &Spec, role: &Role) -> Size {
        super::of(spec, role, &Config::default())
    }

    #[test]
    fn what_no_limit_says_the_configuration_says() {
        let config = Config { default_memory_mib: 300, overhead_mib: 100, max_vcpus: 1, ..Config::default() };
        assert_eq!(super::of(&spec(r#""linux":{}"#), &Role::Single, &config).memory_mib, 300);
        let limited = spec(r#""linux":{"resources":{"memory":{"limit":67108864}}}"#);
        assert_eq!(super::of(&limited, &Role::Single, &config).memory_mib, 64 + 1 + 100);
        assert_eq!(super::of(&limited, &Role::Sandbox, &config).max_vcpus, 1);
    }

    #[test]
    fn a_vm_fits_the_limits_of_its_container() {
        let none = of(&spec(r#""linux":{}"#), &Role::Single);
        assert_eq!(none, Size { vcpus: 1, max_vcpus: 1, memory_mib: sizing::DEFAULT_MEMORY_MIB });
        let limited =
            spec(r#""linux":{"resources":{"memory":{"limit":67108864},"cpu":{"quota":150000,"period":100000}}}"#);
        let size = of(&limited, &Role::Single);
        assert_eq!(size.memory_mib, 64 + 1 + 64);
        assert_eq!(size.vcpus, 2.min(sizing::max_cpus()));
        // containerd writes these where there is no limit.
        let open = spec(r#""linux":{"resources":{"memory":{"limit":-1},"cpu":{"quota":-1,"period":0}}}"#);
        assert_eq!(of(&open, &Role::Single), none);
    }

    #[test]
    fn a_pod_s_vm_fits_what_its_annotations_say_and_can_grow() {
        let pod = spec(
            r#""annotations":{"io.kubernetes.cri.sandbox-memory":"134217728","io.kubernetes.cri.sandbox-cpu-quota":"100000",
            "io.kubernetes.cri.sandbox-cpu-period":"100000"}"#,
        );
        let size = of(&pod, &Role::Sandbox);
        assert_eq!((size.memory_mib, size.vcpus), (128 + 2 + 64, 1));
        assert_eq!(size.max_vcpus, sizing::max_cpus().min(8));
        let nonsense = spec(r#""annotations":{"io.kubernetes.cri.sandbox-memory":"much"}"#);
        assert_eq!(of(&nonsense, &Role::Sandbox).memory_mib, sizing::DEFAULT_MEMORY_MIB);
    }
}
