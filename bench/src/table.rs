//! The measurements as text: medians, a column a monitor.

use std::collections::BTreeSet;
use std::fmt::Write;

use crate::boot::{Sample, Setup};
use crate::monitor;

/// A table for people; the raw samples are elsewhere.
pub fn render(samples: &[Sample], setup: &Setup) -> String {
    let mut text = format!(
        "Boot to agent ready: {} vCPU, {} MiB, block + vsock + rng + console; medians\n\n",
        setup.vcpus, setup.memory_mib
    );
    let _ = write!(text, "{:34}", "");
    for monitor in monitor::ALL {
        let _ = write!(text, "{:>14}", monitor.name());
    }
    text.push('\n');
    row(&mut text, samples, "exits, counted", |sample| sample.exits.counted);
    row(&mut text, samples, "exits, all", |sample| sample.exits.total);
    let reasons: BTreeSet<&String> = samples.iter().flat_map(|sample| sample.exits.by_reason.keys()).collect();
    for reason in reasons {
        row(&mut text, samples, &format!("  {reason}"), |sample| {
            sample.exits.by_reason.get(reason).copied().unwrap_or(0)
        });
    }
    row(&mut text, samples, "memory beyond the guest's, KiB", |sample| sample.memory.overhead_kib());
    row(&mut text, samples, "guest memory touched, KiB", |sample| sample.memory.guest_kib);
    row(&mut text, samples, "wall time, % of the peer's", |sample| ratio_percent(samples, sample));
    text
}

fn row(text: &mut String, samples: &[Sample], name: &str, value: impl Fn(&Sample) -> u64) {
    let _ = write!(text, "{name:34}");
    for monitor in monitor::ALL {
        let values = samples.iter().filter(|sample| sample.monitor == monitor.name());
        let _ = write!(text, "{:>14}", median(values.map(&value).collect()));
    }
    text.push('\n');
}

fn ratio_percent(samples: &[Sample], sample: &Sample) -> u64 {
    let peer = monitor::ALL.last().map_or("", |monitor| monitor.name());
    let walls = samples.iter().filter(|other| other.monitor == peer);
    let base = median(walls.map(wall).collect()).max(1);
    wall(sample) * 100 / base
}

fn wall(sample: &Sample) -> u64 {
    u64::try_from(sample.wall_ms).unwrap_or(u64::MAX)
}

fn median(mut values: Vec<u64>) -> u64 {
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or(0)
}
