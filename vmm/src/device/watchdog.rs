//! The watchdog timer of Intel's 6300ESB I/O controller hub (datasheet 300641, chapter 16): registers and time, without a bus and
//! without a clock.
//!
//! Two timers run one after the other, and a reload starts with the first again. No interrupt is wired to the end of the first,
//! so that both together are one span here. The free-running mode doesn't exist.

use std::time::{Duration, Instant};

use serde::Serialize;

/// Offset of the configuration register in PCI configuration space.
pub const CONFIGURATION: usize = 0x60;
/// Bits of the configuration register: type of the interrupt, clock, output.
pub const CONFIGURATION_BITS: u16 = 0x27;
/// Configuration: the timers count microseconds and not milliseconds.
const FAST_CLOCK: u16 = 1 << 2;
/// Configuration: an expiry has no effect.
const OUTPUT_DISABLED: u16 = 1 << 5;

/// Offset of the lock register in PCI configuration space.
pub const LOCK: usize = 0x68;
/// Bits of the lock register.
pub const LOCK_BITS: u8 = LOCKED | ENABLED;
/// Lock: the register can't be written any more.
pub const LOCKED: u8 = 1;
/// Lock: the timers run.
const ENABLED: u8 = 1 << 1;

/// Size of the registers in memory.
pub const REGISTER_BYTES: usize = 16;
/// Preload value of the first timer.
const PRELOAD_1: u64 = 0x0;
/// Preload value of the second timer.
const PRELOAD_2: u64 = 0x4;
/// Bits of a preload value.
const PRELOAD_BITS: u32 = 0xf_ffff;
/// Reload register.
const RELOAD: u64 = 0xc;
/// Reload: start again with the first timer.
const RELOAD_TIMERS: u32 = 1 << 8;
/// Reload: the timers have expired; writing it clears it.
const TIMED_OUT: u32 = 1 << 9;
/// What is written into the reload register, one after the other, before one other write is possible.
const KEYS: [u32; 2] = [0x80, 0x86];

/// A cycle of the PCI clock.
const CYCLE_NS: u64 = 30;
/// Cycles of one step of a timer, as a power of two.
const SLOW_CLOCK_SHIFT: u32 = 15;
const FAST_CLOCK_SHIFT: u32 = 5;

/// What has been counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct WatchdogCounters {
    /// Times that the guest has reloaded the timers.
    pub reloads: u64,
    /// Times that they have expired.
    pub expirations: u64,
}

/// The state of the device.
pub struct Watchdog {
    preload: [u32; 2],
    /// How many of the keys were written.
    keys: usize,
    configuration: u16,
    enabled: bool,
    timed_out: bool,
    running: Option<Span>,
    paused_at: Option<Instant>,
    counters: WatchdogCounters,
}

/// The time between a reload and the end of the second timer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Span {
    start: Instant,
    end: Instant,
}

impl Watchdog {
    /// A watchdog after power-on: it doesn't run, and its timers are set to their longest time.
    pub fn new() -> Self {
        Self {
            preload: [PRELOAD_BITS; 2],
            keys: 0,
            configuration: 0,
            enabled: false,
            timed_out: false,
            running: None,
            paused_at: None,
            counters: WatchdogCounters::default(),
        }
    }

