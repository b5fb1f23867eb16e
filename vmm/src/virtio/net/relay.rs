//! The worker of a device whose frames the host's kernel moves: it passes on what the kernel says, and has the control queue.
//!
//! The kernel's notifications go through this thread and not straight into the guest, because the driver may mask or change an
//! MSI-X vector at any time.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vm_memory::GuestAddressSpace;
use vmm_sys_util::epoll::EventSet;

use super::commands::Commands;
use super::shared::Shared;
use super::spec::STATUS_OFFSET;
use super::tap::Tap;
use super::vhost::{QueueEvents, Vhost};
use crate::memory::GuestRam;
use crate::virtio::counters::Counters;
use crate::virtio::device::Interrupt;
use crate::virtio::worker::{Service, Watch};

/// Tokens of a queue are its place in the list, times two, and one more for an error.
const COMMANDS_TOKEN: u64 = 1 << 32;
/// How often it is looked whether the tap still exists. Its descriptor would tell at once, but tells of each frame, too.
const TAP_PERIOD: Duration = Duration::from_secs(5);

/// What the worker owns.
pub struct Relay {
    pub vhost: Arc<Vhost>,
    pub tap: Arc<Tap>,
    pub events: Vec<QueueEvents>,
    pub commands: Option<Commands>,
    pub shared: Arc<Shared>,
    pub memory: GuestRam,
    pub interrupt: Arc<dyn Interrupt>,
    pub counters: Arc<Counters>,
    pub next_look: Instant,
}

impl Relay {
    fn queue_event(&mut self, token: u64) {
        let place = usize::try_from(token / 2).unwrap_or(usize::MAX);
        let Some(queue) = self.events.get(place).map(|events| events.index) else { return };
        if token.is_multiple_of(2) {
            self.counters.interrupts.add(1);
            self.interrupt.signal_used(queue);
        } else {
            self.counters.errors.add(1);
            self.vhost.break_queue(queue);
            self.interrupt.signal_needs_reset(&format!("queue {queue}: vhost-net finds it broken"));
        }
    }

    /// The first queue is never detached from its interface, so that an error means the end of the tap.
    fn look_at_tap(&self) {
        let Some(queue) = self.tap.queue(0) else { return };
        let mut queue = [PollFd::new(queue, PollFlags::empty())];
        let is_gone = poll(&mut queue, PollTimeout::ZERO) == Ok(1);
        if is_gone && self.shared.lose() {
            crate::log::line(&format!("interface {}: link is down: {} has been deleted", self.shared.id, self.tap));
            self.interrupt.show_config(STATUS_OFFSET, &self.shared.status().to_le_bytes());
            self.interrupt.signal_config();
        }
    }
}

impl Service for Relay {
    /// Eventfds are watched for their edges and never read: each write is one.
    fn start(&mut self, watch: &Watch) -> io::Result<()> {
        let edges = EventSet::IN | EventSet::EDGE_TRIGGERED;
        for (token, events) in (0u64..).step_by(2).zip(&self.events) {
            watch.add(&events.call, edges, token)?;
            watch.add(&events.error, edges, token + 1)?;
        }
        if let Some(commands) = &self.commands {
            watch.add(commands.queue().doorbell(), EventSet::IN, COMMANDS_TOKEN)?;
        }
        Ok(())
    }

    fn fail(&mut self, error: &io::Error) {
        self.interrupt.signal_needs_reset(&error.to_string());
    }

    fn handle(&mut self, _watch: &Watch, token: u64, _events: EventSet) {
        match token {
            COMMANDS_TOKEN => {
                if let Some(commands) = &mut self.commands {
                    commands.queue().acknowledge();
                    commands.run(&self.memory.memory());
                }
            }
            queue => self.queue_event(queue),
        }
    }

    fn deadline(&self) -> Option<Instant> {
        (!self.shared.is_lost()).then_some(self.next_look)
    }

    fn timeout(&mut self, _watch: &Watch) {
        self.look_at_tap();
        self.next_look = Instant::now() + TAP_PERIOD;
    }
}
