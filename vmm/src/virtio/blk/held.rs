//! A request that may outlive the moment in which it was taken from its queue.
//!
//! The slices of a [`Chain`] borrow guest memory. A request in flight instead shares the ownership of the memory that its
//! slices point to.
#![allow(unsafe_code, reason = "ties slices of guest memory to a shared owner of that memory instead of a borrow")]

use std::mem;
use std::sync::Arc;

use vm_memory::GuestMemoryMmap;

use crate::virtio::buffers::{Reader, Writer};
use crate::virtio::queue::{Chain, Head, VirtQueue};

/// The parts of a request.
pub struct Parts<'m> {
    /// What the driver sent, without what was read already.
    pub reader: Reader<'m>,
    /// Where data for the driver goes.
    pub writer: Writer<'m>,
    /// The last writable byte; `None` if there is none.
    pub status: Option<Writer<'m>>,
}

/// A request with the memory it lies in.
pub struct Held {
    /// Really lives as long as `_memory`, which is dropped after it.
    parts: Parts<'static>,
    head: Head,
    _memory: Arc<GuestMemoryMmap>,
}

// SAFETY: the slices point into guest memory, which any thread may access and which the value keeps; they have no ties to a thread.
unsafe impl Send for Held {}

impl Held {
    /// Takes the next request from a queue.
    pub fn pop(queue: &mut VirtQueue, memory: &Arc<GuestMemoryMmap>) -> Option<Self> {
        let Chain { reader, writer: mut data, head } = queue.pop(memory)?;
        let status = data.split_tail(1);
        let parts = Parts { reader, writer: data, status };
        // SAFETY: only the lifetime changes. All slices point into `memory`, which the value owns a share of, and `with` gives them
        // out for no longer than the value is borrowed.
        let parts = unsafe { mem::transmute::<Parts<'_>, Parts<'static>>(parts) };
        Some(Self { parts, head, _memory: Arc::clone(memory) })
    }

    /// Works on the parts.
    pub fn with<T>(&mut self, work: impl for<'m> FnOnce(&mut Parts<'m>) -> T) -> T {
        work(&mut self.parts)
    }

    /// The request is over for this side.
    pub fn into_head(self) -> Head {
        self.head
    }
}
