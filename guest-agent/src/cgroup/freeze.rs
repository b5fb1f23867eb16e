//! Stops a container's processes where they are.

use std::fs;
use std::path::Path;
use std::time::Duration;

use tokio::time::timeout;

use super::{value, watch};
use crate::failure::{Context, Failure};

/// A process that waits in the kernel stops only when it comes back from there.
const FREEZE_TIMEOUT: Duration = Duration::from_secs(10);

/// Stops every process of the cgroup, and returns when all stand still. If they don't in time, all go on.
pub async fn freeze(cgroup: &Path) -> Result<(), Failure> {
    write(cgroup, "1").context("pause the container")?;
    let stopped = watch::until(cgroup, "cgroup.events", |events| (value(events, "frozen") == 1).then_some(()));
    match timeout(FREEZE_TIMEOUT, stopped).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(failure)) => {
            let _ = write(cgroup, "0");
            Err(failure)
        }
        Err(_) => {
            let _ = write(cgroup, "0");
            Err(Failure::internal("a process of the container does not come to a stop"))
        }
    }
}

/// Lets them go on.
pub fn thaw(cgroup: &Path) -> Result<(), Failure> {
    write(cgroup, "0").context("resume the container")
}

fn write(cgroup: &Path, value: &str) -> std::io::Result<()> {
    fs::write(cgroup.join("cgroup.freeze"), value)
}
