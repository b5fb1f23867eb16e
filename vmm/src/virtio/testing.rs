//! A machine and a driver for tests: a driver that talks to devices as Linux does, through configuration space, registers
//! and rings in memory, and that can also do everything wrong.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "tests stop at the first surprise"
)]

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::counters::Counters;
use super::device::{ActiveQueue, Interrupt, VirtioDevice};
use super::queue::VirtQueue;
use super::spec::pci::{cap, common};
use super::spec::{feature, status};
use crate::bus::BusDevice;
use crate::interrupt::{Fabric, Gsi, MsiMessage};
use crate::memory::{GuestRam, HostRange};
use crate::memory_slots::{Access, MemorySlots, SlotId};
use crate::pci::{ConfigSpaceMemory, PciRoot, PciSlot};

/// Where the test machine has its BAR window.
pub const WINDOW: std::ops::Range<u64> = 0xe010_0000..0xf010_0000;
const PATIENCE: Duration = Duration::from_secs(20);
const MIB: u64 = 1 << 20;

/// Pages that tests can read.
pub struct FakePages(Mutex<Vec<u8>>);

impl ConfigSpaceMemory for FakePages {
    fn store(&self, offset: usize, data: &[u8]) {
        self.0.lock().unwrap()[offset..offset + data.len()].copy_from_slice(data);
    }
}

impl FakePages {
    pub fn read(&self, offset: usize, data: &mut [u8]) {
        data.copy_from_slice(&self.0.lock().unwrap()[offset..offset + data.len()]);
    }
}

/// A fabric that remembers.
#[derive(Default)]
pub struct FakeFabric {
    doorbells: Mutex<HashMap<u64, EventFd>>,
    interrupts: Mutex<HashMap<Gsi, (EventFd, Option<MsiMessage>)>>,
}

impl Fabric for FakeFabric {
    fn attach_doorbell(&self, address: GuestAddress, doorbell: &EventFd) -> io::Result<()> {
        let mut doorbells = self.doorbells.lock().unwrap();
        if doorbells.contains_key(&address.0) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        doorbells.insert(address.0, doorbell.try_clone()?);
        Ok(())
    }

    fn detach_doorbell(&self, address: GuestAddress, _doorbell: &EventFd) -> io::Result<()> {
        self.doorbells.lock().unwrap().remove(&address.0).map(drop).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn attach_interrupt(&self, irqfd: &EventFd) -> io::Result<Gsi> {
        let mut interrupts = self.interrupts.lock().unwrap();
        let gsi = Gsi(interrupts.len() as u32);
        interrupts.insert(gsi, (irqfd.try_clone()?, None));
        Ok(gsi)
    }

    fn route_msi(&self, gsi: Gsi, message: Option<MsiMessage>) -> io::Result<()> {
        self.interrupts.lock().unwrap().get_mut(&gsi).unwrap().1 = message;
        Ok(())
    }

    fn detach_interrupt(&self, gsi: Gsi, _irqfd: &EventFd) -> io::Result<()> {
        self.interrupts.lock().unwrap().remove(&gsi);
        Ok(())
    }
}

impl FakeFabric {
    /// Addresses of doorbells that cause no exit.
    pub fn doorbell_addresses(&self) -> Vec<u64> {
        let mut addresses: Vec<_> = self.doorbells.lock().unwrap().keys().copied().collect();
        addresses.sort_unstable();
        addresses
    }

    /// Interrupts that were taken from the machine.
    pub fn interrupt_count(&self) -> usize {
        self.interrupts.lock().unwrap().len()
    }

