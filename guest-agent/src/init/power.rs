//! The end of the virtual machine.

use std::fs;
use std::path::Path;
use std::time::Duration;

use nix::mount::{MntFlags, umount2};
use nix::sys::reboot::{RebootMode, reboot};

use crate::{cgroup, layout};

/// Longest wait for killed processes to go.
const KILL_TIMEOUT: Duration = Duration::from_secs(2);

/// Ends every container, then syncs and unmounts.
pub async fn quiesce() {
    let containers = Path::new(layout::CGROUP);
    if let Err(failure) = cgroup::kill_all(containers, KILL_TIMEOUT).await {
        eprintln!("hull-agent: {failure}");
    }
    nix::unistd::sync();
    // Innermost first. What is still busy was synced and goes with the machine.
    let Ok(mounts) = fs::read_to_string("/proc/self/mounts") else {
        return;
    };
    for target in mounts.lines().rev().filter_map(|line| line.split(' ').nth(1)) {
        if target.starts_with(layout::RUN) {
            let _ = umount2(target, MntFlags::MNT_DETACH);
        }
    }
}

/// Powers the virtual machine off (ACPI S5).
pub fn off() {
    let Err(error) = reboot(RebootMode::RB_POWER_OFF);
    eprintln!("hull-agent: power off: {error}");
}

/// A panic of PID 1 is written to the console, and then PID 1 ends: the kernel panics ("Attempted to kill init"), which
/// the host tells from an orderly end.
pub fn panic_means_kernel_panic() {
    std::panic::set_hook(Box::new(|panic| {
        eprintln!("hull-agent: {panic}");
        std::process::exit(1);
    }));
}
