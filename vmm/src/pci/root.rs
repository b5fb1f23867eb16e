//! The bus: slots, the enhanced configuration access mechanism (ECAM) and the window for BARs.

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use thiserror::Error;

use super::config::{CONFIG_BYTES, ConfigSpace, Identity};
use super::function::{DOORBELL_BYTES, VirtioFunction};
use super::page::REGISTER_BYTES;
use super::slot::{PciFunction, Place};
use super::watchdog::WatchdogFunction;
use super::{ConfigSpaceMemory, HALF_BYTES, SLOTS};
use crate::bus::BusDevice;
use crate::device::Alarm;
use crate::interrupt::Fabric;
use crate::memory::GuestRam;
use crate::virtio::counters::Counters;
use crate::virtio::device::VirtioDevice;

/// Bytes of ECAM for one function, and for one device with its eight functions.
const FUNCTION_BYTES: usize = 4096;
const DEVICE_BYTES: usize = 8 * FUNCTION_BYTES;
/// The window starts at a multiple of this.
const WINDOW_ALIGN: u64 = 1 << 20;
/// Distance of the register BARs of two slots.
const REGISTER_STRIDE: u64 = 2 * REGISTER_BYTES as u64;

/// Position on bus 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PciSlot(pub u8);

impl fmt::Display for PciSlot {
    /// As Linux writes it: `0000:00:05.0`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "0000:00:{:02x}.0", self.0)
    }
}

/// The bus can't be made.
#[derive(Debug, Error)]
pub enum PciError {
    /// The window is too small or not aligned.
    #[error("PCI window {0:#x}..{1:#x} must be aligned to 1 MiB and at least 64 MiB large")]
    Window(u64, u64),
}

/// A device can't be plugged.
#[derive(Debug, Error)]
pub enum PlugError {
    /// All 31 slots are taken.
    #[error("No free PCI slot for device {0}: bus 0 has 31")]
    Full(String),
}

/// PCI bus 0 and what is plugged into it.
pub struct PciRoot {
    pages: Arc<dyn ConfigSpaceMemory>,
    window: Range<u64>,
    fabric: Arc<dyn Fabric>,
    memory: GuestRam,
    slots: Mutex<Slots>,
    /// Who answers in the window: rebuilt when a BAR moves, read at each access.
    map: RwLock<Vec<Mapping>>,
}

type Slots = [Option<Arc<dyn PciFunction>>; SLOTS];

struct Mapping {
    range: Range<u64>,
    function: Arc<dyn PciFunction>,
    kind: BarKind,
}

#[derive(Clone, Copy)]
enum BarKind {
    Registers,
    Doorbells,
}

impl PciRoot {
    /// Makes the bus with its host bridge.
    ///
    /// `pages` are 2 MiB: the first half is the configuration space of bus 0, the second half the first MiB of
    /// `bar_window`, where the registers of devices are.
    pub fn new(
        pages: Arc<dyn ConfigSpaceMemory>,
        bar_window: Range<u64>,
        fabric: Arc<dyn Fabric>,
        memory: GuestRam,
    ) -> Result<Arc<PciRoot>, PciError> {
        let needed = DOORBELL_BYTES.saturating_mul(2 * SLOTS as u64);
        let bytes = bar_window.end.saturating_sub(bar_window.start);
        if !bar_window.start.is_multiple_of(WINDOW_ALIGN) || bytes < needed {
            return Err(PciError::Window(bar_window.start, bar_window.end));
        }
        pages.store(0, host_bridge().bytes());
        let slots = Mutex::new(std::array::from_fn(|_| None));
        Ok(Arc::new(Self { pages, window: bar_window, fabric, memory, slots, map: RwLock::default() }))
    }

    /// Puts a device into the next free slot and places its BARs, so that Linux needs not to.
    pub fn plug(&self, name: &str, device: Box<dyn VirtioDevice>) -> Result<PciSlot, PlugError> {
        let (pages, fabric, memory) = (Arc::clone(&self.pages), Arc::clone(&self.fabric), self.memory.clone());
        let (slot, _) = self.insert(name, |place| VirtioFunction::new(name, device, place, pages, fabric, memory))?;
        Ok(slot)
    }

    /// Puts a watchdog into the next free slot. It keeps `alarm` set to the time at which it is [due](WatchdogFunction::due).
    pub fn plug_watchdog(&self, alarm: Arc<Alarm>) -> Result<Arc<WatchdogFunction>, PlugError> {
        let pages = Arc::clone(&self.pages);
        let (_, function) = self.insert("watchdog", |place| WatchdogFunction::new(place, pages, alarm))?;
        Ok(function)
    }

