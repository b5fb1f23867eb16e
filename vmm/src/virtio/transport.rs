//! The transport's state machine: device status, feature negotiation and queue set-up (virtio 1.2, sections 2.1, 3.1 and
//! 4.1.4.3), without any binding to a bus.
//!
//! Registers only change by a driver's write, by [`Registers::signal_needs_reset`] and by
//! [`Registers::config_changed`]; reading has no effect. So a binding may show them in memory that the guest reads freely.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, Ordering};

use virtio_queue::{Queue, QueueT};
use vm_memory::{GuestAddress, GuestAddressSpace, GuestMemory, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::device::{Activation, ActiveQueue, Interrupt, VirtioDevice};
use super::spec::pci::{NO_VECTOR, common};
use super::spec::{feature, ring, status};
use crate::memory::GuestRam;

/// The registers that a device's worker changes or looks at while vCPUs use the transport.
pub struct Registers {
    status: AtomicU8,
    generation: AtomicU8,
    isr: AtomicU8,
    config_vector: AtomicU16,
    queue_vectors: Box<[AtomicU16]>,
}

impl Registers {
    /// Registers of a device with `queues` queues, after reset.
    pub fn new(queues: usize) -> Arc<Self> {
        Arc::new(Self {
            status: AtomicU8::new(0),
            generation: AtomicU8::new(0),
            isr: AtomicU8::new(0),
            config_vector: AtomicU16::new(NO_VECTOR),
            queue_vectors: (0..queues).map(|_| AtomicU16::new(NO_VECTOR)).collect(),
        })
    }

    /// Device status.
    pub fn status(&self) -> u8 {
        self.status.load(Ordering::Acquire)
    }

    /// Configuration generation.
    pub fn generation(&self) -> u8 {
        self.generation.load(Ordering::Acquire)
    }

    /// Sets `DEVICE_NEEDS_RESET`. True if it wasn't set and the driver has to be told (section 2.1.2).
    pub fn set_needs_reset(&self) -> bool {
        self.status.fetch_or(status::DEVICE_NEEDS_RESET, Ordering::AcqRel) & status::DEVICE_NEEDS_RESET == 0
    }

    /// Device-specific configuration has changed, or is about to.
    pub fn next_generation(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
    }

    /// Sets interrupt status bits.
    pub fn set_isr(&self, bits: u8) {
        self.isr.fetch_or(bits, Ordering::AcqRel);
    }

    /// Reads and clears interrupt status (section 4.1.4.5).
    pub fn take_isr(&self) -> u8 {
        self.isr.swap(0, Ordering::AcqRel)
    }

    /// Vector of configuration changes.
    pub fn config_vector(&self) -> u16 {
        self.config_vector.load(Ordering::Acquire)
    }

    /// Vector of a queue.
    pub fn queue_vector(&self, queue: u16) -> u16 {
        self.queue_vectors.get(usize::from(queue)).map_or(NO_VECTOR, |vector| vector.load(Ordering::Acquire))
    }

    fn reset(&self) {
        self.config_vector.store(NO_VECTOR, Ordering::Release);
        for vector in &self.queue_vectors {
            vector.store(NO_VECTOR, Ordering::Release);
        }
        self.isr.store(0, Ordering::Release);
        self.status.store(0, Ordering::Release);
    }
}

/// What a register write has done, for the binding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Registers may have changed.
    Registers,
    /// The device has started: [`Transport::doorbells`] has its doorbells.
    Started,
    /// The device has been reset: there are no doorbells.
    Reset,
}

/// A queue as the driver describes it.
#[derive(Debug, Clone, Copy)]
struct QueueSetup {
    size: u16,
    enabled: bool,
    descriptor_table: u64,
    available_ring: u64,
    used_ring: u64,
}

impl QueueSetup {
    fn new(max_size: u16) -> Self {
        Self { size: max_size, enabled: false, descriptor_table: 0, available_ring: 0, used_ring: 0 }
    }

