//! The worker of one queue pair; that of the first has the control queue, too.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use vm_memory::GuestAddressSpace;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;

use super::Stop;
use super::commands::Commands;
use super::port::{Port, PortError};
use super::rx::Receiver;
use super::shared::Shared;
use super::spec::STATUS_OFFSET;
use super::tx::Transmitter;
use crate::memory::GuestRam;
use crate::virtio::device::Interrupt;
use crate::virtio::worker::{Service, Watch};

const RECEIVE_TOKEN: u64 = 0;
const TRANSMIT_TOKEN: u64 = 1;
const PORT_TOKEN: u64 = 2;
const CHANGED_TOKEN: u64 = 3;
const COMMANDS_TOKEN: u64 = 4;
const AGAIN_TOKEN: u64 = 5;
const RX_LIMITS_TOKEN: u64 = 6;
const TX_LIMITS_TOKEN: u64 = 7;
/// Turns of both directions before other events, a pause or a stop are looked at.
const TURNS_AT_ONCE: usize = 16;

/// What a worker owns.
pub struct PairService {
    pair: u16,
    memory: GuestRam,
    interrupt: Arc<dyn Interrupt>,
    shared: Arc<Shared>,
    port: Port,
    receiver: Receiver,
    transmitter: Transmitter,
    commands: Option<Commands>,
    /// Rings when a turn has left work.
    again: EventFd,
    /// The port may have frames.
    readable: bool,
    /// The port may take frames.
    writable: bool,
    /// The driver may have given buffers for frames.
    has_buffers: bool,
    /// The driver may have given frames.
    has_frames: bool,
    /// Nothing will come any more but what has arrived.
    hung_up: bool,
    /// Epoll knows the port.
    watched: bool,
}

impl PairService {
    /// A service that hasn't started.
    pub fn new(
        (pair, port, again): (u16, Port, EventFd),
        (receiver, transmitter): (Receiver, Transmitter),
        commands: Option<Commands>,
        shared: Arc<Shared>,
        memory: GuestRam,
        interrupt: Arc<dyn Interrupt>,
    ) -> Self {
        Self {
            pair,
            memory,
            interrupt,
            shared,
            port,
            receiver,
            transmitter,
            commands,
            again,
            readable: true,
            writable: true,
            has_buffers: true,
            has_frames: true,
            hung_up: false,
            watched: false,
        }
    }

    /// The port, for the next time that the device starts.
    pub fn into_port(self) -> Port {
        self.port
    }

    /// Waits for the port: by edges, so that frames which the driver has no buffers for don't wake the worker again and again.
    fn watch_port(&mut self, watch: &Watch) {
        let Some(fd) = self.port.fd() else { return };
        let mut events = EventSet::IN | EventSet::EDGE_TRIGGERED;
        if !self.writable {
            events |= EventSet::OUT;
        }
        let result =
            if self.watched { watch.change(&fd, events, PORT_TOKEN) } else { watch.add(&fd, events, PORT_TOKEN) };
        self.watched |= result.is_ok();
    }

    fn unwatch_port(&mut self, watch: &Watch) {
        if let Some(fd) = self.port.fd().filter(|_| self.watched) {
            watch.remove(std::os::fd::AsRawFd::as_raw_fd(&fd));
        }
        self.watched = false;
    }

    fn lose(&mut self, watch: &Watch, reason: &str) {
        self.unwatch_port(watch);
        if self.shared.lose() {
            crate::log::line(&format!("interface {}: link is down: {reason}", self.shared.id));
            self.interrupt.show_config(STATUS_OFFSET, &self.shared.status().to_le_bytes());
            self.interrupt.signal_config();
        }
    }

    /// One turn of both directions. True if there is more to do.
    fn turn(&mut self, watch: &Watch) -> bool {
        let shared = Arc::clone(&self.shared);
        let Some(used) = shared.pair(self.pair) else { return false };
        let in_use = *used;
        let transmitted = self.transmit(watch, in_use);
        let received = in_use && self.receive(watch);
        transmitted || received
    }

    fn transmit(&mut self, watch: &Watch, in_use: bool) -> bool {
        if !self.has_frames || !self.writable || self.transmitter.gate().is_shut() {
            return false;
        }
        let memory = self.memory.memory();
        let port = (in_use && self.shared.is_up()).then_some(&mut self.port);
        let flushes = port.is_some();
        let stop = self.transmitter.run(&memory, port);
        let flushed = if flushes && !matches!(stop, Stop::Gone(_)) { self.port.flush() } else { Ok(()) };
        match flushed {
            Err(PortError::Gone(reason)) => self.lose(watch, &reason),
            Err(_) => self.wait_writable(watch),
            Ok(()) => {}
        }
        match stop {
            Stop::Ring => self.has_frames = false,
            Stop::PortFull => self.wait_writable(watch),
            Stop::Gone(reason) => {
                self.lose(watch, &reason);
                return true;
            }
            Stop::Budget => return true,
            Stop::Throttled | Stop::PortEmpty => {}
        }
        false
    }