    /// Messages delivered since the last call: the data of each and how often.
    pub fn take_messages(&self) -> Vec<(u32, u64)> {
        let interrupts = self.interrupts.lock().unwrap();
        let delivered = interrupts.values().filter_map(|(irqfd, message)| {
            let count = irqfd.read().ok()?;
            message.map(|message| (message.data, count))
        });
        delivered.collect()
    }
}

/// Slots that remember what is shown, and that can be full.
#[derive(Default)]
pub struct FakeSlots {
    pub shown: Mutex<BTreeMap<u32, HostRange>>,
    pub limit: Mutex<Option<usize>>,
}

impl MemorySlots for FakeSlots {
    fn show(&self, range: HostRange, _access: Access) -> io::Result<SlotId> {
        let mut shown = self.shown.lock().unwrap();
        if self.limit.lock().unwrap().is_some_and(|limit| shown.len() >= limit) {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        let number = (range.guest.0 / MIB) as u32;
        assert!(shown.insert(number, range).is_none(), "shown twice");
        Ok(SlotId(number))
    }

    fn hide(&self, SlotId(number): SlotId) -> io::Result<()> {
        self.shown.lock().unwrap().remove(&number).map(drop).ok_or(io::ErrorKind::NotFound.into())
    }
}

/// A machine with a PCI bus and nothing else.
pub struct Machine {
    pub root: Arc<PciRoot>,
    pub pages: Arc<FakePages>,
    pub fabric: Arc<FakeFabric>,
    pub memory: GuestRam,
    ecam: Arc<dyn BusDevice>,
    bars: Arc<dyn BusDevice>,
    next_free: Mutex<u64>,
}

impl Machine {
    /// 64 MiB of memory with a hole in the middle.
    pub fn new() -> Arc<Self> {
        let ranges = [(GuestAddress(0), 32 << 20), (GuestAddress(64 * MIB), 32 << 20)];
        let memory = GuestMemoryAtomic::new(GuestMemoryMmap::from_ranges(&ranges).unwrap());
        let pages = Arc::new(FakePages(Mutex::new(vec![0; 2 << 20])));
        let fabric = Arc::new(FakeFabric::default());
        let root = PciRoot::new(pages.clone(), WINDOW, fabric.clone(), memory.clone()).unwrap();
        let (ecam, bars) = (root.ecam_face(), root.bar_face());
        Arc::new(Self { root, pages, fabric, memory, ecam, bars, next_free: Mutex::new(0x1000) })
    }

    /// Plugs a device and gives it a driver.
    pub fn plug(self: &Arc<Self>, device: Box<dyn VirtioDevice>) -> Driver {
        let slot = self.root.plug("test", device).unwrap();
        Driver::new(Arc::clone(self), slot)
    }

    /// Free memory, aligned to 4096.
    pub fn allocate(&self, bytes: u64) -> u64 {
        let mut next = self.next_free.lock().unwrap();
        let address = *next;
        *next = (address + bytes).next_multiple_of(4096);
        assert!(*next <= 32 * MIB, "test memory is full");
        address
    }

    pub fn write(&self, address: u64, bytes: &[u8]) {
        self.memory.memory().write_slice(bytes, GuestAddress(address)).unwrap();
    }

    pub fn read(&self, address: u64, bytes: usize) -> Vec<u8> {
        let mut data = vec![0; bytes];
        self.memory.memory().read_slice(&mut data, GuestAddress(address)).unwrap();
        data
    }

    pub fn config_write(&self, slot: PciSlot, register: usize, data: &[u8]) {
        self.ecam.write(u64::from(slot.0) << 15 | register as u64, data);
    }

    pub fn config_read<const N: usize>(&self, slot: PciSlot, register: usize) -> [u8; N] {
        let mut data = [0; N];
        self.pages.read(usize::from(slot.0) << 15 | register, &mut data);
        data
    }

    /// A write by the guest to a device address, as KVM would treat it.
    pub fn device_write(&self, address: u64, data: &[u8]) {
        if let Some(doorbell) = self.fabric.doorbells.lock().unwrap().get(&address) {
            doorbell.write(1).unwrap();
            return;
        }
        self.bars.write(address.wrapping_sub(WINDOW.start), data);
    }

    /// A read by the guest from a device address: from the pages where they are, else from the device.
    pub fn device_read<const N: usize>(&self, address: u64) -> [u8; N] {
        let mut data = [0; N];
        let offset = address.wrapping_sub(WINDOW.start);
        if offset < MIB {
            self.pages.read((MIB + offset) as usize, &mut data);
        } else {
            self.bars.read(offset, &mut data);
        }
        data
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.root.shutdown();
    }
}

/// A driver bound to one function.
pub struct Driver {
    pub machine: Arc<Machine>,
    pub slot: PciSlot,
    pub common: u64,
    pub notify: u64,
    pub isr: u64,
    pub device: u64,
    pub msix_table: u64,
    pub msix_capability: usize,
    pub queues: Vec<DriverQueue>,
}

impl Driver {
    fn new(machine: Arc<Machine>, slot: PciSlot) -> Self {
        let mut this = Self {
            machine,
            slot,
            common: 0,
            notify: 0,
            isr: 0,
            device: 0,
            msix_table: 0,
            msix_capability: 0,
            queues: Vec::new(),
        };
        this.machine.config_write(slot, 4, &[6, 4]);
        this.find_capabilities();
        this
    }

