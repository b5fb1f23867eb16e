//! `hull-bench`: boots to "agent ready", counted, for hull-vmm and for QEMU's `microvm` with the same kernel, initramfs,
//! memory and devices.
//!
//! Needs root, KVM and tracefs, so that `make bench` starts it in the testbed. Wall time is given as a ratio only:
//! under emulation absolute times mean nothing.

mod boot;
mod memory;
mod monitor;
mod table;
mod trace;

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Parser;

use boot::Sample;

/// Counts VM exits and memory of a boot to "agent ready", for hull-vmm and QEMU microvm.
#[derive(Parser)]
struct Arguments {
    /// Prefix tree with bin/hull-vmm and lib/hull/{vmlinux,initramfs.cpio}.
    #[arg(long, env = "HULL_PREFIX")]
    prefix: PathBuf,
    /// Counted boots of each monitor, after one that is not counted.
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Guest memory in MiB.
    #[arg(long, default_value_t = 128)]
    memory_mib: u32,
    /// Virtual processors.
    #[arg(long, default_value_t = 1)]
    vcpus: u8,
    /// File for the raw samples, one JSON object a line.
    #[arg(long)]
    out: Option<PathBuf>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let setup = boot::Setup::new(&arguments.prefix, arguments.memory_mib, arguments.vcpus)?;
    let mut samples: Vec<Sample> = Vec::new();
    for run in 0..=arguments.runs {
        for monitor in monitor::ALL {
            let sample = boot::measure(&setup, monitor).with_context(|| format!("{} did not boot", monitor.name()))?;
            if run > 0 {
                samples.push(sample);
            }
        }
    }
    if let Some(out) = &arguments.out {
        let lines: Vec<String> = samples.iter().map(serde_json::to_string).collect::<Result<_, _>>()?;
        std::fs::write(out, lines.join("\n") + "\n").with_context(|| format!("Can't write {}", out.display()))?;
    }
    print!("{}", table::render(&samples, &setup));
    Ok(())
}