    /// Checks size, alignment and place (sections 2.7 and 4.1.4.3.2).
    fn check(&self, max_size: u16, memory: &GuestMemoryMmap) -> Result<(), &'static str> {
        if !self.size.is_power_of_two() || self.size > max_size {
            return Err("size is not a power of two or too large");
        }
        let parts = [
            (self.descriptor_table, ring::DESCRIPTOR_ALIGN, ring::descriptor_bytes(self.size)),
            (self.available_ring, ring::AVAILABLE_ALIGN, ring::available_bytes(self.size)),
            (self.used_ring, ring::USED_ALIGN, ring::used_bytes(self.size)),
        ];
        for (address, align, bytes) in parts {
            if address == 0 || !address.is_multiple_of(align) {
                return Err("a ring address is zero or not aligned");
            }
            if !memory.check_range(GuestAddress(address), bytes) {
                return Err("a ring is outside of guest memory");
            }
        }
        Ok(())
    }

    fn make(&self, max_size: u16, event_index: bool) -> Result<Queue, virtio_queue::Error> {
        let mut queue = Queue::new(max_size)?;
        queue.try_set_size(self.size)?;
        queue.try_set_desc_table_address(GuestAddress(self.descriptor_table))?;
        queue.try_set_avail_ring_address(GuestAddress(self.available_ring))?;
        queue.try_set_used_ring_address(GuestAddress(self.used_ring))?;
        queue.set_event_idx(event_index);
        queue.set_ready(true);
        Ok(queue)
    }
}

/// A device with the registers through which its driver sets it up.
pub struct Transport {
    device: Box<dyn VirtioDevice>,
    memory: GuestRam,
    registers: Arc<Registers>,
    interrupt: Arc<dyn Interrupt>,
    vectors: u16,
    device_feature_select: u32,
    driver_feature_select: u32,
    driver_features: u64,
    queue_select: u16,
    queues: Vec<QueueSetup>,
    doorbells: Vec<(u16, EventFd)>,
    active: bool,
    paused: bool,
}