    fn find_capabilities(&mut self) {
        let [mut at] = self.machine.config_read::<1>(self.slot, 0x34).map(usize::from);
        while at != 0 {
            let [id, next, _, kind, bar] = self.machine.config_read(self.slot, at);
            let offset = u32::from_le_bytes(self.machine.config_read(self.slot, at + 8));
            match (id, kind) {
                (9, cap::COMMON) => self.common = self.bar(bar) + u64::from(offset),
                (9, cap::NOTIFY) => self.notify = self.bar(bar) + u64::from(offset),
                (9, cap::ISR) => self.isr = self.bar(bar) + u64::from(offset),
                (9, cap::DEVICE) => self.device = self.bar(bar) + u64::from(offset),
                (0x11, _) => {
                    let table = u32::from_le_bytes(self.machine.config_read(self.slot, at + 4));
                    self.msix_table = self.bar(table as u8 & 7) + u64::from(table & !7);
                    self.msix_capability = at;
                }
                _ => {}
            }
            at = usize::from(next);
        }
    }

    /// Address of a BAR.
    pub fn bar(&self, index: u8) -> u64 {
        u64::from_le_bytes(self.machine.config_read(self.slot, 0x10 + 4 * usize::from(index))) & !0xf
    }

    pub fn put8(&self, register: u64, value: u8) {
        self.machine.device_write(self.common + register, &[value]);
    }
    pub fn put16(&self, register: u64, value: u16) {
        self.machine.device_write(self.common + register, &value.to_le_bytes());
    }
    pub fn put32(&self, register: u64, value: u32) {
        self.machine.device_write(self.common + register, &value.to_le_bytes());
    }
    pub fn put64(&self, register: u64, value: u64) {
        self.put32(register, value as u32);
        self.put32(register + 4, (value >> 32) as u32);
    }
    pub fn get8(&self, register: u64) -> u8 {
        self.machine.device_read::<1>(self.common + register)[0]
    }
    pub fn get16(&self, register: u64) -> u16 {
        u16::from_le_bytes(self.machine.device_read(self.common + register))
    }
    pub fn get32(&self, register: u64) -> u32 {
        u32::from_le_bytes(self.machine.device_read(self.common + register))
    }

    pub fn status(&self) -> u8 {
        self.get8(common::DEVICE_STATUS)
    }

    pub fn device_features(&self) -> u64 {
        self.put32(common::DEVICE_FEATURE_SELECT, 0);
        let low = self.get32(common::DEVICE_FEATURE);
        self.put32(common::DEVICE_FEATURE_SELECT, 1);
        u64::from(self.get32(common::DEVICE_FEATURE)) << 32 | u64::from(low)
    }

    /// Resets, negotiates the given features (all that are offered if `None`).
    pub fn negotiate(&self, features: Option<u64>) {
        self.put8(common::DEVICE_STATUS, 0);
        assert_eq!(self.status(), 0);
        self.put8(common::DEVICE_STATUS, status::ACKNOWLEDGE);
        self.put8(common::DEVICE_STATUS, status::ACKNOWLEDGE | status::DRIVER);
        let features = features.unwrap_or_else(|| self.device_features());
        self.put32(common::DRIVER_FEATURE_SELECT, 0);
        self.put32(common::DRIVER_FEATURE, features as u32);
        self.put32(common::DRIVER_FEATURE_SELECT, 1);
        self.put32(common::DRIVER_FEATURE, (features >> 32) as u32);
        let bits = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK;
        self.put8(common::DEVICE_STATUS, bits);
    }

    /// Sets up MSI-X so that vector n sends the data n.
    pub fn enable_msix(&self) {
        let [size, _] = self.machine.config_read(self.slot, self.msix_capability + 2);
        for vector in 0..=u64::from(size) {
            let entry = self.msix_table + 16 * vector;
            self.machine.device_write(entry, &0xfee0_0000u32.to_le_bytes());
            self.machine.device_write(entry + 4, &[0; 4]);
            self.machine.device_write(entry + 8, &(vector as u32).to_le_bytes());
            self.machine.device_write(entry + 12, &[0; 4]);
        }
        self.machine.config_write(self.slot, self.msix_capability + 2, &0x8000u16.to_le_bytes());
    }

