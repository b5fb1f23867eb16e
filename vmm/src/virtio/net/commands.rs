//! The control queue (virtio 1.2, section 5.1.6.5).

use std::sync::Arc;

use vm_memory::GuestMemoryMmap;

use super::shared::Shared;
use super::spec::{command, feature};
use crate::virtio::buffers::Reader;
use crate::virtio::queue::VirtQueue;

/// Largest tables of addresses that are looked at: entries of one of the two.
const MAX_TABLE_ENTRIES: u32 = 4096;
const ADDRESS_BYTES: usize = 6;

/// Answers commands.
pub struct Commands {
    queue: VirtQueue,
    shared: Arc<Shared>,
    driver_features: u64,
}

impl Commands {
    /// The control queue of a device that starts.
    pub fn new(queue: VirtQueue, shared: Arc<Shared>, driver_features: u64) -> Self {
        Self { queue, shared, driver_features }
    }

    /// Its queue.
    pub fn queue(&self) -> &VirtQueue {
        &self.queue
    }

    /// Executes what the driver has sent.
    pub fn run(&mut self, memory: &GuestMemoryMmap) {
        let Self { queue, shared, driver_features } = self;
        queue.drain(memory, |queue, mut chain| {
            let done = execute(&mut chain.reader, shared, *driver_features).is_some();
            chain.writer.write(&[if done { command::OK } else { command::ERR }]);
            queue.complete(memory, chain.head, chain.writer.written());
        });
    }
}

/// `None` for what is unknown, malformed, not negotiated or refused by the host.
fn execute(reader: &mut Reader<'_>, shared: &Shared, driver_features: u64) -> Option<()> {
    let [class, kind] = take(reader)?;
    let has = |bit| (driver_features & bit != 0).then_some(());
    match (class, kind) {
        // Filters save work only: the device may give the driver more than it asks for (section 5.1.6.5.1), and does.
        (command::RX, 0..=command::RX_LAST) => {
            let [on] = take(reader)?;
            (on <= 1).then_some(())
        }
        (command::MAC, command::MAC_TABLE_SET) => {
            skip_table(reader)?;
            skip_table(reader)
        }
        (command::MQ, command::MQ_VQ_PAIRS_SET) => {
            has(feature::MQ)?;
            let count = u16::from_le_bytes(take(reader)?);
            (count > 0).then_some(())?;
            shared.set_pairs(count)
        }
        (command::GUEST_OFFLOADS, command::GUEST_OFFLOADS_SET) => {
            has(feature::CTRL_GUEST_OFFLOADS)?;
            let wanted = u64::from_le_bytes(take(reader)?);
            has_only(wanted, driver_features & feature::GUEST_OFFLOADS)?;
            shared.set_guest_offloads(wanted)
        }
        _ => None,
    }
}

fn has_only(bits: u64, allowed: u64) -> Option<()> {
    (bits & !allowed == 0).then_some(())
}

fn take<const N: usize>(reader: &mut Reader<'_>) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    (reader.read(&mut bytes) == N).then_some(bytes)
}

fn skip_table(reader: &mut Reader<'_>) -> Option<()> {
    let entries = u32::from_le_bytes(take(reader)?);
    if entries > MAX_TABLE_ENTRIES {
        return None;
    }
    for _ in 0..entries {
        take::<ADDRESS_BYTES>(reader)?;
    }
    Some(())
}
