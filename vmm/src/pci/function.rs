//! A virtio device as a PCI function (virtio 1.2, section 4.1).
//!
//! | BAR | offset | what | read by the guest |
//! |---|---|---|---|
//! | 0 | 0x0000 | common configuration | from memory |
//! | 0 | 0x0100 | device-specific configuration | from memory |
//! | 0 | 0x1000 | MSI-X table | from memory |
//! | 0 | 0x1800 | MSI-X pending bits | from memory |
//! | 2 | 4 × n | doorbell of queue n (write-only) | exit |
//! | 2 | 0x8_0000 | interrupt status | exit, and cleared |
//!
//! Doorbells are apart from what is read, because a write into a read-only memory slot takes a slower way through KVM than
//! one into nothing.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::EventFd;

use super::ConfigSpaceMemory;
use super::config::{CONFIG_BYTES, ConfigSpace, Identity};
use super::msix::{MAX_VECTORS, Msix};
use super::page::{
    self, DEVICE_CONFIG_BYTES, DEVICE_CONFIG_OFFSET, MSIX_PENDING_OFFSET, MSIX_TABLE_OFFSET, REGISTER_BYTES,
    RegisterPage,
};
use super::slot::{Decoded, PciFunction, Place};
use crate::interrupt::Fabric;
use crate::memory::GuestRam;
use crate::virtio::counters::Counters;
use crate::virtio::device::{Interrupt, VirtioDevice};
use crate::virtio::spec::pci::{self as spec, cap, common, isr};
use crate::virtio::spec::{device_type, status};
use crate::virtio::transport::{Effect, Registers, Transport};

/// Number of the register BAR.
const REGISTER_BAR: usize = 0;
/// Number of the doorbell BAR.
const DOORBELL_BAR: usize = 2;
/// Size of the doorbell BAR. Its alignment keeps it out of the first MiB of the window, where registers are.
pub const DOORBELL_BYTES: u64 = 1 << 20;
const ISR_OFFSET: u64 = 0x8_0000;
const DOORBELL_STRIDE: u32 = 4;
/// Identifiers of capabilities.
const CAP_VENDOR: u8 = 0x09;
const CAP_MSIX: u8 = 0x11;
/// Message control (PCI Local Bus 3.0, section 6.8.2.3).
const MSIX_ENABLE: u16 = 1 << 15;
const MSIX_FUNCTION_MASK: u16 = 1 << 14;

/// Broken rings that are reported for one device.
const MAX_REPORTS: u64 = 16;

/// A virtio device in a slot.
pub struct VirtioFunction {
    pages: Arc<dyn ConfigSpaceMemory>,
    fabric: Arc<dyn Fabric>,
    registers: Arc<Registers>,
    page: Arc<RegisterPage>,
    msix: Arc<Msix>,
    interrupt: Arc<dyn Interrupt>,
    place: Place,
    /// Offsets of capabilities that the guest writes to.
    msix_capability: usize,
    access_capability: usize,
    state: Mutex<State>,
}

struct State {
    config: ConfigSpace,
    transport: Transport,
    decoded: Decoded,
    attached: Vec<(GuestAddress, EventFd)>,
    /// Shut down: a vCPU that found the function just before finds nothing.
    gone: bool,
}

impl VirtioFunction {
    /// Puts a device into configuration space.
    pub fn new(
        name: &str,
        device: Box<dyn VirtioDevice>,
        place: Place,
        pages: Arc<dyn ConfigSpaceMemory>,
        fabric: Arc<dyn Fabric>,
        memory: GuestRam,
    ) -> Self {
        let vectors = device.msix_vectors().clamp(1, MAX_VECTORS);
        let queues = device.queue_max_sizes().len();
        let mut config = ConfigSpace::new(identity(device.device_type()));
        config.add_bar(REGISTER_BAR, place.registers, REGISTER_BYTES as u64);
        config.add_bar(DOORBELL_BAR, place.doorbells, DOORBELL_BYTES);
        let access_capability = add_virtio_capabilities(&mut config, queues);
        let msix_capability = add_msix_capability(&mut config, vectors);

        let registers = Registers::new(queues);
        let page = RegisterPage::new(Arc::clone(&pages));
        let msix = Msix::new(vectors, Arc::clone(&fabric), Arc::clone(&page));
        let interrupt: Arc<dyn Interrupt> = Arc::new(PciInterrupt {
            name: name.to_owned(),
            reports: AtomicU64::new(0),
            registers: Arc::clone(&registers),
            page: Arc::clone(&page),
            msix: Arc::clone(&msix),
        });
        let transport = Transport::new(device, memory, Arc::clone(&registers), Arc::clone(&interrupt));
        pages.store(place.config_offset, config.bytes());
        let state = State { config, transport, decoded: Decoded::default(), attached: Vec::new(), gone: false };
        let state = Mutex::new(state);
        let this =
            Self { pages, fabric, registers, page, msix, interrupt, place, msix_capability, access_capability, state };
        this.show_registers(&this.lock().transport, true);
        this
    }