    /// Makes a queue of its largest size and enables it.
    pub fn add_queue(&mut self, index: u16) -> &mut DriverQueue {
        self.put16(common::QUEUE_SELECT, index);
        let size = self.get16(common::QUEUE_SIZE);
        let queue = self.make_queue(index, size);
        self.enable_queue(queue)
    }

    /// Rings for a queue, wherever there is room. The device doesn't know of them.
    pub fn make_queue(&self, index: u16, size: u16) -> DriverQueue {
        DriverQueue::new(&self.machine, index, size, self.notify + 4 * u64::from(index))
    }

    /// Tells the device of a queue and enables it.
    pub fn enable_queue(&mut self, queue: DriverQueue) -> &mut DriverQueue {
        self.put16(common::QUEUE_SELECT, queue.index);
        self.put16(common::QUEUE_SIZE, queue.size);
        self.put64(common::QUEUE_DESC_LO, queue.descriptors);
        self.put64(common::QUEUE_DRIVER_LO, queue.available);
        self.put64(common::QUEUE_DEVICE_LO, queue.used);
        self.put16(common::QUEUE_MSIX_VECTOR, 1);
        self.put16(common::QUEUE_ENABLE, 1);
        self.queues.push(queue);
        self.queues.last_mut().unwrap()
    }

    pub fn driver_ok(&self) {
        let bits = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK | status::DRIVER_OK;
        self.put8(common::DEVICE_STATUS, bits);
    }

    /// Does all that a driver does before it uses its device. Event index off: each completion is signalled.
    pub fn start(&mut self) {
        self.start_with(self.device_features() & !feature::RING_EVENT_IDX);
    }

    pub fn start_with(&mut self, features: u64) {
        self.queues.clear();
        self.enable_msix();
        self.negotiate(Some(features));
        assert_ne!(self.status() & status::FEATURES_OK, 0, "features refused");
        for index in 0..self.get16(common::NUM_QUEUES) {
            self.add_queue(index);
        }
        self.driver_ok();
        assert_eq!(self.status() & status::DEVICE_NEEDS_RESET, 0, "device doesn't start");
    }

    /// Waits until the device says that it needs a reset.
    pub fn wait_needs_reset(&self) {
        wait_for("DEVICE_NEEDS_RESET", || self.status() & status::DEVICE_NEEDS_RESET != 0);
    }
}

/// Waits for a condition.
pub fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < end, "waited in vain for {what}");
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// What `open` gives once a file is no longer `in_use`. A child that another test starts at that moment holds a file that was just
/// closed, with its lock, until it executes its program.
pub fn when_free<T, E: std::fmt::Debug>(in_use: impl Fn(&E) -> bool, open: impl Fn() -> Result<T, E>) -> T {
    let mut opened = None;
    wait_for("the file to be free", || {
        opened = Some(open()).filter(|result| !result.as_ref().err().is_some_and(&in_use));
        opened.is_some()
    });
    opened.unwrap().unwrap()
}

/// A driver that hears nothing.
struct NoInterrupt;

impl Interrupt for NoInterrupt {
    fn signal_used(&self, _queue_index: u16) {}
    fn signal_config(&self) {}
    fn show_config(&self, _offset: u64, _bytes: &[u8]) {}
    fn signal_needs_reset(&self, _reason: &str) {}
}

/// A part of a chain.
#[derive(Debug, Clone, Copy)]
pub struct Part {
    pub address: u64,
    pub len: u32,
    pub writable: bool,
}

/// A split virtqueue from the driver's side.
pub struct DriverQueue {
    machine: Arc<Machine>,
    pub index: u16,
    pub size: u16,
    pub descriptors: u64,
    pub available: u64,
    pub used: u64,
    pub doorbell: u64,
    next_descriptor: u16,
    available_index: u16,
    used_index: u16,
}

impl DriverQueue {
    fn new(machine: &Arc<Machine>, index: u16, size: u16, doorbell: u64) -> Self {
        let bytes = u64::from(size);
        let this = Self {
            machine: Arc::clone(machine),
            index,
            size,
            descriptors: machine.allocate(16 * bytes),
            available: machine.allocate(6 + 2 * bytes),
            used: machine.allocate(6 + 8 * bytes),
            doorbell,
            next_descriptor: 0,
            available_index: 0,
            used_index: 0,
        };
        machine.write(this.available, &vec![0; 6 + 2 * usize::from(size)]);
        machine.write(this.used, &vec![0; 6 + 8 * usize::from(size)]);
        this
    }