    fn insert<F: PciFunction + 'static>(
        &self,
        name: &str,
        make: impl FnOnce(Place) -> F,
    ) -> Result<(PciSlot, Arc<F>), PlugError> {
        let mut slots = self.slots();
        // Slot 0 is the host bridge.
        let free = slots.iter_mut().zip(0u8..).skip(1).find(|(slot, _)| slot.is_none());
        let Some((slot, index)) = free else { return Err(PlugError::Full(name.to_owned())) };
        let number = u64::from(index);
        let function = Arc::new(make(Place {
            config_offset: usize::from(index) * DEVICE_BYTES,
            registers: self.window.start.saturating_add(number * REGISTER_STRIDE),
            doorbells: self.window.start.saturating_add(DOORBELL_BYTES * (1 + number)),
            window: self.window.clone(),
        }));
        *slot = Some(Arc::<F>::clone(&function));
        Ok((PciSlot(index), function))
    }

    /// Takes a device out: its worker ends, its registers and its configuration space are gone. The guest should have let go of it
    /// before. False if the slot is empty.
    pub fn unplug(&self, slot: PciSlot) -> bool {
        let function = self.slots().get_mut(usize::from(slot.0)).and_then(Option::take);
        // Without the lock on the slots: a vCPU that writes to another device needn't wait for the worker's end.
        let Some(function) = function else { return false };
        function.shutdown();
        self.rebuild_map();
        true
    }

    /// The device in `slot` changed its configuration: shows it to the guest and tells the driver.
    pub fn config_changed(&self, slot: PciSlot) {
        if let Some(function) = self.function(slot) {
            function.config_changed();
        }
    }

    /// What the device in `slot` has done so far.
    pub fn counters(&self, slot: PciSlot) -> Option<Arc<Counters>> {
        self.function(slot)?.counters()
    }

    /// Whether a driver has started the device in `slot`.
    pub fn is_active(&self, slot: PciSlot) -> bool {
        self.function(slot).is_some_and(|function| function.is_active())
    }

    /// Writes into the ECAM range. Reads never get here: the guest sees the pages.
    pub fn ecam_face(self: &Arc<Self>) -> Arc<dyn BusDevice> {
        Arc::new(EcamFace(Arc::clone(self)))
    }

    /// Accesses to the BAR window; reads of registers only if the guest doesn't see the pages there.
    pub fn bar_face(self: &Arc<Self>) -> Arc<dyn BusDevice> {
        Arc::new(BarFace(Arc::clone(self)))
    }

    /// Quiesces all devices: none touches guest memory until [`PciRoot::resume_devices`]. vCPUs must be paused already.
    pub fn pause_devices(&self) {
        for function in self.functions() {
            function.pause();
        }
    }

    /// Undoes [`PciRoot::pause_devices`].
    pub fn resume_devices(&self) {
        for function in self.functions() {
            function.resume();
        }
    }

    /// Stops all devices for good and joins their workers.
    pub fn shutdown(&self) {
        for function in self.functions() {
            function.shutdown();
        }
        self.write_map().clear();
        self.slots().fill(None);
    }

    fn write_config(&self, offset: u64, data: &[u8]) {
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        let (device, register) = (offset / DEVICE_BYTES, offset % DEVICE_BYTES);
        let function = self.slots().get(device).cloned().flatten();
        // Behind the first 256 bytes there is the extended configuration space, and then other functions: none has any.
        let Some(function) = function.filter(|_| register < CONFIG_BYTES) else { return };
        if function.write_config(register, data) {
            self.rebuild_map();
        }
    }

    /// Lists the decoded BARs. Where two overlap, the lower slot answers.
    fn rebuild_map(&self) {
        let functions = self.functions();
        let mut map = self.write_map();
        map.clear();
        for function in functions {
            let decoded = function.decoded();
            let bars = [
                (decoded.registers, REGISTER_BYTES as u64, BarKind::Registers),
                (decoded.doorbells, DOORBELL_BYTES, BarKind::Doorbells),
            ];
            for (start, size, kind) in bars {
                if let Some(start) = start {
                    let range = start..start.saturating_add(size);
                    map.push(Mapping { range, function: Arc::clone(&function), kind });
                }
            }
        }
    }

    fn find(&self, offset: u64, len: usize) -> Option<(Arc<dyn PciFunction>, BarKind, u64)> {
        let address = self.window.start.checked_add(offset)?;
        let end = address.checked_add(len as u64)?;
        let map = self.map.read().unwrap_or_else(PoisonError::into_inner);
        let mapping = map.iter().find(|mapping| mapping.range.start <= address && end <= mapping.range.end)?;
        Some((Arc::clone(&mapping.function), mapping.kind, address - mapping.range.start))
    }

    fn function(&self, slot: PciSlot) -> Option<Arc<dyn PciFunction>> {
        self.slots().get(usize::from(slot.0)).cloned().flatten()
    }

    fn functions(&self) -> Vec<Arc<dyn PciFunction>> {
        self.slots().iter().flatten().cloned().collect()
    }

    fn slots(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_map(&self) -> std::sync::RwLockWriteGuard<'_, Vec<Mapping>> {
        self.map.write().unwrap_or_else(PoisonError::into_inner)
    }
}

struct EcamFace(Arc<PciRoot>);

impl BusDevice for EcamFace {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if offset < HALF_BYTES as u64 {
            self.0.write_config(offset, data);
        }
    }
}

struct BarFace(Arc<PciRoot>);

impl BusDevice for BarFace {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match self.0.find(offset, data.len()) {
            Some((function, BarKind::Registers, at)) => function.read_registers(at, data),
            Some((function, BarKind::Doorbells, at)) => function.read_doorbells(at, data),
            None => data.fill(0xff),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        match self.0.find(offset, data.len()) {
            Some((function, BarKind::Registers, at)) => function.write_registers(at, data),
            Some((function, BarKind::Doorbells, at)) => function.write_doorbells(at, data),
            None => {}
        }
    }
}

/// The function at 0:0.0: Linux looks for nothing in it, people look for it with `lspci`.
fn host_bridge() -> ConfigSpace {
    ConfigSpace::new(Identity { vendor: 0x1b36, device: 0x0008, class: 0x06_0000, revision: 0 })
}
