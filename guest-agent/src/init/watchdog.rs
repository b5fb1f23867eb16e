//! The machine's watchdog, if it has one: the host hears of the agent, or takes the machine for dead.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::sys;

const DEVICE: &str = "/dev/watchdog";
/// What has to be written before the device is closed, or it goes on (kernel: Documentation/watchdog/watchdog-api.rst).
const MAGIC_CLOSE: &[u8] = b"V";
/// How often it is reset within the time that the machine may be silent.
const RESETS: u32 = 3;
/// For a driver that doesn't tell its time.
const DEFAULT_TIMEOUT_S: u32 = 30;

/// The watchdog. It runs while it is open.
pub struct Watchdog {
    device: Mutex<Option<File>>,
    period: Duration,
}

impl Watchdog {
    /// Starts the watchdog. `None` if the machine has none.
    pub fn start() -> Option<Self> {
        let device = match OpenOptions::new().write(true).open(DEVICE) {
            Ok(device) => device,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                eprintln!("hull-agent: {DEVICE}: {error}");
                return None;
            }
        };
        let timeout_s = sys::watchdog_timeout_s(&device).unwrap_or(DEFAULT_TIMEOUT_S);
        Some(Self::over(device, Duration::from_secs(timeout_s.into())))
    }

    fn over(device: File, timeout: Duration) -> Self {
        Self { device: Mutex::new(Some(device)), period: timeout / RESETS }
    }

    /// Resets it again and again, until it is stopped. On the thread that serves the host: a service that is stuck is silence, too.
    pub async fn keep_alive(&self) {
        while self.reset() {
            tokio::time::sleep(self.period).await;
        }
    }

    /// The machine is about to end, and may be silent meanwhile.
    pub fn stop(&self) {
        let device = self.lock().take();
        if let Some(mut device) = device
            && let Err(error) = device.write_all(MAGIC_CLOSE)
        {
            eprintln!("hull-agent: {DEVICE}: {error}");
        }
    }

    /// False if it was stopped.
    fn reset(&self) -> bool {
        let mut device = self.lock();
        let Some(open) = device.as_mut() else { return false };
        // The host will notice what this means.
        if let Err(error) = open.write_all(b"\0") {
            eprintln!("hull-agent: {DEVICE}: {error}");
        }
        true
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<File>> {
        self.device.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_reset_within_its_time_and_closed_with_the_magic_letter() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let watchdog = Watchdog::over(file.reopen().unwrap(), Duration::from_secs(30));
        assert_eq!(watchdog.period, Duration::from_secs(10));
        assert!(watchdog.reset() && watchdog.reset());
        watchdog.stop();
        watchdog.stop();
        assert!(!watchdog.reset());
        assert_eq!(std::fs::read(file.path()).unwrap(), b"\0\0V");
    }
}
