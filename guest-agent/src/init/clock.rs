//! Time and randomness, which only the host has.

use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_settime};

use crate::failure::{Context, Failure};
use crate::sys;

/// Sets the wall clock to nanoseconds since the epoch; 0 leaves it.
pub fn set(wall_clock_ns: u64) -> Result<(), Failure> {
    if wall_clock_ns == 0 {
        return Ok(());
    }
    let seconds = i64::try_from(wall_clock_ns / 1_000_000_000).context("set the clock")?;
    let nanoseconds = i64::try_from(wall_clock_ns % 1_000_000_000).context("set the clock")?;
    clock_settime(ClockId::CLOCK_REALTIME, TimeSpec::new(seconds, nanoseconds)).context("set the clock")
}

/// Seeds the kernel's random number generator and credits the seed.
pub fn seed(entropy: &[u8]) -> Result<(), Failure> {
    if entropy.len() > sys::MAX_ENTROPY_BYTES {
        return Err(Failure::invalid(format!("entropy has at most {} bytes", sys::MAX_ENTROPY_BYTES)));
    }
    if entropy.is_empty() {
        return Ok(());
    }
    sys::add_entropy(entropy).context("add entropy")
}
