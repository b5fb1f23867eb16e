//! Memory that grows and shrinks, in the part that the VM was started with the possibility for.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::Machine;
use crate::error::SandboxError;

const PATH: &str = "/hotplug/memory";
/// How long the guest may go without plugging or unplugging a single block.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// Between two looks at how far it is.
const STEP: Duration = Duration::from_millis(50);

/// What the guest keeps beside what is in use. Asked for more, its kernel gives it, and then kills for want of memory.
const RESERVE_MIB: u32 = 32;

/// What became of a change of the memory's size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryChange {
    /// Size that was asked for, in MiB, in the unit in which memory is plugged.
    pub asked_mib: u32,
    /// Size that the VM has now, in MiB. More than was asked for if the guest could not give back all.
    pub now_mib: u32,
}

/// The monitor's view of memory that can be plugged; sizes in MiB.
#[derive(Debug, Clone, Copy)]
struct Hotplug {
    total: u32,
    block: u32,
    plugged: u32,
    requested: u32,
}

impl Machine {
    /// Changes the VM's memory to `size_mib`. If it can't grow so far, it is as before; if it can't shrink so far, it keeps
    /// what the guest did not give back, and the result says so.
    pub async fn set_memory(&self, size_mib: u32) -> Result<MemoryChange, SandboxError> {
        let base = self.base_mib().await?;
        let before = self.hotplug().await?;
        let most = base.saturating_add(before.total).min(self.max_memory_mib);
        if !(base..=most).contains(&size_mib) {
            return Err(SandboxError::MemoryRange { least_mib: base, most_mib: most });
        }
        // Rounded up to whole blocks.
        let asked = (size_mib - base).div_ceil(before.block.max(1)).saturating_mul(before.block).min(before.total);
        let wanted = if asked < before.plugged { asked.max(self.least(&before).await?) } else { asked };
        self.request(wanted).await?;
        let now = self.settle(wanted).await?;
        if now.plugged == wanted || wanted < before.plugged {
            if now.plugged != wanted {
                // The guest would go on trying, and the size would change long after.
                self.request(now.plugged).await?;
            }
            return Ok(MemoryChange {
                asked_mib: base.saturating_add(asked),
                now_mib: base.saturating_add(now.plugged),
            });
        }
        let reached_mib = base.saturating_add(now.plugged);
        self.request(before.requested).await?;
        self.settle(before.requested).await?;
        Err(SandboxError::MemoryNotTaken { asked_mib: base.saturating_add(wanted), reached_mib })
    }

    /// What has to stay plugged, because the guest uses the rest.
    async fn least(&self, now: &Hotplug) -> Result<u32, SandboxError> {
        let available = u32::try_from(self.state().await?.memory_available_bytes >> 20).unwrap_or(u32::MAX);
        let spare = available.saturating_sub(RESERVE_MIB);
        let block = now.block.max(1);
        Ok(now.plugged.saturating_sub(spare / block * block))
    }

    /// Waits until the guest has plugged what is wanted, or makes no progress any more.
    async fn settle(&self, wanted: u32) -> Result<Hotplug, SandboxError> {
        let mut last = self.hotplug().await?;
        let mut progress = Instant::now();
        while last.plugged != wanted && progress.elapsed() < self.patience {
            tokio::time::sleep(STEP).await;
            let now = self.hotplug().await?;
            if now.plugged.abs_diff(wanted) < last.plugged.abs_diff(wanted) {
                progress = Instant::now();
            }
            last = now;
        }
        Ok(last)
    }

    async fn request(&self, mib: u32) -> Result<(), SandboxError> {
        self.control.patch(PATH, &json!({ "requested_size_mib": mib })).await?;
        Ok(())
    }

    async fn hotplug(&self) -> Result<Hotplug, SandboxError> {
        let answer = self.control.get(PATH).await.map_err(|error| match error.status {
            Some(400 | 404) => SandboxError::MemoryFixed,
            _ => error.into(),
        })?;
        let size = |name| number(&answer, name).ok_or(SandboxError::Nonsense("hull-vmm"));
        Ok(Hotplug {
            total: size("total_size_mib")?,
            block: size("block_size_mib")?,
            plugged: size("plugged_size_mib")?,
            requested: size("requested_size_mib")?,
        })
    }

    /// Memory from the start.
    async fn base_mib(&self) -> Result<u32, SandboxError> {
        let answer = self.control.get("/machine-config").await?;
        number(&answer, "mem_size_mib").ok_or(SandboxError::Nonsense("hull-vmm"))
    }
}

fn number(answer: &Value, name: &str) -> Option<u32> {
    answer.get(name).and_then(Value::as_u64).and_then(|number| u32::try_from(number).ok())
}
