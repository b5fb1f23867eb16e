//! How large the VM of a container or of a pod is.

use hull_sandbox::sizing;
use oci_spec::runtime::Spec;

use super::limits::Limits;
use crate::bundle::Role;
use crate::config::Config;

/// Processors that a VM can have unless the configuration says it: each costs a thread and some of the guest's memory.
const USUAL_MAX_VCPUS: u8 = 8;

/// Processors and memory of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Processors in use.
    pub vcpus: u8,
    /// Memory in MiB.
    pub memory_mib: u32,
}

/// How large a VM is and can become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// At the start.
    pub least: Size,
    /// At most.
    pub most: Size,
}

impl Range {
    /// At the start what fits the limits of a container, or those that the annotations of a pod's sandbox name; where there
    /// are none, what the configuration says. At most what the configuration says, unless that is less.
    pub fn new(spec: &Spec, role: &Role, config: &Config) -> Self {
        let limits = match role {
            Role::Sandbox => Limits::of_pod(spec.annotations().as_ref()),
            _ => Limits::of_container(spec),
        };
        let fits = demand([&limits], &config.sizes());
        let least = Size { vcpus: fits.vcpus.clamp(1, sizing::max_cpus()), ..fits };
        let max_vcpus = match config.max_vcpus {
            0 => sizing::max_cpus().min(USUAL_MAX_VCPUS),
            vcpus => vcpus,
        };
        let max_memory_mib = match config.max_memory_mib {
            0 => sizing::host_memory_mib(),
            mib => mib,
        };
        let most = Size { vcpus: max_vcpus.max(least.vcpus), memory_mib: max_memory_mib.max(least.memory_mib) };
        Self { least, most }
    }

    /// `size`, or as near to it as possible.
    pub fn clamp(&self, size: Size) -> Size {
        Size {
            vcpus: size.vcpus.clamp(self.least.vcpus, self.most.vcpus),
            memory_mib: size.memory_mib.clamp(self.least.memory_mib, self.most.memory_mib),
        }
    }
}

/// What containers with these limits need together: the sum of the limits and, once for all that have none, what a VM without
/// limits has. Nothing for no container.
pub fn demand<'a>(containers: impl IntoIterator<Item = &'a Limits>, sizes: &sizing::Defaults) -> Size {
    let (mut limit_mib, mut memory_is_open) = (0_u32, false);
    let (mut thousandths, mut cpus_are_open) = (0_u64, false);
    for limits in containers {
        match limits.memory_mib() {
            Some(mib) => limit_mib = limit_mib.saturating_add(mib),
            None => memory_is_open = true,
        }
        match limits.cpu_thousandths() {
            Some(more) => thousandths = thousandths.saturating_add(more),
            None => cpus_are_open = true,
        }
    }
    let limited_mib = if limit_mib > 0 { sizes.memory_for_mib(limit_mib) } else { 0 };
    let open_mib = if memory_is_open { sizes.memory_mib } else { 0 };
    let limited_vcpus = u8::try_from(thousandths.div_ceil(1000)).unwrap_or(u8::MAX);
    let open_vcpus = if cpus_are_open { sizes.vcpus } else { 0 };
    Size {
        vcpus: limited_vcpus.saturating_add(open_vcpus).min(sizing::MAX_VCPUS),
        memory_mib: limited_mib.saturating_add(open_mib).min(sizing::MAX_MEMORY_MIB),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(json: &str) -> Spec {
        serde_json::from_str(&format!(r#"{{"ociVersion":"1.0.2",{json}}}"#)).unwrap()
    }

    fn limited(mib: u32, quota_us: u32) -> Spec {
        let bytes = u64::from(mib) << 20;
        spec(&format!(r#""linux":{{"resources":{{"memory":{{"limit":{bytes}}},"cpu":{{"quota":{quota_us}}}}}}}"#))
    }

    fn least(spec: &Spec, role: &Role) -> Size {
        Range::new(spec, role, &Config::default()).least
    }

    const DEFAULT: Size = Size { vcpus: 1, memory_mib: sizing::DEFAULT_MEMORY_MIB };

    #[test]
    fn what_no_limit_says_the_configuration_says() {
        let config = Config {
            default_memory_mib: 300,
            overhead_mib: 100,
            max_vcpus: 3,
            max_memory_mib: 200,
            ..Config::default()
        };
        let range = Range::new(&spec(r#""linux":{}"#), &Role::Single, &config);
        assert_eq!(range.least, Size { vcpus: 1, memory_mib: 300 });
        assert_eq!(range.most, Size { vcpus: 3, memory_mib: 300 });
        let range = Range::new(&limited(64, 100_000), &Role::Single, &config);
        assert_eq!((range.least.memory_mib, range.most.memory_mib), (64 + 1 + 100, 200));
    }

    #[test]
    fn a_vm_fits_the_limits_of_its_container_and_can_grow_to_the_host_s_size() {
        assert_eq!(least(&spec(r#""linux":{}"#), &Role::Single), DEFAULT);
        let range = Range::new(&limited(64, 150_000), &Role::Single, &Config::default());
        assert_eq!(range.least, Size { vcpus: 2.min(sizing::max_cpus()), memory_mib: 64 + 1 + 64 });
        assert_eq!(range.most, Size { vcpus: sizing::max_cpus().min(8), memory_mib: sizing::host_memory_mib() });
        // containerd writes these where there is no limit.
        let open = spec(r#""linux":{"resources":{"memory":{"limit":-1},"cpu":{"quota":-1,"period":0}}}"#);
        assert_eq!(least(&open, &Role::Single), DEFAULT);
    }

    #[test]
    fn a_pod_s_vm_fits_what_its_annotations_say() {
        let pod = spec(
            r#""annotations":{"io.kubernetes.cri.sandbox-memory":"134217728","io.kubernetes.cri.sandbox-cpu-quota":"100000",
            "io.kubernetes.cri.sandbox-cpu-period":"100000"}"#,
        );
        assert_eq!(least(&pod, &Role::Sandbox), Size { vcpus: 1, memory_mib: 128 + 2 + 64 });
        let nonsense = spec(r#""annotations":{"io.kubernetes.cri.sandbox-memory":"much"}"#);
        assert_eq!(least(&nonsense, &Role::Sandbox), DEFAULT);
    }

    #[test]
    fn containers_need_the_sum_of_their_limits_and_those_without_need_the_default_once() {
        let of = |specs: &[Spec]| {
            let limits: Vec<_> = specs.iter().map(Limits::of_container).collect();
            demand(&limits, &sizing::Defaults::default())
        };
        let open = spec(r#""linux":{}"#);
        assert_eq!(of(&[]), Size { vcpus: 0, memory_mib: 0 });
        assert_eq!(of(&[open.clone(), open.clone()]), DEFAULT);
        assert_eq!(of(&[limited(100, 50_000), limited(28, 60_000)]), Size { vcpus: 2, memory_mib: 128 + 2 + 64 });
        assert_eq!(of(&[limited(128, 50_000), open]), Size { vcpus: 2, memory_mib: 128 + 2 + 64 + 512 });
        let huge = of(&[limited(u32::MAX, u32::MAX), limited(u32::MAX, u32::MAX)]);
        assert_eq!(huge, Size { vcpus: sizing::MAX_VCPUS, memory_mib: sizing::MAX_MEMORY_MIB });
    }
}