impl Transport {
    /// A device after power-on. `interrupt` must be based on `registers`.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        memory: GuestRam,
        registers: Arc<Registers>,
        interrupt: Arc<dyn Interrupt>,
    ) -> Self {
        let queues = device.queue_max_sizes().iter().map(|&size| QueueSetup::new(size)).collect();
        let vectors = device.msix_vectors();
        Self {
            device,
            memory,
            registers,
            interrupt,
            vectors,
            device_feature_select: 0,
            driver_feature_select: 0,
            driver_features: 0,
            queue_select: 0,
            queues,
            doorbells: Vec::new(),
            active: false,
            paused: false,
        }
    }

    /// The device.
    pub fn device(&self) -> &dyn VirtioDevice {
        self.device.as_ref()
    }

    /// Queues of a started device with their doorbells.
    pub fn doorbells(&self) -> &[(u16, EventFd)] {
        &self.doorbells
    }

    /// Rings a doorbell, for a notification that reached the monitor as a write.
    pub fn notify(&self, queue: u64) {
        if let Some((_, doorbell)) = self.doorbells.iter().find(|(index, _)| u64::from(*index) == queue) {
            // A full counter already means that the doorbell rings.
            let _ = doorbell.write(1);
        }
    }

    /// All common configuration registers as they read now.
    pub fn common(&self) -> [u8; common::BYTES] {
        let mut bytes = [0; common::BYTES];
        let queue = self.selected();
        let available = queue.is_some();
        let queue = queue.copied().unwrap_or(QueueSetup { size: 0, ..QueueSetup::new(0) });
        let notify_off = if available { self.queue_select } else { 0 };
        let queue_vector = self.registers.queue_vector(self.queue_select);
        let num_queues = u16::try_from(self.queues.len()).unwrap_or(u16::MAX);
        let mut put = |offset: u64, value: &[u8]| {
            let at = usize::try_from(offset).unwrap_or(usize::MAX);
            if let Some(to) = bytes.get_mut(at..at.saturating_add(value.len())) {
                to.copy_from_slice(value);
            }
        };
        put(common::DEVICE_FEATURE_SELECT, &self.device_feature_select.to_le_bytes());
        put(common::DEVICE_FEATURE, &half(self.offered_features(), self.device_feature_select).to_le_bytes());
        put(common::DRIVER_FEATURE_SELECT, &self.driver_feature_select.to_le_bytes());
        put(common::DRIVER_FEATURE, &half(self.driver_features, self.driver_feature_select).to_le_bytes());
        put(common::CONFIG_MSIX_VECTOR, &self.registers.config_vector().to_le_bytes());
        put(common::NUM_QUEUES, &num_queues.to_le_bytes());
        put(common::DEVICE_STATUS, &[self.registers.status()]);
        put(common::CONFIG_GENERATION, &[self.registers.generation()]);
        put(common::QUEUE_SELECT, &self.queue_select.to_le_bytes());
        put(common::QUEUE_SIZE, &queue.size.to_le_bytes());
        put(common::QUEUE_MSIX_VECTOR, &queue_vector.to_le_bytes());
        put(common::QUEUE_ENABLE, &u16::from(queue.enabled).to_le_bytes());
        put(common::QUEUE_NOTIFY_OFF, &notify_off.to_le_bytes());
        put(common::QUEUE_DESC_LO, &queue.descriptor_table.to_le_bytes());
        put(common::QUEUE_DRIVER_LO, &queue.available_ring.to_le_bytes());
        put(common::QUEUE_DEVICE_LO, &queue.used_ring.to_le_bytes());
        bytes
    }

    /// Writes to the common configuration. Accesses that don't match a register are ignored (section 4.1.3.1 asks drivers for
    /// the natural width).
    pub fn write_common(&mut self, offset: u64, data: &[u8]) -> Effect {
        match *data {
            [a] => self.write_byte(offset, a),
            [a, b] => self.write_word(offset, u16::from_le_bytes([a, b])),
            [a, b, c, d] => self.write_double(offset, u32::from_le_bytes([a, b, c, d])),
            [a, b, c, d, e, f, g, h] => {
                self.write_double(offset, u32::from_le_bytes([a, b, c, d]));
                self.write_double(offset.saturating_add(4), u32::from_le_bytes([e, f, g, h]))
            }
            _ => Effect::Registers,
        }
    }

    /// Writes device-specific configuration.
    pub fn write_config(&mut self, offset: u64, data: &[u8]) {
        self.device.write_config(offset, data);
    }

    /// Stops touching guest memory.
    pub fn pause(&mut self) {
        if self.active && !self.paused {
            self.device.workers().pause();
            self.paused = true;
        }
    }

    /// Undoes [`Transport::pause`].
    pub fn resume(&mut self) {
        if self.paused {
            self.device.workers().resume();
            self.paused = false;
        }
    }

    /// Resets the device and waits for its worker (section 2.4).
    pub fn reset(&mut self) {
        if self.active {
            self.device.reset();
            self.active = false;
            self.paused = false;
        }
        self.doorbells.clear();
        self.device_feature_select = 0;
        self.driver_feature_select = 0;
        self.driver_features = 0;
        self.queue_select = 0;
        for (queue, &max_size) in self.queues.iter_mut().zip(self.device.queue_max_sizes()) {
            *queue = QueueSetup::new(max_size);
        }
        self.registers.reset();
    }

    fn offered_features(&self) -> u64 {
        self.device.device_features() | feature::TRANSPORT
    }

    fn selected(&self) -> Option<&QueueSetup> {
        self.queues.get(usize::from(self.queue_select))
    }

    fn write_byte(&mut self, offset: u64, value: u8) -> Effect {
        if offset == common::DEVICE_STATUS {
            return self.write_status(value);
        }
        Effect::Registers
    }

    fn write_word(&mut self, offset: u64, value: u16) -> Effect {
        match offset {
            common::QUEUE_SELECT => self.queue_select = value,
            common::CONFIG_MSIX_VECTOR => {
                self.registers.config_vector.store(self.vector(value), Ordering::Release);
            }
            common::QUEUE_MSIX_VECTOR => {
                let value = self.vector(value);
                if let Some(vector) = self.registers.queue_vectors.get(usize::from(self.queue_select)) {
                    vector.store(value, Ordering::Release);
                }
            }
            common::QUEUE_SIZE => self.set_up(|queue| queue.size = value),
            common::QUEUE_ENABLE if value == 1 => self.enable_queue(),
            _ => {}
        }
        Effect::Registers
    }

    fn write_double(&mut self, offset: u64, value: u32) -> Effect {
        match offset {
            common::DEVICE_FEATURE_SELECT => self.device_feature_select = value,
            common::DRIVER_FEATURE_SELECT => self.driver_feature_select = value,
            common::DRIVER_FEATURE if self.registers.status() & status::FEATURES_OK == 0 => {
                let features = &mut self.driver_features;
                match self.driver_feature_select {
                    0 => set_low(features, value),
                    1 => set_high(features, value),
                    _ => {}
                }
            }
            common::QUEUE_DESC_LO => self.set_up(|queue| set_low(&mut queue.descriptor_table, value)),
            common::QUEUE_DESC_HI => self.set_up(|queue| set_high(&mut queue.descriptor_table, value)),
            common::QUEUE_DRIVER_LO => self.set_up(|queue| set_low(&mut queue.available_ring, value)),
            common::QUEUE_DRIVER_HI => self.set_up(|queue| set_high(&mut queue.available_ring, value)),
            common::QUEUE_DEVICE_LO => self.set_up(|queue| set_low(&mut queue.used_ring, value)),
            common::QUEUE_DEVICE_HI => self.set_up(|queue| set_high(&mut queue.used_ring, value)),
            _ => {}
        }
        Effect::Registers
    }

    /// A vector that the device doesn't have reads back as none (section 4.1.5.1.2.1).
    fn vector(&self, value: u16) -> u16 {
        if value < self.vectors { value } else { NO_VECTOR }
    }

    /// Changes the selected queue, unless it is in use (section 4.1.4.3.2).
    fn set_up(&mut self, change: impl FnOnce(&mut QueueSetup)) {
        if self.active {
            return;
        }
        let queue = self.queues.get_mut(usize::from(self.queue_select));
        if let Some(queue) = queue.filter(|queue| !queue.enabled) {
            change(queue);
        }
    }

    fn enable_queue(&mut self) {
        let index = usize::from(self.queue_select);
        let max_size = self.device.queue_max_sizes().get(index).copied().unwrap_or(0);
        let ready = self.registers.status() & status::FEATURES_OK != 0 && !self.active;
        let Some(queue) = self.queues.get_mut(index).filter(|_| ready) else { return };
        match queue.check(max_size, &self.memory.memory()) {
            Ok(()) => queue.enabled = true,
            Err(problem) => self.interrupt.signal_needs_reset(&format!("queue {index}: {problem}")),
        }
    }

    /// Section 3.1.1: bits are set in order, and only a reset clears them.
    fn write_status(&mut self, value: u8) -> Effect {
        if value == 0 {
            self.reset();
            return Effect::Reset;
        }
        let old = self.registers.status();
        let mut added = value & status::DRIVER_BITS & !old;
        if added & status::FEATURES_OK != 0 && !self.features_agreed(old | added) {
            added &= !status::FEATURES_OK;
        }
        let starting = added & status::DRIVER_OK != 0;
        if starting && (old | added) & status::FEATURES_OK == 0 {
            added &= !status::DRIVER_OK;
        }
        self.registers.status.fetch_or(added, Ordering::AcqRel);
        let startable = old & (status::DEVICE_NEEDS_RESET | status::FAILED) == 0;
        if added & status::DRIVER_OK != 0 && startable && !self.active {
            return self.start();
        }
        Effect::Registers
    }

    fn features_agreed(&self, status: u8) -> bool {
        status & status::DRIVER != 0
            && self.driver_features & !self.offered_features() == 0
            && self.driver_features & feature::VERSION_1 != 0
    }

    fn start(&mut self) -> Effect {
        match self.activate() {
            Ok(()) => Effect::Started,
            Err(problem) => {
                self.doorbells.clear();
                self.interrupt.signal_needs_reset(&problem);
                Effect::Registers
            }
        }
    }

    fn activate(&mut self) -> Result<(), String> {
        let event_index = self.driver_features & feature::RING_EVENT_IDX != 0;
        let mut queues = Vec::new();
        let setups = self.queues.iter().zip(self.device.queue_max_sizes());
        for (index, (setup, &max_size)) in (0u16..).zip(setups).filter(|(_, (setup, _))| setup.enabled) {
            let queue = setup.make(max_size, event_index).map_err(|error| format!("queue {index}: {error}"))?;
            let doorbell = EventFd::new(EFD_NONBLOCK).map_err(|error| error.to_string())?;
            self.doorbells.push((index, doorbell.try_clone().map_err(|error| error.to_string())?));
            queues.push(ActiveQueue { index, queue, doorbell });
        }
        let activation = Activation {
            memory: self.memory.clone(),
            queues,
            interrupt: Arc::clone(&self.interrupt),
            driver_features: self.driver_features,
        };
        if let Err(error) = self.device.activate(activation) {
            self.device.reset();
            return Err(error.to_string());
        }
        self.active = true;
        Ok(())
    }
}

fn half(bits: u64, select: u32) -> u32 {
    let bits = match select {
        0 => bits,
        1 => bits >> 32,
        _ => 0,
    };
    u32::try_from(bits & u64::from(u32::MAX)).unwrap_or(0)
}

fn set_low(to: &mut u64, value: u32) {
    *to = (*to & !u64::from(u32::MAX)) | u64::from(value);
}

fn set_high(to: &mut u64, value: u32) {
    *to = (*to & u64::from(u32::MAX)) | (u64::from(value) << 32);
}
