//! Requests and what comes of them (virtio 1.2, section 5.15.6).

use std::ops::Range;
use std::sync::Arc;

use super::Control;
use super::blocks::{Blocks, State};
use super::region::Region;

/// Request types.
const PLUG: u16 = 0;
const UNPLUG: u16 = 1;
const UNPLUG_ALL: u16 = 2;
const STATE: u16 = 3;

/// Length of `struct virtio_mem_req`.
pub const REQUEST_BYTES: usize = 24;

/// A request: `struct virtio_mem_req`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    kind: u16,
    address: u64,
    block_count: u16,
}

impl Request {
    /// Takes the fields out.
    pub fn from_bytes(bytes: [u8; REQUEST_BYTES]) -> Self {
        let [kind_0, kind_1, _, _, _, _, _, _, a, b, c, d, e, f, g, h, count_0, count_1, ..] = bytes;
        Self {
            kind: u16::from_le_bytes([kind_0, kind_1]),
            address: u64::from_le_bytes([a, b, c, d, e, f, g, h]),
            block_count: u16::from_le_bytes([count_0, count_1]),
        }
    }
}

/// Response types.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum Kind {
    /// Done.
    Ack = 0,
    /// Not now, because of the requested size.
    Nack = 1,
    /// The host can't at the moment.
    Busy = 2,
    /// The request is wrong.
    Error = 3,
}

/// A response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Response {
    /// How it went.
    pub kind: Kind,
    /// Answer to a request for the state.
    pub state: Option<State>,
}

/// Length of `struct virtio_mem_resp`.
pub const RESPONSE_BYTES: usize = 10;

impl Response {
    /// `struct virtio_mem_resp`.
    pub fn to_bytes(self) -> [u8; RESPONSE_BYTES] {
        let [a, b] = (self.kind as u16).to_le_bytes();
        let [c, d] = self.state.map_or(0, |state| state as u16).to_le_bytes();
        [a, b, 0, 0, 0, 0, 0, 0, c, d]
    }
}

impl From<Kind> for Response {
    fn from(kind: Kind) -> Self {
        Self { kind, state: None }
    }
}

/// The device's memory with what is plugged of it. It outlives resets: those leave blocks as they are (section 5.15.5).
pub struct Memory {
    pub(super) blocks: Blocks,
    pub(super) region: Region,
    pub(super) control: Arc<Control>,
}

impl Memory {
    /// Executes a request.
    pub fn execute(&mut self, request: &Request) -> Response {
        if request.kind == UNPLUG_ALL {
            return self.unplug_all().into();
        }
        let Some(range) = self.range(request.address, request.block_count) else {
            return Kind::Error.into();
        };
        match request.kind {
            PLUG => self.plug(range).into(),
            UNPLUG => self.unplug(range).into(),
            STATE => Response { kind: Kind::Ack, state: Some(self.blocks.state(range)) },
            _ => Kind::Error.into(),
        }
    }

    /// Blocks from an address on: at least one, all of them usable.
    fn range(&self, address: u64, count: u16) -> Option<Range<usize>> {
        let config = self.control.config();
        let offset = address.checked_sub(config.start.0)?;
        let bytes = u64::from(count).checked_mul(config.block_bytes)?;
        let usable = offset.checked_add(bytes)? <= self.control.sizes().usable;
        if count == 0 || !offset.is_multiple_of(config.block_bytes) || !usable {
            return None;
        }
        let first = usize::try_from(offset / config.block_bytes).ok()?;
        Some(first..first + usize::from(count))
    }

    fn plug(&mut self, range: Range<usize>) -> Kind {
        let sizes = self.control.sizes();
        if sizes.plugged.saturating_add(self.bytes(&range)) > sizes.requested {
            return Kind::Nack;
        }
        if self.blocks.state(range.clone()) != State::Unplugged {
            return Kind::Error;
        }
        if !self.may_open(self.blocks.slots(&range), sizes.requested) {
            // Not a refusal for good, which Linux answers with the same request at once.
            return Kind::Busy;
        }
        if let Err(error) = self.region.open(self.blocks.slots(&range)) {
            crate::log::line(&format!("memory device: {error}"));
            return Kind::Busy;
        }
        self.blocks.set(range, true);
        self.control.set_plugged(self.plugged_bytes());
        Kind::Ack
    }

    /// Whether all of these slots may be open: they are already, or there are no more open ones than what was requested takes.
    fn may_open(&self, slots: Range<usize>, requested: u64) -> bool {
        let closed = slots.filter(|&slot| !self.region.is_open(slot)).count() as u64;
        let bytes = closed.saturating_mul(self.control.config().slot_bytes).saturating_add(self.region.open_bytes());
        closed == 0 || bytes <= self.control.usable(requested)
    }

    fn unplug(&mut self, range: Range<usize>) -> Kind {
        if self.blocks.state(range.clone()) != State::Plugged {
            return Kind::Error;
        }
        if !self.take(range) {
            return Kind::Busy;
        }
        self.control.set_plugged(self.plugged_bytes());
        Kind::Ack
    }

    fn unplug_all(&mut self) -> Kind {
        if self.blocks.count() > 0 && !self.take(self.blocks.all()) {
            return Kind::Busy;
        }
        self.control.unplugged_all();
        Kind::Ack
    }

    /// Gives the memory of a range back and closes the slots that become empty. False if nothing was done.
    fn take(&mut self, range: Range<usize>) -> bool {
        let (offset, bytes) = (range.start as u64 * self.control.config().block_bytes, self.bytes(&range));
        if !self.region.discard(offset, bytes) {
            return false;
        }
        let slots = self.blocks.slots(&range);
        self.blocks.set(range, false);
        let blocks = &self.blocks;
        self.region.close(slots.filter(|&slot| blocks.count_in_slot(slot) == 0));
        // Once more, for what a guest touched before it could no longer.
        self.region.discard(offset, bytes);
        true
    }

    fn bytes(&self, range: &Range<usize>) -> u64 {
        range.len() as u64 * self.control.config().block_bytes
    }

    fn plugged_bytes(&self) -> u64 {
        self.blocks.count() as u64 * self.control.config().block_bytes
    }
}
