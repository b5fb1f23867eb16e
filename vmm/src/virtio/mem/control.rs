//! Sizes of a memory device: what the driver reads, and what the control API sees and changes.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::MemConfig;

/// Length of device-specific configuration (virtio 1.2, section 5.15.4).
pub const CONFIG_BYTES: usize = 56;

/// State of a memory device, shared by the device, its worker and the control API.
#[derive(Debug)]
pub struct Control {
    config: MemConfig,
    sizes: Mutex<Sizes>,
    /// Wakes the worker after a change of the requested size.
    pub(super) wake: EventFd,
}

/// Sizes that change, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sizes {
    /// Blocks may be plugged below this offset.
    pub usable: u64,
    /// Sum of the plugged blocks.
    pub plugged: u64,
    /// What the guest shall have.
    pub requested: u64,
}

/// Answer to `GET /hotplug/memory`. Sizes are in MiB.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Most that can be plugged.
    pub total_size_mib: u64,
    /// Unit of plugging.
    pub block_size_mib: u64,
    /// Unit of protection.
    pub slot_size_mib: u64,
    /// Memory that the guest has plugged.
    pub plugged_size_mib: u64,
    /// Memory that it shall have plugged.
    pub requested_size_mib: u64,
}

impl Control {
    pub(super) fn new(config: MemConfig) -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self { config, sizes: Mutex::default(), wake: EventFd::new(EFD_NONBLOCK)? }))
    }

    /// What doesn't change.
    pub fn config(&self) -> &MemConfig {
        &self.config
    }

    /// What changes.
    pub fn sizes(&self) -> Sizes {
        *self.lock()
    }

    /// For the control API.
    pub fn status(&self) -> Status {
        let sizes = self.sizes();
        Status {
            total_size_mib: self.config.total_bytes >> 20,
            block_size_mib: self.config.block_bytes >> 20,
            slot_size_mib: self.config.slot_bytes >> 20,
            plugged_size_mib: sizes.plugged >> 20,
            requested_size_mib: sizes.requested >> 20,
        }
    }

    /// Asks the guest to plug or unplug until it has `bytes`. False if that isn't a number of whole blocks, or too much. Show it to a
    /// driver that isn't ready yet afterwards.
    pub fn request(&self, bytes: u64) -> bool {
        if !bytes.is_multiple_of(self.config.block_bytes) || bytes > self.config.total_bytes {
            return false;
        }
        let mut sizes = self.lock();
        sizes.requested = bytes;
        // It never shrinks under the driver (section 5.15.4).
        sizes.usable = sizes.usable.max(self.usable(bytes));
        drop(sizes);
        // Can't fail: the counter can't be full.
        let _ = self.wake.write(1);
        true
    }

    pub(super) fn set_plugged(&self, bytes: u64) {
        self.lock().plugged = bytes;
    }

    /// All is unplugged: the usable part may shrink to what is asked for.
    pub(super) fn unplugged_all(&self) {
        let mut sizes = self.lock();
        sizes.plugged = 0;
        sizes.usable = self.usable(sizes.requested);
    }

    /// As little as the driver needs: Linux takes memory on in units of its own, and what isn't usable is out of the guest's reach.
    pub(super) fn usable(&self, requested: u64) -> u64 {
        requested.next_multiple_of(self.config.usable_unit_bytes).min(self.config.total_bytes)
    }

    /// Device-specific configuration: block size, node, address, region size, usable, plugged and requested size.
    pub fn config_space(&self) -> [u8; CONFIG_BYTES] {
        let sizes = self.sizes();
        let MemConfig { start, total_bytes, block_bytes, .. } = self.config;
        let no_node = 0;
        let fields = [block_bytes, no_node, start.0, total_bytes, sizes.usable, sizes.plugged, sizes.requested];
        let mut bytes = [0; CONFIG_BYTES];
        for (to, from) in bytes.iter_mut().zip(fields.iter().flat_map(|field| field.to_le_bytes())) {
            *to = from;
        }
        bytes
    }

    fn lock(&self) -> MutexGuard<'_, Sizes> {
        self.sizes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