    /// The registers as they read now.
    pub fn registers(&self) -> [u8; REGISTER_BYTES] {
        let mut bytes = [0; REGISTER_BYTES];
        let [first, second] = self.preload;
        let reload = if self.timed_out { TIMED_OUT } else { 0 };
        for (to, word) in bytes.chunks_exact_mut(4).zip([first, second, 0, reload]) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// A write by the guest to its registers at `now`. What is not a register, or not unlocked, is ignored.
    pub fn write(&mut self, offset: u64, data: &[u8], now: Instant) {
        let mut value = [0; 4];
        let Some(bytes) = value.get_mut(..data.len()) else { return };
        bytes.copy_from_slice(data);
        let value = u32::from_le_bytes(value);
        if offset == RELOAD && KEYS.get(self.keys) == Some(&value) {
            self.keys += 1;
            return;
        }
        // The keys are good for one write. The first key may come at any time.
        let unlocked = self.keys == KEYS.len();
        self.keys = usize::from(offset == RELOAD && KEYS.first() == Some(&value));
        if !unlocked {
            return;
        }
        match (offset, data.len()) {
            (RELOAD, _) => {
                self.timed_out &= value & TIMED_OUT == 0;
                if value & RELOAD_TIMERS != 0 {
                    self.counters.reloads += 1;
                    self.restart(now);
                }
            }
            (PRELOAD_1, 4) => self.preload = [value & PRELOAD_BITS, self.preload[1]],
            (PRELOAD_2, 4) => self.preload = [self.preload[0], value & PRELOAD_BITS],
            _ => {}
        }
    }

    /// The two registers in configuration space have these values since `now`.
    pub fn configure(&mut self, configuration: u16, lock: u8, now: Instant) {
        self.configuration = configuration;
        let enabled = lock & ENABLED != 0;
        if enabled != std::mem::replace(&mut self.enabled, enabled) {
            self.restart(now);
        }
    }

    /// Whether the guest has enabled it.
    pub fn is_enabled(&self) -> bool {
        self.enabled
    }

    /// Time that is left, if it runs.
    pub fn left(&self, now: Instant) -> Option<Duration> {
        let running = self.running.filter(|_| self.paused_at.is_none());
        running.map(|span| span.end.saturating_duration_since(now))
    }

    /// If the time is over: how long the guest has been silent. The timers stand still until the next reload.
    pub fn expire(&mut self, now: Instant) -> Option<Duration> {
        if self.left(now) != Some(Duration::ZERO) {
            return None;
        }
        let span = self.running.take()?;
        self.timed_out = true;
        self.counters.expirations += 1;
        let effective = self.configuration & OUTPUT_DISABLED == 0;
        effective.then(|| now.saturating_duration_since(span.start))
    }

    /// Time stands still.
    pub fn pause(&mut self, now: Instant) {
        self.paused_at.get_or_insert(now);
    }

    /// Time goes on.
    pub fn resume(&mut self, now: Instant) {
        let Some(since) = self.paused_at.take() else { return };
        let slept = now.saturating_duration_since(since);
        if let Some(span) = &mut self.running {
            *span = Span { start: span.start + slept, end: span.end + slept };
        }
    }

    /// What has been counted.
    pub fn counters(&self) -> WatchdogCounters {
        self.counters
    }

    fn restart(&mut self, now: Instant) {
        let shift = if self.configuration & FAST_CLOCK == 0 { SLOW_CLOCK_SHIFT } else { FAST_CLOCK_SHIFT };
        let steps: u64 = self.preload.into_iter().map(u64::from).sum();
        // At most 21 bits, 15 bits and 5 bits.
        let time = Duration::from_nanos((steps << shift) * CYCLE_NS);
        self.running = self.enabled.then(|| Span { start: now, end: now + time });
    }
}

impl Default for Watchdog {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// What Linux's driver does.
    struct Driver {
        watchdog: Watchdog,
        now: Instant,
    }

    impl Driver {
        /// Set to `seconds`, and running.
        fn started(seconds: u32) -> Self {
            let mut this = Self { watchdog: Watchdog::new(), now: Instant::now() };
            this.watchdog.configure(0x0003, 0, this.now);
            for register in [PRELOAD_1, PRELOAD_2] {
                this.unlock();
                this.watchdog.write(register, &(seconds << 9).to_le_bytes(), this.now);
            }
            this.reload();
            this.watchdog.configure(0x0003, ENABLED, this.now);
            this
        }

        fn unlock(&mut self) {
            self.watchdog.write(RELOAD, &[0x80, 0], self.now);
            self.watchdog.write(RELOAD, &[0x86, 0], self.now);
        }

        fn reload(&mut self) {
            self.unlock();
            self.watchdog.write(RELOAD, &[0, 1], self.now);
        }

        fn silent_after(&mut self, time: Duration) -> Option<Duration> {
            self.now += time;
            self.watchdog.expire(self.now)
        }
    }

    #[test]
    fn a_silent_guest_is_noticed_after_its_time() {
        let mut driver = Driver::started(30);
        assert_eq!(driver.silent_after(30 * SECOND), None);
        let left = driver.watchdog.left(driver.now);
        assert!(left.is_some_and(|left| left > Duration::ZERO && left < SECOND), "{left:?}");
        let silent = driver.silent_after(SECOND);
        assert_eq!(silent, Some(31 * SECOND));
        assert_eq!(driver.watchdog.registers()[12..], [0, 2, 0, 0], "timed out");
        // Once for each silence.
        assert_eq!(driver.silent_after(1000 * SECOND), None);
        driver.reload();
        assert_eq!(driver.watchdog.registers()[12..], [0, 2, 0, 0]);
        driver.unlock();
        driver.watchdog.write(RELOAD, &[0, 2], driver.now);
        assert_eq!(driver.watchdog.registers()[12..], [0; 4], "cleared");
        assert_eq!(driver.silent_after(31 * SECOND), Some(31 * SECOND));
        assert_eq!(driver.watchdog.counters(), WatchdogCounters { reloads: 2, expirations: 2 });
    }