    /// The machine that it is in.
    pub fn machine(&self) -> &Arc<Machine> {
        &self.machine
    }

    /// The device's side, for a test without a device. Interrupts are counted in `counters` alone.
    pub fn device_side(&self, counters: &Arc<Counters>) -> VirtQueue {
        let mut queue = Queue::new(self.size).unwrap();
        let halves = |address: u64| (Some(address as u32), Some((address >> 32) as u32));
        let (low, high) = halves(self.descriptors);
        queue.set_desc_table_address(low, high);
        let (low, high) = halves(self.available);
        queue.set_avail_ring_address(low, high);
        let (low, high) = halves(self.used);
        queue.set_used_ring_address(low, high);
        queue.set_size(self.size);
        queue.set_ready(true);
        let doorbell = EventFd::new(EFD_NONBLOCK).unwrap();
        let active = ActiveQueue { index: self.index, queue, doorbell };
        VirtQueue::new(active, Arc::new(NoInterrupt), Arc::clone(counters))
    }

    /// Writes a raw descriptor.
    pub fn descriptor(&self, index: u16, address: u64, len: u32, flags: u16, next: u16) {
        let mut bytes = address.to_le_bytes().to_vec();
        bytes.extend(len.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        self.machine.write(self.descriptors + 16 * u64::from(index), &bytes);
    }

    /// Makes a chain available. At most a queue's size of descriptors may be in flight.
    pub fn add(&mut self, parts: &[Part]) -> u16 {
        let head = self.next_descriptor;
        for (i, part) in parts.iter().enumerate() {
            let at = self.next_descriptor;
            self.next_descriptor = (at + 1) % self.size;
            let last = i + 1 == parts.len();
            let flags = u16::from(!last) | if part.writable { 2 } else { 0 };
            self.descriptor(at, part.address, part.len, flags, self.next_descriptor);
        }
        self.offer(head);
        head
    }

    /// Puts a head into the available ring.
    pub fn offer(&mut self, head: u16) {
        let slot = self.available + 4 + 2 * u64::from(self.available_index % self.size);
        self.machine.write(slot, &head.to_le_bytes());
        self.set_available_index(self.available_index.wrapping_add(1));
    }

    pub fn set_available_index(&mut self, index: u16) {
        self.available_index = index;
        let memory = self.machine.memory.memory();
        memory.store(index.to_le(), GuestAddress(self.available + 2), std::sync::atomic::Ordering::Release).unwrap();
    }

    pub fn kick(&self) {
        self.machine.device_write(self.doorbell, &self.index.to_le_bytes());
    }

    /// The next used chain: its head and the number of bytes written.
    pub fn poll_used(&mut self) -> Option<(u16, u32)> {
        let memory = self.machine.memory.memory();
        let index: u16 = memory.load(GuestAddress(self.used + 2), std::sync::atomic::Ordering::Acquire).unwrap();
        if u16::from_le(index) == self.used_index {
            return None;
        }
        let element = self.machine.read(self.used + 4 + 8 * u64::from(self.used_index % self.size), 8);
        self.used_index = self.used_index.wrapping_add(1);
        let word = |at: usize| u32::from_le_bytes(element[at..at + 4].try_into().unwrap());
        Some((word(0) as u16, word(4)))
    }

    pub fn wait_used(&mut self) -> (u16, u32) {
        let mut used = None;
        wait_for("a used buffer", || {
            used = self.poll_used();
            used.is_some()
        });
        used.unwrap()
    }

    /// One request with one readable and one writable part; returns what was written.
    pub fn request(&mut self, readable: &[u8], writable: u32) -> Vec<u8> {
        let from = self.machine.allocate(readable.len().max(1) as u64);
        let to = self.machine.allocate(u64::from(writable).max(1));
        self.machine.write(from, readable);
        let mut parts = Vec::new();
        if !readable.is_empty() {
            parts.push(Part { address: from, len: readable.len() as u32, writable: false });
        }
        if writable > 0 {
            parts.push(Part { address: to, len: writable, writable: true });
        }
        self.add(&parts);
        self.kick();
        let (_, written) = self.wait_used();
        self.machine.read(to, written as usize)
    }
}
