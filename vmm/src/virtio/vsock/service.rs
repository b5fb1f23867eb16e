//! The worker of the socket device: its two queues on one side, the sockets on the other.

use std::io;

use vm_memory::GuestAddressSpace;
use vmm_sys_util::epoll::EventSet;

use super::muxer::Muxer;
use super::packet::{HEADER_BYTES, Header};
use crate::memory::GuestRam;
use crate::virtio::queue::{Chain, VirtQueue};
use crate::virtio::worker::{Service, Watch};

const RECEIVE_TOKEN: u64 = 0;
const TRANSMIT_TOKEN: u64 = 1;
/// Packets for the guest in one go; then other events have their turn.
const PACKETS_AT_ONCE: usize = 1024;

/// What the worker owns.
pub struct VsockService {
    memory: GuestRam,
    receive: VirtQueue,
    transmit: VirtQueue,
    muxer: Muxer,
}

impl VsockService {
    /// A service that hasn't started.
    pub fn new(memory: GuestRam, receive: VirtQueue, transmit: VirtQueue, muxer: Muxer) -> Self {
        Self { memory, receive, transmit, muxer }
    }

    /// Takes packets from the guest.
    fn take_packets(&mut self, watch: &Watch) {
        let memory = self.memory.memory();
        let Self { transmit, muxer, .. } = self;
        transmit.drain(&memory, |queue, Chain { mut reader, head, .. }| {
            let mut header = [0; HEADER_BYTES];
            if reader.read(&mut header) == HEADER_BYTES {
                muxer.packet(watch, &Header::from_bytes(&header), &mut reader);
            }
            queue.complete(&memory, head, 0);
        });
    }

    /// Gives packets to the guest while it has buffers for them. Without a buffer the driver's next notification continues.
    fn give_packets(&mut self) {
        if !self.muxer.has_packets() {
            return;
        }
        let memory = self.memory.memory();
        self.receive.disable_notification(&memory);
        for _ in 0..PACKETS_AT_ONCE {
            if !self.muxer.has_packets() {
                break;
            }
            let Some(Chain { mut writer, head, .. }) = self.receive.pop(&memory) else {
                if self.receive.enable_notification(&memory) {
                    continue;
                }
                break;
            };
            if writer.remaining() < HEADER_BYTES {
                self.receive.complete(&memory, head, 0);
                continue;
            }
            if !self.muxer.next_packet(&mut writer) {
                self.receive.unpop(head);
                break;
            }
            self.receive.complete(&memory, head, writer.written());
        }
        self.receive.signal(&memory);
        // With notifications on before the look, so that buffers that come right after it are noticed.
        if self.muxer.has_packets() && self.receive.enable_notification(&memory) {
            // More to do after other events.
            let _ = self.receive.doorbell().write(1);
        }
    }
}

impl Service for VsockService {
    fn start(&mut self, watch: &Watch) -> io::Result<()> {
        watch.add(self.receive.doorbell(), EventSet::IN, RECEIVE_TOKEN)?;
        watch.add(self.transmit.doorbell(), EventSet::IN, TRANSMIT_TOKEN)?;
        self.muxer.start(watch)?;
        self.take_packets(watch);
        Ok(())
    }

    fn handle(&mut self, watch: &Watch, token: u64, events: EventSet) {
        match token {
            RECEIVE_TOKEN => self.receive.acknowledge(),
            TRANSMIT_TOKEN => {
                self.transmit.acknowledge();
                self.take_packets(watch);
            }
            _ => self.muxer.socket_event(watch, token, events),
        }
    }

    fn after_events(&mut self, watch: &Watch) {
        self.muxer.accept(watch);
        self.give_packets();
    }

    fn deadline(&self) -> Option<std::time::Instant> {
        self.muxer.deadline()
    }

    fn timeout(&mut self, _watch: &Watch) {
        self.muxer.timeout();
    }
}