    fn registers_written(&self, state: &mut State, offset: u64, data: &[u8]) {
        if state.gone {
            return;
        }
        let at = usize::try_from(offset).unwrap_or(usize::MAX);
        if at < common::BYTES {
            let effect = state.transport.write_common(offset, data);
            self.show_registers(&state.transport, effect == Effect::Reset);
            if effect != Effect::Registers {
                self.follow_doorbells(state);
            }
        } else if (DEVICE_CONFIG_OFFSET..DEVICE_CONFIG_OFFSET + DEVICE_CONFIG_BYTES).contains(&at) {
            state.transport.write_config((at - DEVICE_CONFIG_OFFSET) as u64, data);
            self.show_registers(&state.transport, true);
        } else if (MSIX_TABLE_OFFSET..MSIX_PENDING_OFFSET).contains(&at) {
            self.msix.write_table(at - MSIX_TABLE_OFFSET, data);
        }
    }

    fn show_registers(&self, transport: &Transport, with_config: bool) {
        self.page.update(0, &transport.common());
        self.page.refresh_status(&self.registers);
        if with_config {
            self.page.update(DEVICE_CONFIG_OFFSET, &device_config(transport));
        }
    }

    /// Makes memory and doorbells follow the BARs.
    fn follow_bars(&self, state: &mut State) -> bool {
        let window = &self.place.window;
        let decoded = Decoded {
            registers: state.config.decoded_bar(REGISTER_BAR, REGISTER_BYTES as u64, window),
            doorbells: state.config.decoded_bar(DOORBELL_BAR, DOORBELL_BYTES, window),
        };
        if decoded == state.decoded {
            return false;
        }
        state.decoded = decoded;
        self.page.move_to(decoded.registers.and_then(|address| page::offset_of(address, window)));
        self.follow_doorbells(state);
        true
    }

    /// Connects the doorbells of a started device whose doorbell BAR is decoded, and only those. One that can't be connected,
    /// because another device's is there or the host has no more, still works by an exit.
    fn follow_doorbells(&self, state: &mut State) {
        for (address, doorbell) in state.attached.drain(..) {
            let _ = self.fabric.detach_doorbell(address, &doorbell);
        }
        let Some(base) = state.decoded.doorbells else { return };
        for (queue, doorbell) in state.transport.doorbells() {
            let address = GuestAddress(base.saturating_add(u64::from(DOORBELL_STRIDE) * u64::from(*queue)));
            let Ok(doorbell) = doorbell.try_clone() else { continue };
            if self.fabric.attach_doorbell(address, &doorbell).is_ok() {
                state.attached.push((address, doorbell));
            }
        }
    }

