//! The VM's watchdog: the function on the bus, and what its expiry means.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::config::WatchdogAction;
use crate::device::Alarm;
use crate::device::watchdog::WatchdogCounters;
use crate::log;
use crate::pci::{PciRoot, PlugError, WatchdogFunction};
use crate::report::ExitCause;
use crate::vm::EndSignal;

/// Lines in the log about one guest, which may be silent again and again.
const MAX_REPORTS: u64 = 16;

/// A watchdog in its slot.
pub struct VmWatchdog {
    function: Arc<WatchdogFunction>,
    action: WatchdogAction,
    reports: AtomicU64,
}

impl VmWatchdog {
    /// Plugs a watchdog. When `alarm` rings, [`VmWatchdog::check`] has to be called.
    pub fn plug(root: &PciRoot, action: WatchdogAction, alarm: Arc<Alarm>) -> Result<Self, PlugError> {
        Ok(Self { function: root.plug_watchdog(alarm)?, action, reports: AtomicU64::new(0) })
    }

    /// Looks whether the guest has been silent for too long, and does then what the configuration says.
    pub fn check(&self, now: Instant, end: &EndSignal) {
        let Some(silent) = self.function.due(now) else { return };
        match self.action {
            WatchdogAction::Stop => end.report(ExitCause::Watchdog, &message(silent)),
            WatchdogAction::Report if self.reports.fetch_add(1, Ordering::Relaxed) < MAX_REPORTS => {
                log::line(&message(silent));
            }
            WatchdogAction::Report => {}
        }
    }

    /// What has been counted.
    pub fn counters(&self) -> WatchdogCounters {
        self.function.timer_counters()
    }
}

fn message(silent: Duration) -> String {
    format!("The guest's watchdog expired: nothing was heard of the guest for {:.1} s", silent.as_secs_f64())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests stop at the first surprise")]

    use super::*;
    use crate::pci::PciSlot;
    use crate::virtio::testing::Machine;

    /// How a guest ends that starts its watchdog and is silent for ten minutes.
    fn after_silence(action: WatchdogAction) -> (Option<(ExitCause, String)>, WatchdogCounters) {
        let machine = Machine::new();
        let end = EndSignal::for_tests();
        let watchdog = VmWatchdog::plug(&machine.root, action, Arc::new(Alarm::new().unwrap())).unwrap();
        // 64 ms and nothing more.
        machine.config_write(PciSlot(1), 0x60, &[7, 0]);
        machine.config_write(PciSlot(1), 0x68, &[2]);
        watchdog.check(Instant::now(), &end);
        assert!(!end.is_set());
        watchdog.check(Instant::now() + Duration::from_secs(600), &end);
        (end.ending().map(|ending| (ending.cause, ending.message)), watchdog.counters())
    }

    #[test]
    fn silence_ends_the_machine_and_says_how_long_it_was() {
        let (end, counters) = after_silence(WatchdogAction::Stop);
        let (cause, message) = end.unwrap();
        assert_eq!(cause, ExitCause::Watchdog);
        assert!(message.contains("nothing was heard of the guest for 600."), "{message}");
        assert_eq!(counters.expirations, 1);
    }

    #[test]
    fn silence_is_only_counted_if_that_is_wanted() {
        let (end, counters) = after_silence(WatchdogAction::Report);
        assert_eq!(end, None);
        assert_eq!(counters.expirations, 1);
    }
}
