//! Doorbells and message-signalled interrupts.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use kvm_bindings::{KVM_IRQ_ROUTING_MSI, KvmIrqRouting, kvm_irq_routing_entry, kvm_irq_routing_msi};
use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::EventFd;

use crate::interrupt::{Fabric, Gsi, MsiMessage};

/// Number of interrupts of one VM; KVM's table holds 4,096 routes.
const MAX_GSIS: u32 = 2048;

/// [`Fabric`] on KVM's ioeventfd, irqfd and MSI routes.
pub struct KvmFabric {
    vm: Arc<VmFd>,
    /// Message of each interrupt in use. KVM takes the whole table at once, so the lock is held over the update.
    routes: Mutex<BTreeMap<Gsi, Option<MsiMessage>>>,
}

impl KvmFabric {
    pub(super) fn new(vm: Arc<VmFd>) -> Self {
        Self { vm, routes: Mutex::default() }
    }

    fn with_routes<T>(
        &self,
        change: impl FnOnce(&mut BTreeMap<Gsi, Option<MsiMessage>>) -> io::Result<T>,
    ) -> io::Result<T> {
        // A panic elsewhere can't leave the table half changed: changes are single inserts and removals.
        change(&mut self.routes.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn load(&self, routes: &BTreeMap<Gsi, Option<MsiMessage>>) -> io::Result<()> {
        let entries: Vec<_> =
            routes.iter().filter_map(|(gsi, message)| message.map(|message| msi_route(*gsi, message))).collect();
        let table = KvmIrqRouting::from_entries(&entries).map_err(|_| io::Error::other("too many interrupt routes"))?;
        self.vm.set_gsi_routing(&table).map_err(to_io)
    }
}

impl Fabric for KvmFabric {
    fn attach_doorbell(&self, address: GuestAddress, doorbell: &EventFd) -> io::Result<()> {
        // Without data match the length is 0: any width, and KVM's fast path.
        self.vm.register_ioevent(doorbell, &IoEventAddress::Mmio(address.0), NoDatamatch).map_err(to_io)
    }

    fn detach_doorbell(&self, address: GuestAddress, doorbell: &EventFd) -> io::Result<()> {
        self.vm.unregister_ioevent(doorbell, &IoEventAddress::Mmio(address.0), NoDatamatch).map_err(to_io)
    }

    fn attach_interrupt(&self, irqfd: &EventFd) -> io::Result<Gsi> {
        self.with_routes(|routes| {
            let gsi = (0..MAX_GSIS)
                .map(Gsi)
                .find(|gsi| !routes.contains_key(gsi))
                .ok_or_else(|| io::Error::other(format!("all {MAX_GSIS} interrupts are in use")))?;
            self.vm.register_irqfd(irqfd, gsi.0).map_err(to_io)?;
            routes.insert(gsi, None);
            Ok(gsi)
        })
    }

    fn route_msi(&self, gsi: Gsi, message: Option<MsiMessage>) -> io::Result<()> {
        self.with_routes(|routes| {
            let route = routes.get_mut(&gsi).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
            let before = std::mem::replace(route, message);
            if before == message {
                return Ok(());
            }
            let result = self.load(routes);
            if result.is_err() {
                routes.insert(gsi, before);
            }
            result
        })
    }

    fn detach_interrupt(&self, gsi: Gsi, irqfd: &EventFd) -> io::Result<()> {
        self.with_routes(|routes| {
            let before = routes.remove(&gsi).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
            self.vm.unregister_irqfd(irqfd, gsi.0).map_err(to_io)?;
            if before.is_some() {
                self.load(routes)?;
            }
            Ok(())
        })
    }
}

fn msi_route(gsi: Gsi, message: MsiMessage) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry { gsi: gsi.0, type_: KVM_IRQ_ROUTING_MSI, ..Default::default() };
    #[allow(clippy::cast_possible_truncation, reason = "the two halves of the address")]
    let (low, high) = (message.address as u32, (message.address >> 32) as u32);
    entry.u.msi = kvm_irq_routing_msi { address_lo: low, address_hi: high, data: message.data, ..Default::default() };
    entry
}

fn to_io(error: kvm_ioctls::Error) -> io::Error {
    io::Error::from_raw_os_error(error.errno())
}
