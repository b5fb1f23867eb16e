//! The console's worker.

use std::io;
use std::sync::Arc;

use vm_memory::{GuestAddressSpace, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;

use super::Control;
use super::messages::{MESSAGE_BYTES, Message, event};
use super::port::Port;
use crate::memory::GuestRam;
use crate::virtio::counters::Counters;
use crate::virtio::queue::{Chain, VirtQueue};
use crate::virtio::worker::{Service, Watch};

const CONTROL_TO_DRIVER: u64 = 0;
const CONTROL_FROM_DRIVER: u64 = 1;
const WAKE: u64 = 2;
/// Tokens of port n are `FIRST_PORT + 4 * n` and the three behind it.
const FIRST_PORT: u64 = 16;
const TOKENS_PER_PORT: u64 = 4;
const RECEIVE: u64 = 0;
const TRANSMIT: u64 = 1;
const LISTENER: u64 = 2;
const CLIENT: u64 = 3;

/// The two queues of a console with several ports (section 5.3.2).
pub struct ControlQueues {
    pub to_driver: VirtQueue,
    pub from_driver: VirtQueue,
}

/// Owns the queues while the driver is ready.
pub struct ConsoleService {
    pub memory: GuestRam,
    pub ports: Vec<Port>,
    /// `None` if the driver knows nothing of several ports.
    pub queues: Option<ControlQueues>,
    pub control: Arc<Control>,
    pub counters: Arc<Counters>,
}

fn token(port: usize, what: u64) -> u64 {
    FIRST_PORT + TOKENS_PER_PORT * port as u64 + what
}

impl ConsoleService {
    fn serve_port(&mut self, watch: &Watch, at: usize, what: u64, events: EventSet) {
        let memory = self.memory.memory();
        let Some(port) = self.ports.get_mut(at) else { return };
        match what {
            RECEIVE => port.receive.acknowledge(),
            TRANSMIT => port.transmit.acknowledge(),
            CLIENT => port.backend.socket.iter_mut().for_each(|socket| socket.note(events)),
            _ => {}
        }
        if what == TRANSMIT || what == CLIENT {
            port.take_output(&memory, &self.counters);
        }
        self.serve_socket(watch, at);
    }

    /// Input, and who is connected.
    fn serve_socket(&mut self, watch: &Watch, at: usize) {
        let memory = self.memory.memory();
        let Some(port) = self.ports.get_mut(at) else { return };
        if port.give_input(&memory, &self.counters) {
            // More after the other events. Can't fail: the counter can't be full.
            let _ = port.receive.doorbell().write(1);
        }
        let was_open = port.backend.is_open();
        let Some(socket) = &mut port.backend.socket else { return };
        let had_client = socket.is_connected();
        socket.forget_gone(port.is_guest_open);
        let left = had_client && !socket.is_connected();
        if left {
            // What waited for it goes nowhere: the next process must not begin with the end of something.
            port.take_output(&memory, &self.counters);
        }
        let Some(socket) = &mut port.backend.socket else { return };
        socket.accept(watch, token(at, CLIENT));
        let came = (left || !had_client) && socket.is_connected();
        let is_open = port.backend.is_open();
        // A process that came right behind another one is news, too: the guest may start anew.
        if (was_open != is_open || left && came) && port.is_ready {
            port.owed.open = true;
        }
        if came && port.give_input(&memory, &self.counters) {
            let _ = port.receive.doorbell().write(1);
        }
    }

    fn take_messages(&mut self) {
        let memory = self.memory.memory();
        let Self { queues, ports, counters, .. } = self;
        let Some(queues) = queues else { return };
        queues.from_driver.drain(&memory, |queue, Chain { mut reader, head, .. }| {
            let mut bytes = [0; MESSAGE_BYTES];
            let known = reader.read(&mut bytes) == MESSAGE_BYTES && note(ports, Message::from_bytes(bytes));
            if !known {
                counters.errors.add(1);
            }
            queue.complete(&memory, head, 0);
        });
    }

    /// Tells the driver what it has to know, as far as it has buffers.
    fn give_messages(&mut self) {
        let memory = self.memory.memory();
        let Self { queues: Some(queues), ports, control, counters, .. } = self else { return };
        let queue = &mut queues.to_driver;
        for (number, port) in (0u32..).zip(ports) {
            while let Some(event) = port.owed.next() {
                let Some(Chain { mut writer, head, .. }) = next_buffer(queue, &memory) else {
                    return queue.signal(&memory);
                };
                let value = u16::from(event != event::PORT_OPEN || port.backend.is_open());
                let mut bytes = Message { port: number, event, value }.to_bytes().to_vec();
                match event {
                    event::RESIZE => bytes.extend(control.size_bytes()),
                    event::PORT_NAME => bytes.extend(port.backend.name.as_deref().unwrap_or_default().as_bytes()),
                    _ => {}
                }
                port.owed.told(event);
                if writer.remaining() < bytes.len() {
                    counters.errors.add(1);
                } else {
                    writer.write(&bytes);
                }
                queue.complete(&memory, head, writer.written());
            }
        }
        queue.signal(&memory);
    }
}

/// The next buffer; if there is none, the doorbell rings for the one that follows.
fn next_buffer<'m>(queue: &mut VirtQueue, memory: &'m GuestMemoryMmap) -> Option<Chain<'m>> {
    queue.pop(memory).or_else(|| queue.enable_notification(memory).then(|| queue.pop(memory)).flatten())
}

