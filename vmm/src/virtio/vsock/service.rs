//! The worker of the socket device: its two queues on one side, the sockets on the other.

use std::io;
use std::ops::ControlFlow;
use std::time::Instant;

use vm_memory::GuestAddressSpace;
use vmm_sys_util::epoll::EventSet;

use super::muxer::{Muxer, RX_LIMITS_TOKEN, TX_LIMITS_TOKEN};
use super::packet::{HEADER_BYTES, Header};
use crate::memory::GuestRam;
use crate::virtio::queue::{Chain, VirtQueue};
use crate::virtio::rate_limiter::Gate;
use crate::virtio::worker::{Service, Watch};

const RECEIVE_TOKEN: u64 = 0;
const TRANSMIT_TOKEN: u64 = 1;
/// Packets for the guest in one go; then other events have their turn.
const PACKETS_AT_ONCE: usize = 1024;

/// What the worker owns.
pub struct VsockService {
    pub memory: GuestRam,
    pub receive: VirtQueue,
    pub transmit: VirtQueue,
    pub rx_gate: Gate,
    pub tx_gate: Gate,
    /// Of the last packet to the guest: how long a packet is shows only when it is there, so the next one waits for it.
    pub unpaid_bytes: u32,
    /// There is no such packet.
    pub paid: bool,
    pub muxer: Muxer,
}

impl VsockService {
    /// Takes packets from the guest, as long as the limits allow.
    fn take_packets(&mut self, watch: &Watch) {
        if self.tx_gate.is_shut() {
            return;
        }
        let memory = self.memory.memory();
        let Self { transmit, tx_gate, muxer, .. } = self;
        transmit.drain_while(&memory, |queue, Chain { mut reader, head, .. }| {
            let data_bytes = reader.remaining().saturating_sub(HEADER_BYTES);
            if !tx_gate.admit(data_bytes as u64, 1) {
                return ControlFlow::Break(head);
            }
            let mut header = [0; HEADER_BYTES];
            if reader.read(&mut header) == HEADER_BYTES {
                muxer.packet(watch, &Header::from_bytes(&header), &mut reader);
            }
            queue.complete(&memory, head, 0);
            ControlFlow::Continue(())
        });
    }

    /// Gives packets to the guest while it has buffers for them and the limits allow. Without a buffer the driver's next
    /// notification continues.
    fn give_packets(&mut self) {
        if !self.muxer.has_packets() || self.rx_gate.is_shut() {
            return;
        }
        let memory = self.memory.memory();
        self.receive.disable_notification(&memory);
        for _ in 0..PACKETS_AT_ONCE {
            if !self.muxer.has_packets() || !self.pay() {
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
            let Some(data_bytes) = self.muxer.next_packet(&mut writer) else {
                self.receive.unpop(head);
                break;
            };
            self.unpaid_bytes = data_bytes;
            self.paid = false;
            self.receive.complete(&memory, head, writer.written());
        }
        self.receive.signal(&memory);
        if self.rx_gate.is_shut() {
            return;
        }
        // With notifications on before the look, so that buffers that come right after it are noticed.
        if self.muxer.has_packets() && self.receive.enable_notification(&memory) {
            // More to do after other events.
            let _ = self.receive.doorbell().write(1);
        }
    }

    /// Pays for the packet given last. False if that has to wait.
    fn pay(&mut self) -> bool {
        if !self.paid && self.rx_gate.admit(u64::from(self.unpaid_bytes), 1) {
            self.paid = true;
        }
        self.paid
    }
}

impl Service for VsockService {
    fn start(&mut self, watch: &Watch) -> io::Result<()> {
        watch.add(self.receive.doorbell(), EventSet::IN, RECEIVE_TOKEN)?;
        watch.add(self.transmit.doorbell(), EventSet::IN, TRANSMIT_TOKEN)?;
        self.muxer.start(watch)?;
        self.rx_gate.watch(watch, RX_LIMITS_TOKEN)?;
        self.tx_gate.watch(watch, TX_LIMITS_TOKEN)?;
        self.take_packets(watch);
        Ok(())
    }

    fn fail(&mut self, error: &io::Error) {
        self.transmit.fail(error);
    }

    fn handle(&mut self, watch: &Watch, token: u64, events: EventSet) {
        match token {
            RECEIVE_TOKEN => self.receive.acknowledge(),
            TRANSMIT_TOKEN => {
                self.transmit.acknowledge();
                self.take_packets(watch);
            }
            RX_LIMITS_TOKEN => self.rx_gate.retry(),
            TX_LIMITS_TOKEN => {
                self.tx_gate.retry();
                self.take_packets(watch);
            }
            _ => self.muxer.socket_event(watch, token, events),
        }
    }

    fn after_events(&mut self, watch: &Watch) {
        self.muxer.accept(watch);
        self.give_packets();
    }

    fn deadline(&self) -> Option<Instant> {
        [self.muxer.deadline(), self.rx_gate.deadline(), self.tx_gate.deadline()].into_iter().flatten().min()
    }

    fn timeout(&mut self, watch: &Watch) {
        let now = Instant::now();
        if self.rx_gate.deadline().is_some_and(|at| at <= now) {
            self.rx_gate.retry();
        }
        if self.tx_gate.deadline().is_some_and(|at| at <= now) {
            self.tx_gate.retry();
            self.take_packets(watch);
        }
        self.muxer.timeout(watch);
    }
}
