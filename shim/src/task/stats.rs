//! Stats: what a task uses, as `io.containerd.cgroups.v2.Metrics`, which containerd's clients know.

use containerd_shim_protos::api::StatsResponse;
use containerd_shim_protos::cgroups_v2::metrics::{
    CPUStat, IOEntry, IOStat, MemoryEvents, MemoryStat, Metrics, PidsStat,
};
use hull_sandbox::container::ContainerStats;
use protobuf::well_known_types::any::Any;
use protobuf::{Message as _, MessageField};

use super::shim::Shim;
use crate::error::TaskError;
use crate::vm;

const METRICS: &str = "io.containerd.cgroups.v2.Metrics";

/// What the task uses: a container in its guest, a pod's sandbox on the host.
pub async fn stats(shim: &Shim, id: &str) -> Result<StatsResponse, TaskError> {
    let task = shim.task(id)?;
    if task.init.exit().is_some() {
        // The host may have given the monitor's number to another process.
        return Err(TaskError::not_found(format!("Task {id} has ended: it uses nothing")));
    }
    let metrics = match &task.container {
        Some(container) => of_container(container.stats().await?),
        None => of_vm(vm::usage(task.pid).map_err(|error| TaskError::internal(&error))?),
    };
    let value = metrics.write_to_bytes().map_err(|error| TaskError::internal(&error))?;
    let stats = MessageField::some(Any { type_url: METRICS.into(), value, ..Default::default() });
    Ok(StatsResponse { stats, ..Default::default() })
}

fn of_container(stats: ContainerStats) -> Metrics {
    let memory = |name: &str| stats.memory_stat.get(name).copied().unwrap_or(0);
    let event = |name: &str| stats.memory_events.get(name).copied().unwrap_or(0);
    Metrics {
        pids: MessageField::some(PidsStat {
            current: stats.pids_current,
            limit: stats.pids_limit,
            ..Default::default()
        }),
        cpu: MessageField::some(CPUStat {
            usage_usec: stats.cpu_usage_us,
            user_usec: stats.cpu_user_us,
            system_usec: stats.cpu_system_us,
            nr_periods: stats.cpu_periods,
            nr_throttled: stats.cpu_throttled_periods,
            throttled_usec: stats.cpu_throttled_us,
            ..Default::default()
        }),
        memory: MessageField::some(MemoryStat {
            usage: stats.memory_usage_bytes,
            usage_limit: limit(stats.memory_limit_bytes),
            max_usage: stats.memory_peak_bytes,
            anon: memory("anon"),
            file: memory("file"),
            kernel_stack: memory("kernel_stack"),
            slab: memory("slab"),
            sock: memory("sock"),
            shmem: memory("shmem"),
            file_mapped: memory("file_mapped"),
            file_dirty: memory("file_dirty"),
            file_writeback: memory("file_writeback"),
            anon_thp: memory("anon_thp"),
            inactive_anon: memory("inactive_anon"),
            active_anon: memory("active_anon"),
            inactive_file: memory("inactive_file"),
            active_file: memory("active_file"),
            unevictable: memory("unevictable"),
            slab_reclaimable: memory("slab_reclaimable"),
            slab_unreclaimable: memory("slab_unreclaimable"),
            pgfault: memory("pgfault"),
            pgmajfault: memory("pgmajfault"),
            workingset_refault: memory("workingset_refault_anon").saturating_add(memory("workingset_refault_file")),
            workingset_activate: memory("workingset_activate_anon").saturating_add(memory("workingset_activate_file")),
            workingset_nodereclaim: memory("workingset_nodereclaim"),
            pgrefill: memory("pgrefill"),
            pgscan: memory("pgscan"),
            pgsteal: memory("pgsteal"),
            pgactivate: memory("pgactivate"),
            pgdeactivate: memory("pgdeactivate"),
            pglazyfree: memory("pglazyfree"),
            pglazyfreed: memory("pglazyfreed"),
            thp_fault_alloc: memory("thp_fault_alloc"),
            thp_collapse_alloc: memory("thp_collapse_alloc"),
            ..Default::default()
        }),
        memory_events: MessageField::some(MemoryEvents {
            low: event("low"),
            high: event("high"),
            max: event("max"),
            oom: event("oom"),
            oom_kill: event("oom_kill"),
            ..Default::default()
        }),
        io: MessageField::some(IOStat { usage: stats.io.iter().map(of_device).collect(), ..Default::default() }),
        ..Default::default()
    }
}

/// The kernel writes "max" where there is no limit, and containerd the largest number.
fn limit(bytes: u64) -> u64 {
    if bytes == 0 { u64::MAX } else { bytes }
}

fn of_device(device: &hull_sandbox::container::DeviceIo) -> IOEntry {
    IOEntry {
        major: device.major,
        minor: device.minor,
        rbytes: device.read_bytes,
        wbytes: device.write_bytes,
        rios: device.read_operations,
        wios: device.write_operations,
        ..Default::default()
    }
}

/// Of a pod there is what its VM costs the host.
fn of_vm(usage: vm::Usage) -> Metrics {
    Metrics {
        cpu: MessageField::some(CPUStat {
            usage_usec: usage.user_us.saturating_add(usage.system_us),
            user_usec: usage.user_us,
            system_usec: usage.system_us,
            ..Default::default()
        }),
        memory: MessageField::some(MemoryStat {
            usage: usage.resident_bytes,
            usage_limit: u64::MAX,
            ..Default::default()
        }),
        pids: MessageField::some(PidsStat { current: usage.threads, ..Default::default() }),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_limit_is_the_largest_number_and_memory_counters_have_their_names() {
        let mut stats = ContainerStats { memory_usage_bytes: 7, cpu_usage_us: 5, ..Default::default() };
        stats.memory_stat.insert("anon".into(), 3);
        stats.memory_stat.insert("workingset_refault_anon".into(), 1);
        stats.memory_stat.insert("workingset_refault_file".into(), 2);
        let metrics = of_container(stats);
        assert_eq!((metrics.memory.usage, metrics.memory.usage_limit, metrics.memory.anon), (7, u64::MAX, 3));
        assert_eq!((metrics.memory.workingset_refault, metrics.cpu.usage_usec), (3, 5));
    }
}