/// A message from the driver. False if it means nothing.
fn note(ports: &mut [Port], message: Message) -> bool {
    if message.event == event::DEVICE_READY {
        for port in ports.iter_mut().filter(|_| message.value == 1) {
            port.owed.add = true;
        }
        return message.value == 1;
    }
    let at = usize::try_from(message.port).unwrap_or(usize::MAX);
    let Some(port) = ports.get_mut(at) else { return false };
    match message.event {
        event::PORT_READY => {
            port.is_ready = message.value == 1;
            if port.is_ready {
                port.owed.console = port.is_console;
                port.owed.resize = port.is_console;
                port.owed.name = port.backend.name.is_some();
                port.owed.open = port.backend.is_open();
            }
            port.is_ready
        }
        event::PORT_OPEN => {
            port.is_guest_open = message.value == 1;
            true
        }
        _ => false,
    }
}

impl Service for ConsoleService {
    fn start(&mut self, watch: &Watch) -> io::Result<()> {
        watch.add(&self.control.wake, EventSet::IN, WAKE)?;
        let memory = self.memory.memory();
        if let Some(queues) = &mut self.queues {
            watch.add(queues.to_driver.doorbell(), EventSet::IN, CONTROL_TO_DRIVER)?;
            watch.add(queues.from_driver.doorbell(), EventSet::IN, CONTROL_FROM_DRIVER)?;
        }
        for (at, port) in self.ports.iter_mut().enumerate() {
            watch.add(port.transmit.doorbell(), EventSet::IN, token(at, TRANSMIT))?;
            if let Some(socket) = &port.backend.socket {
                // Wanted when there is input and no buffer for it.
                port.receive.disable_notification(&memory);
                watch.add(port.receive.doorbell(), EventSet::IN, token(at, RECEIVE))?;
                socket.watch(watch, token(at, LISTENER))?;
            }
        }
        self.take_messages();
        for at in 0..self.ports.len() {
            self.serve_port(watch, at, TRANSMIT, EventSet::empty());
        }
        Ok(())
    }

    fn fail(&mut self, error: &io::Error) {
        self.ports.iter_mut().for_each(|port| port.transmit.fail(error));
    }

    fn handle(&mut self, watch: &Watch, token: u64, events: EventSet) {
        match token {
            CONTROL_TO_DRIVER => self.queues.iter().for_each(|queues| queues.to_driver.acknowledge()),
            CONTROL_FROM_DRIVER => {
                self.queues.iter().for_each(|queues| queues.from_driver.acknowledge());
                self.take_messages();
                // A port may be open now, or closed.
                for at in 0..self.ports.len() {
                    self.serve_socket(watch, at);
                }
            }
            WAKE => {
                let _ = self.control.wake.read();
                for port in self.ports.iter_mut().filter(|port| port.is_console && port.is_ready) {
                    port.owed.resize = true;
                }
            }
            _ => {
                let at = token.saturating_sub(FIRST_PORT);
                let port = usize::try_from(at / TOKENS_PER_PORT).unwrap_or(usize::MAX);
                self.serve_port(watch, port, at % TOKENS_PER_PORT, events);
            }
        }
    }

    fn after_events(&mut self, _watch: &Watch) {
        self.give_messages();
    }
}
