//! Limits: those that mean something in the guest.

use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxHugepageLimit, LinuxMemory, LinuxResources};

/// Limits of the host as limits in a guest. The numbers of processors, memory nodes and block devices are the host's, and what
/// only cgroup v1 can do does nothing here: they are left out.
pub fn guest_resources(host: &LinuxResources) -> LinuxResources {
    let mut guest = LinuxResources::default();
    guest
        .set_devices(host.devices().clone())
        .set_memory(host.memory().as_ref().map(memory))
        .set_cpu(host.cpu().as_ref().map(cpu))
        .set_pids(*host.pids())
        .set_block_io(host.block_io().as_ref().and_then(block_io))
        .set_hugepage_limits(host.hugepage_limits().as_deref().map(hugepages))
        .set_unified(host.unified().clone());
    guest
}

fn memory(host: &LinuxMemory) -> LinuxMemory {
    let mut guest = LinuxMemory::default();
    guest.set_limit(host.limit()).set_reservation(host.reservation()).set_swap(host.swap());
    guest
}

fn cpu(host: &LinuxCpu) -> LinuxCpu {
    let mut guest = LinuxCpu::default();
    guest
        .set_shares(host.shares())
        .set_quota(host.quota())
        .set_period(host.period())
        .set_burst(host.burst())
        .set_idle(host.idle());
    guest
}

fn block_io(host: &LinuxBlockIo) -> Option<LinuxBlockIo> {
    let weight = host.weight()?;
    let mut guest = LinuxBlockIo::default();
    guest.set_weight(Some(weight));
    Some(guest)
}

/// Kubernetes forbids every page size that its host has. The guest may not have that size, and then nobody can use it either.
fn hugepages(host: &[LinuxHugepageLimit]) -> Vec<LinuxHugepageLimit> {
    host.iter().filter(|limit| limit.limit() != 0).cloned().collect()
}
