//! Guest memory as the library wants it: the same mappings, in regions with a bitmap of its kind.
#![allow(unsafe_code, reason = "makes regions over mappings that others own")]

use std::ops::Deref;
use std::sync::Arc;

use vhost_user_backend::bitmap::BitmapMmapRegion;
use virtio_queue::DescriptorChain;
use virtiofsd::descriptor_utils::{Reader, Writer};
use vm_memory::mmap::MmapRegion;
use vm_memory::{GuestMemory, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap};

use super::messages::MessageError;

/// The regions of guest memory once more. They follow it only as it was when this was made: a change of regions needs a new one.
///
/// A map of memory can be cloned, and these regions don't own what they point to. So the map stays in here, and what comes out
/// can't outlive it.
pub struct Alias {
    /// Before `original`, so that it goes first.
    map: GuestMemoryMmap<BitmapMmapRegion>,
    /// Owns the mappings.
    original: Arc<GuestMemoryMmap>,
}

impl Alias {
    /// Makes regions over the mappings of `original`.
    pub fn new(original: Arc<GuestMemoryMmap>) -> Result<Self, MessageError> {
        let regions = original.iter().map(region).collect::<Result<Vec<_>, MessageError>>()?;
        let map = GuestMemoryMmap::from_regions(regions).map_err(MessageError::because)?;
        Ok(Self { map, original })
    }

    /// Whether this is still what the guest has.
    pub fn is_of(&self, memory: &Arc<GuestMemoryMmap>) -> bool {
        Arc::ptr_eq(&self.original, memory)
    }

    /// Reads what a chain points to.
    pub fn reader<M>(&self, chain: DescriptorChain<M>) -> Result<Reader<'_>, MessageError>
    where
        M: Deref,
        M::Target: GuestMemory + Sized,
    {
        Reader::new(&self.map, chain).map_err(MessageError::because)
    }

    /// Writes to what a chain points to.
    pub fn writer<M>(&self, chain: DescriptorChain<M>) -> Result<Writer<'_>, MessageError>
    where
        M: Deref,
        M::Target: GuestMemory + Sized,
    {
        Writer::new(&self.map, chain).map_err(MessageError::because)
    }
}

fn region(region: &GuestRegionMmap) -> Result<GuestRegionMmap<BitmapMmapRegion>, MessageError> {
    // SAFETY: pointer and size are those of a live mapping. `Alias` keeps its owner, and gives out neither this region nor
    // anything that isn't bound to its own life. A region made like this never unmaps.
    let mapping = unsafe { MmapRegion::build_raw(region.as_ptr(), region.size(), region.prot(), region.flags()) };
    GuestRegionMmap::new(mapping.map_err(MessageError::because)?, region.start_addr())
        .ok_or_else(|| MessageError::because("a region is past the end of memory"))
}