    #[test]
    fn a_guest_that_reloads_lives() {
        let mut driver = Driver::started(2);
        for _ in 0..100 {
            assert_eq!(driver.silent_after(2 * SECOND), None);
            driver.reload();
        }
        assert_eq!(driver.watchdog.counters(), WatchdogCounters { reloads: 101, expirations: 0 });
    }

    #[test]
    fn a_pause_does_not_count() {
        let mut driver = Driver::started(2);
        assert_eq!(driver.silent_after(SECOND), None);
        driver.watchdog.pause(driver.now);
        assert_eq!(driver.watchdog.left(driver.now), None);
        assert_eq!(driver.silent_after(1000 * SECOND), None);
        driver.watchdog.pause(driver.now);
        driver.watchdog.resume(driver.now);
        assert_eq!(driver.silent_after(SECOND), None);
        assert_eq!(driver.silent_after(SECOND), Some(3 * SECOND));
    }

    #[test]
    fn a_watchdog_that_is_off_does_not_expire() {
        let mut driver = Driver::started(2);
        driver.watchdog.configure(0x0003, 0, driver.now);
        assert_eq!(driver.silent_after(1000 * SECOND), None);
        driver.reload();
        assert_eq!(driver.watchdog.left(driver.now), None);
        driver.watchdog.configure(0x0003, ENABLED, driver.now);
        driver.watchdog.configure(0x0003 | OUTPUT_DISABLED, ENABLED, driver.now);
        assert_eq!(driver.silent_after(1000 * SECOND), None, "without effect");
        assert_eq!(driver.watchdog.counters().expirations, 1);
    }

    #[test]
    fn without_both_keys_nothing_is_written() {
        let mut driver = Driver::started(2);
        let before = driver.watchdog.registers();
        for keys in [&[][..], &[0x80], &[0x86], &[0x86, 0x80], &[0x80, 0x80], &[0x80, 0x81, 0x86]] {
            for key in keys {
                driver.watchdog.write(RELOAD, &[*key], driver.now);
            }
            driver.watchdog.write(PRELOAD_1, &[7; 4], driver.now);
            assert_eq!(driver.watchdog.registers(), before, "{keys:x?}");
        }
        driver.unlock();
        driver.watchdog.write(PRELOAD_1, &[7; 4], driver.now);
        driver.watchdog.write(PRELOAD_2, &[7; 4], driver.now);
        assert_eq!(driver.watchdog.registers()[..8], [7, 7, 7, 0, 0, 4, 0, 0], "the keys are good for one write");
    }

    #[test]
    fn the_fast_clock_counts_microseconds() {
        let mut driver = Driver::started(2);
        driver.watchdog.configure(FAST_CLOCK, ENABLED, driver.now);
        driver.reload();
        assert!(driver.watchdog.left(driver.now).is_some_and(|left| left < Duration::from_millis(3)));
    }

    proptest! {
        #[test]
        fn no_access_does_harm(accesses in prop::collection::vec(
            (0u64..20, prop::collection::vec(prop::sample::select(vec![0, 1, 2, 0x80, 0x86, 0xff]), 0..9), any::<(u16, u8, u8)>()), 0..200,
        )) {
            let mut watchdog = Watchdog::new();
            let mut now = Instant::now();
            for (offset, data, (configuration, lock, seconds)) in accesses {
                watchdog.write(offset, &data, now);
                watchdog.configure(configuration, lock, now);
                now += u32::from(seconds) * SECOND;
                let left = watchdog.left(now);
                // The longest time of both timers.
                prop_assert!(left.is_none_or(|left| left <= 2062 * SECOND), "{left:?}");
                let silent = watchdog.expire(now);
                prop_assert!(silent.is_none() || left == Some(Duration::ZERO));
                prop_assert_eq!(watchdog.expire(now), None);
            }
        }
    }
}
