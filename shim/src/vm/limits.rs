//! What a container, or a pod, may use.

use std::collections::HashMap;

use oci_spec::runtime::{LinuxResources, Spec};

/// containerd's CRI adds up what the containers of a pod may use.
const POD_MEMORY: &str = "io.kubernetes.cri.sandbox-memory";
const POD_CPU_QUOTA: &str = "io.kubernetes.cri.sandbox-cpu-quota";
const POD_CPU_PERIOD: &str = "io.kubernetes.cri.sandbox-cpu-period";

/// The kernel's default period of a processor limit, in microseconds.
const DEFAULT_PERIOD_US: u64 = 100_000;

/// Limits; what is not limited is `None`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    memory_bytes: Option<u64>,
    quota_us: Option<u64>,
    period_us: Option<u64>,
}

impl Limits {
    /// Those of a container's specification.
    pub fn of_container(spec: &Spec) -> Self {
        let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
        resources.map_or(Self::default(), |resources| Self::default().updated(resources))
    }

    /// Those that the annotations of a pod's sandbox name.
    pub fn of_pod(annotations: Option<&HashMap<String, String>>) -> Self {
        let number = |name: &str| annotations?.get(name)?.parse().ok().and_then(positive);
        Self { memory_bytes: number(POD_MEMORY), quota_us: number(POD_CPU_QUOTA), period_us: number(POD_CPU_PERIOD) }
    }

    /// These after an update: what `resources` doesn't name stays.
    pub fn updated(mut self, resources: &LinuxResources) -> Self {
        if let Some(bytes) = resources.memory().as_ref().and_then(|memory| memory.limit()) {
            self.memory_bytes = positive(bytes);
        }
        if let Some(cpu) = resources.cpu() {
            if let Some(quota) = cpu.quota() {
                self.quota_us = positive(quota);
            }
            self.period_us = cpu.period().filter(|period| *period > 0).or(self.period_us);
        }
        self
    }

    /// Memory in MiB, rounded up.
    pub fn memory_mib(&self) -> Option<u32> {
        self.memory_bytes.map(|bytes| u32::try_from(bytes.div_ceil(1 << 20)).unwrap_or(u32::MAX))
    }

    /// Processors in thousandths.
    pub fn cpu_thousandths(&self) -> Option<u64> {
        let period = self.period_us.unwrap_or(DEFAULT_PERIOD_US);
        self.quota_us.map(|quota| quota.saturating_mul(1000).div_ceil(period))
    }
}

/// Zero and less is written where there is no limit.
fn positive(number: i64) -> Option<u64> {
    u64::try_from(number).ok().filter(|number| *number > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resources(json: &str) -> LinuxResources {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn an_update_changes_what_it_names_and_takes_limits_away() {
        let limits = Limits::default().updated(&resources(r#"{"memory":{"limit":1048577},"cpu":{"quota":150000}}"#));
        assert_eq!((limits.memory_mib(), limits.cpu_thousandths()), (Some(2), Some(1500)));
        let slower = limits.updated(&resources(r#"{"cpu":{"period":300000}}"#));
        assert_eq!((slower.memory_mib(), slower.cpu_thousandths()), (Some(2), Some(500)));
        let open = slower.updated(&resources(r#"{"memory":{"limit":-1},"cpu":{"quota":-1,"period":0}}"#));
        assert_eq!((open.memory_mib(), open.cpu_thousandths()), (None, None));
    }

    #[test]
    fn no_number_is_too_large() {
        let limits = Limits::default().updated(&resources(r#"{"memory":{"limit":9223372036854775807}}"#));
        assert_eq!(limits.memory_mib(), Some(u32::MAX));
        let annotations = [(POD_CPU_QUOTA, i64::MAX.to_string()), (POD_CPU_PERIOD, "1".into())];
        let annotations = annotations.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        assert_eq!(Limits::of_pod(Some(&annotations)).cpu_thousandths(), Some(u64::MAX));
    }
}