    fn wait_writable(&mut self, watch: &Watch) {
        self.writable = false;
        self.watch_port(watch);
    }

    fn receive(&mut self, watch: &Watch) -> bool {
        let waiting = self.readable || self.receiver.holds_frame();
        if !waiting || self.shared.is_lost() {
            return false;
        }
        if self.hung_up && !self.has_buffers {
            // A driver that takes nothing shall hear of it, too.
            self.lose(watch, "the other side has gone");
            return false;
        }
        let stop = if !self.shared.is_up() {
            self.receiver.discard(&mut self.port)
        } else if self.has_buffers && !self.receiver.gate().is_shut() {
            self.receiver.run(&self.memory.memory(), &mut self.port, self.shared.allowed())
        } else {
            return false;
        };
        match stop {
            Stop::PortEmpty => self.readable = false,
            Stop::Ring => {
                self.has_buffers = false;
                return self.hung_up;
            }
            Stop::Gone(reason) => self.lose(watch, &reason),
            Stop::Budget => return true,
            Stop::Throttled | Stop::PortFull => {}
        }
        false
    }

    fn port_event(&mut self, watch: &Watch, events: EventSet) {
        if events.intersects(EventSet::OUT | EventSet::ERROR | EventSet::HANG_UP) && !self.writable {
            match self.port.flush() {
                Err(PortError::Gone(reason)) => self.lose(watch, &reason),
                Err(_) => {}
                Ok(()) => {
                    self.writable = true;
                    self.watch_port(watch);
                }
            }
        }
        self.readable = true;
        self.hung_up |= events.intersects(EventSet::ERROR | EventSet::HANG_UP);
    }
}

impl Service for PairService {
    fn start(&mut self, watch: &Watch) -> io::Result<()> {
        watch.add(self.receiver.queue().doorbell(), EventSet::IN, RECEIVE_TOKEN)?;
        watch.add(self.transmitter.queue().doorbell(), EventSet::IN, TRANSMIT_TOKEN)?;
        watch.add(&self.again, EventSet::IN, AGAIN_TOKEN)?;
        watch.add(self.shared.changed(), EventSet::IN | EventSet::EDGE_TRIGGERED, CHANGED_TOKEN)?;
        self.receiver.gate().watch(watch, RX_LIMITS_TOKEN)?;
        self.transmitter.gate().watch(watch, TX_LIMITS_TOKEN)?;
        if let Some(commands) = &self.commands {
            watch.add(commands.queue().doorbell(), EventSet::IN, COMMANDS_TOKEN)?;
        }
        if !self.shared.is_lost() {
            self.watch_port(watch);
        }
        Ok(())
    }

    fn fail(&mut self, error: &io::Error) {
        self.interrupt.signal_needs_reset(&format!("queue pair {}: {error}", self.pair));
    }

    fn handle(&mut self, watch: &Watch, token: u64, events: EventSet) {
        match token {
            RECEIVE_TOKEN => {
                self.receiver.queue().acknowledge();
                self.has_buffers = true;
            }
            TRANSMIT_TOKEN => {
                self.transmitter.queue().acknowledge();
                self.has_frames = true;
            }
            COMMANDS_TOKEN => {
                if let Some(commands) = &mut self.commands {
                    commands.queue().acknowledge();
                    commands.run(&self.memory.memory());
                }
            }
            AGAIN_TOKEN => drop(self.again.read()),
            RX_LIMITS_TOKEN => self.receiver.gate().retry(),
            TX_LIMITS_TOKEN => self.transmitter.gate().retry(),
            PORT_TOKEN => self.port_event(watch, events),
            // A queue of a tap that was put back has been in error before, and its edges are gone.
            _ => {
                self.readable = true;
                self.writable = true;
                self.hung_up = false;
                if !self.shared.is_lost() {
                    self.watch_port(watch);
                }
            }
        }
    }

    fn after_events(&mut self, watch: &Watch) {
        for _ in 0..TURNS_AT_ONCE {
            if !self.turn(watch) {
                return;
            }
        }
        // Can't fail: the counter is read at each event.
        let _ = self.again.write(1);
    }

    fn deadline(&self) -> Option<Instant> {
        let deadlines = [self.receiver.deadline(), self.transmitter.deadline()];
        deadlines.into_iter().flatten().min()
    }

    fn timeout(&mut self, _watch: &Watch) {
        self.receiver.gate().retry();
        self.transmitter.gate().retry();
    }
}