    /// The window to BARs in configuration space (virtio 1.2, section 4.1.4.9). A write to its data goes to the register;
    /// a write to its address puts the register's value there. The guest reads it from memory, so a second read without
    /// a new address returns the same value.
    fn access_bar(&self, state: &mut State, written: Range<usize>) {
        let at = self.access_capability;
        let data_field = at + 16..at + 20;
        if written.end <= at || written.start >= data_field.end {
            return;
        }
        let bar = usize::from(state.config.bytes().get(at + 4).copied().unwrap_or(0xff));
        let offset = u64::from(state.config.double(at + 8));
        let Some(length) = usize::try_from(state.config.double(at + 12)).ok().filter(|n| matches!(n, 1 | 2 | 4)) else {
            return;
        };
        if !offset.is_multiple_of(length as u64) {
            return;
        }
        let mut value = state.config.double(data_field.start).to_le_bytes();
        let Some(data) = value.get_mut(..length) else { return };
        let is_write = written.start < data_field.end && written.end > data_field.start;
        match (bar, is_write) {
            (REGISTER_BAR, true) => self.registers_written(state, offset, data),
            (REGISTER_BAR, false) => self.read_registers(offset, data),
            (DOORBELL_BAR, true) if offset.is_multiple_of(u64::from(DOORBELL_STRIDE)) => {
                state.transport.notify(offset / u64::from(DOORBELL_STRIDE));
            }
            _ => {}
        }
        state.config.set(data_field.start, &value);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PciFunction for VirtioFunction {
    fn write_config(&self, offset: usize, data: &[u8]) -> bool {
        let mut state = self.lock();
        if state.gone {
            return false;
        }
        let old = *state.config.bytes();
        state.config.write(offset, data);
        self.access_bar(&mut state, offset..offset.saturating_add(data.len()));
        state.config.show_changes(&old, &*self.pages, self.place.config_offset);
        let control = state.config.word(self.msix_capability + 2);
        self.msix.set_control(control & MSIX_ENABLE != 0, control & MSIX_FUNCTION_MASK != 0);
        self.follow_bars(&mut state)
    }

    fn decoded(&self) -> Decoded {
        self.lock().decoded
    }

    fn read_registers(&self, offset: u64, data: &mut [u8]) {
        self.page.read(usize::try_from(offset).unwrap_or(usize::MAX), data);
    }

    fn write_registers(&self, offset: u64, data: &[u8]) {
        self.registers_written(&mut self.lock(), offset, data);
    }

    fn read_doorbells(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(first) = data.first_mut().filter(|_| offset == ISR_OFFSET) {
            *first = self.registers.take_isr();
        }
    }

    fn write_doorbells(&self, offset: u64, _data: &[u8]) {
        let stride = u64::from(DOORBELL_STRIDE);
        if offset.is_multiple_of(stride) {
            self.lock().transport.notify(offset / stride);
        }
    }

    fn pause(&self) {
        self.lock().transport.pause();
    }

    fn resume(&self) {
        self.lock().transport.resume();
    }

    fn config_changed(&self) {
        let config = device_config(&self.lock().transport);
        self.interrupt.show_config(0, &config);
        self.interrupt.signal_config();
    }

    fn counters(&self) -> Option<Arc<Counters>> {
        Some(Arc::clone(self.lock().transport.device().counters()))
    }

    fn is_active(&self) -> bool {
        self.registers.status() & status::DRIVER_OK != 0
    }

    fn shutdown(&self) {
        let mut state = self.lock();
        state.gone = true;
        state.transport.reset();
        state.decoded = Decoded::default();
        self.follow_doorbells(&mut state);
        self.page.move_to(None);
        self.msix.detach();
        self.pages.store(self.place.config_offset, &[0; CONFIG_BYTES]);
    }
}

/// Device-specific configuration as the guest sees it: zeros behind what the device has.
fn device_config(transport: &Transport) -> [u8; DEVICE_CONFIG_BYTES] {
    let mut config = [0; DEVICE_CONFIG_BYTES];
    for (to, from) in config.iter_mut().zip(transport.device().config_space()) {
        *to = from;
    }
    config
}

fn identity(device_type: u16) -> Identity {
    let class = match device_type {
        device_type::NET => 0x02_0000,
        device_type::BLOCK => 0x01_8000,
        device_type::CONSOLE => 0x07_8000,
        _ => 0xff_0000,
    };
    Identity { vendor: spec::VENDOR_ID, device: spec::DEVICE_ID_BASE.saturating_add(device_type), class, revision: 1 }
}

/// Body of a virtio capability (section 4.1.4), without identifier and link.
fn virtio_capability(kind: u8, bar: usize, offset: u64, length: usize, extra: &[u8]) -> Vec<u8> {
    let fit = |value: u64| u32::try_from(value).unwrap_or(u32::MAX).to_le_bytes();
    let size = u8::try_from(16 + extra.len()).unwrap_or(u8::MAX);
    let mut body = vec![size, kind, u8::try_from(bar).unwrap_or(0xff), 0, 0, 0];
    body.extend(fit(offset));
    body.extend(fit(length as u64));
    body.extend(extra);
    body
}

/// Adds the capabilities in the order in which Linux looks for them. Returns the offset of the last: access through
/// configuration space.
fn add_virtio_capabilities(config: &mut ConfigSpace, queues: usize) -> usize {
    let mut add = |kind, bar, offset: u64, length, extra: &[u8]| {
        config.add_capability(CAP_VENDOR, &virtio_capability(kind, bar, offset, length, extra))
    };
    add(cap::COMMON, REGISTER_BAR, 0, common::BYTES, &[]);
    add(cap::ISR, DOORBELL_BAR, ISR_OFFSET, 4, &[]);
    let doorbell_bytes = queues.max(1).saturating_mul(DOORBELL_STRIDE as usize);
    add(cap::NOTIFY, DOORBELL_BAR, 0, doorbell_bytes, &DOORBELL_STRIDE.to_le_bytes());
    add(cap::DEVICE, REGISTER_BAR, DEVICE_CONFIG_OFFSET as u64, DEVICE_CONFIG_BYTES, &[]);
    let access = add(cap::PCI_CFG, REGISTER_BAR, 0, 0, &[0; 4]);
    config.allow(access + 4, &[0xff]);
    config.allow(access + 8, &[0xff; 12]);
    access
}

fn add_msix_capability(config: &mut ConfigSpace, vectors: u16) -> usize {
    let place = |offset: usize| u32::try_from(offset | REGISTER_BAR).unwrap_or(0).to_le_bytes();
    let mut body = vectors.saturating_sub(1).to_le_bytes().to_vec();
    body.extend(place(MSIX_TABLE_OFFSET));
    body.extend(place(MSIX_PENDING_OFFSET));
    let at = config.add_capability(CAP_MSIX, &body);
    config.allow(at + 2, &(MSIX_ENABLE | MSIX_FUNCTION_MASK).to_le_bytes());
    at
}

/// The device's way to its driver.
struct PciInterrupt {
    name: String,
    reports: AtomicU64,
    registers: Arc<Registers>,
    page: Arc<RegisterPage>,
    msix: Arc<Msix>,
}

impl PciInterrupt {
    fn next_generation(&self) {
        self.registers.next_generation();
        self.page.refresh_status(&self.registers);
    }
}

impl Interrupt for PciInterrupt {
    fn signal_used(&self, queue_index: u16) {
        if !self.msix.is_enabled() {
            self.registers.set_isr(isr::QUEUE);
            return;
        }
        self.msix.signal(self.registers.queue_vector(queue_index));
    }

    fn signal_config(&self) {
        self.registers.set_isr(isr::CONFIG);
        if self.registers.status() & status::DRIVER_OK != 0 {
            self.msix.signal(self.registers.config_vector());
        }
    }

    fn show_config(&self, offset: u64, bytes: &[u8]) {
        let Ok(at) = usize::try_from(offset) else { return };
        if at.checked_add(bytes.len()).is_some_and(|end| end <= DEVICE_CONFIG_BYTES) {
            // A driver that reads meanwhile sees a new generation, whether it began before the first byte changed or before the last
            // (sections 2.5.3 and 4.1.4.3.1).
            self.next_generation();
            self.page.update(DEVICE_CONFIG_OFFSET + at, bytes);
            self.next_generation();
        }
    }

    fn signal_needs_reset(&self, reason: &str) {
        if !self.registers.set_needs_reset() {
            return;
        }
        // A guest may break its rings and reset the device for ever.
        if self.reports.fetch_add(1, Ordering::Relaxed) < MAX_REPORTS {
            crate::log::line(&format!("device {} needs a reset: {reason}", self.name));
        }
        self.page.refresh_status(&self.registers);
        if self.registers.status() & status::DRIVER_OK != 0 {
            self.registers.set_isr(isr::CONFIG);
            self.msix.signal(self.registers.config_vector());
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use crate::virtio::testing::FakeFabric;

    /// Remembers where something was stored.
    #[derive(Default)]
    struct Stores(Mutex<Vec<usize>>);

    impl ConfigSpaceMemory for Stores {
        fn store(&self, offset: usize, _data: &[u8]) {
            self.0.lock().unwrap().push(offset);
        }
    }

    #[test]
    fn a_new_generation_is_shown_before_and_after_a_new_configuration() {
        let stores = Arc::new(Stores::default());
        let page = RegisterPage::new(stores.clone());
        page.move_to(Some(0));
        let msix = Msix::new(1, Arc::new(FakeFabric::default()), Arc::clone(&page));
        let registers = Registers::new(1);
        let interrupt = PciInterrupt { name: String::new(), reports: AtomicU64::new(0), registers, page, msix };
        stores.0.lock().unwrap().clear();
        interrupt.show_config(4, &[1]);
        let generation = usize::try_from(common::DEVICE_STATUS).unwrap() & !3;
        assert_eq!(*stores.0.lock().unwrap(), [generation, DEVICE_CONFIG_OFFSET + 4, generation]);
    }
}
