//! The watchdog as a PCI function. Its registers are read from memory, like those of virtio devices; a reload is three exits.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::ConfigSpaceMemory;
use super::config::{CONFIG_BYTES, ConfigSpace, Identity};
use super::page::{self, REGISTER_BYTES, RegisterPage};
use super::slot::{Decoded, PciFunction, Place};
use crate::device::Alarm;
use crate::device::watchdog::{self, Watchdog, WatchdogCounters};

/// "Other system peripheral" of Intel's 6300ESB.
const IDENTITY: Identity = Identity { vendor: 0x8086, device: 0x25ab, class: 0x08_8000, revision: 2 };
/// Number of the only BAR. It is larger than the chip's, so that it is alone in its pages.
const REGISTER_BAR: usize = 0;

/// A watchdog in a slot.
pub struct WatchdogFunction {
    pages: Arc<dyn ConfigSpaceMemory>,
    page: Arc<RegisterPage>,
    place: Place,
    alarm: Arc<Alarm>,
    state: Mutex<State>,
}

struct State {
    config: ConfigSpace,
    watchdog: Watchdog,
    registers: Option<u64>,
    /// Shut down: a vCPU that found the function just before finds nothing.
    gone: bool,
}

impl WatchdogFunction {
    /// Puts a watchdog into configuration space.
    pub(super) fn new(place: Place, pages: Arc<dyn ConfigSpaceMemory>, alarm: Arc<Alarm>) -> Self {
        let mut config = ConfigSpace::new(IDENTITY);
        config.add_bar(REGISTER_BAR, place.registers, REGISTER_BYTES as u64);
        config.allow(watchdog::CONFIGURATION, &watchdog::CONFIGURATION_BITS.to_le_bytes());
        config.allow(watchdog::LOCK, &[watchdog::LOCK_BITS]);
        pages.store(place.config_offset, config.bytes());
        let page = RegisterPage::new(Arc::clone(&pages));
        let watchdog = Watchdog::new();
        page.update(0, &watchdog.registers());
        let state = Mutex::new(State { config, watchdog, registers: None, gone: false });
        Self { pages, page, place, alarm, state }
    }

    /// Called when the alarm has rung: how long the guest has been silent, if its time is over. Once for each silence.
    pub fn due(&self, now: Instant) -> Option<Duration> {
        self.change(&mut self.lock(), now, |watchdog| watchdog.expire(now))
    }

    /// What has been counted.
    pub fn timer_counters(&self) -> WatchdogCounters {
        self.lock().watchdog.counters()
    }

    /// Lets `change` happen, shows the registers that it leaves, and sets the alarm anew.
    fn change<T>(&self, state: &mut State, now: Instant, change: impl FnOnce(&mut Watchdog) -> T) -> T {
        let result = change(&mut state.watchdog);
        self.page.update(0, &state.watchdog.registers());
        let left = state.watchdog.left(now).filter(|_| !state.gone);
        // Never with a valid descriptor. Nobody but the log could be told.
        if let Err(error) = self.alarm.set(left) {
            crate::log::line(&format!("can't set the watchdog's timer: {error}"));
        }
        result
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PciFunction for WatchdogFunction {
    fn write_config(&self, offset: usize, data: &[u8]) -> bool {
        let mut state = self.lock();
        if state.gone {
            return false;
        }
        let old = *state.config.bytes();
        state.config.write(offset, data);
        state.config.show_changes(&old, &*self.pages, self.place.config_offset);
        let configuration = state.config.word(watchdog::CONFIGURATION);
        let [lock, _] = state.config.word(watchdog::LOCK).to_le_bytes();
        if lock & watchdog::LOCKED != 0 {
            state.config.allow(watchdog::LOCK, &[0]);
        }
        let now = Instant::now();
        self.change(&mut state, now, |watchdog| watchdog.configure(configuration, lock, now));
        let registers = state.config.decoded_bar(REGISTER_BAR, REGISTER_BYTES as u64, &self.place.window);
        self.page.move_to(registers.and_then(|address| page::offset_of(address, &self.place.window)));
        registers != std::mem::replace(&mut state.registers, registers)
    }

    fn decoded(&self) -> Decoded {
        Decoded { registers: self.lock().registers, doorbells: None }
    }

    fn read_registers(&self, offset: u64, data: &mut [u8]) {
        self.page.read(usize::try_from(offset).unwrap_or(usize::MAX), data);
    }

    fn write_registers(&self, offset: u64, data: &[u8]) {
        let mut state = self.lock();
        if !state.gone {
            let now = Instant::now();
            self.change(&mut state, now, |watchdog| watchdog.write(offset, data, now));
        }
    }

    fn pause(&self) {
        let now = Instant::now();
        self.change(&mut self.lock(), now, |watchdog| watchdog.pause(now));
    }

    fn resume(&self) {
        let now = Instant::now();
        self.change(&mut self.lock(), now, |watchdog| watchdog.resume(now));
    }

    fn is_active(&self) -> bool {
        self.lock().watchdog.is_enabled()
    }

    fn shutdown(&self) {
        let mut state = self.lock();
        state.gone = true;
        state.registers = None;
        self.change(&mut state, Instant::now(), |_| ());
        self.page.move_to(None);
        self.pages.store(self.place.config_offset, &[0; CONFIG_BYTES]);
    }
}
