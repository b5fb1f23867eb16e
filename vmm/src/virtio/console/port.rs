//! One port: its two queues between the guest and the host's end.

use std::ops::ControlFlow;

use vm_memory::GuestMemoryMmap;

use super::ConsoleSink;
use super::messages::Owed;
use super::socket::{PortSocket, Sent};
use crate::virtio::buffers::Reader;
use crate::virtio::counters::Counters;
use crate::virtio::queue::{Chain, VirtQueue};

/// Bytes of one request that reach the host; a driver that sends more at once loses the rest.
const MAX_REQUEST_BYTES: usize = 1 << 20;
/// Looks at the ring, and buffers filled, in one go; then other ports have their turn.
const BUFFERS_AT_ONCE: usize = 64;

/// The host's end of a port.
#[derive(Default)]
pub struct Backend {
    /// The name by which the guest finds the port.
    pub name: Option<String>,
    /// Receives all output.
    pub sink: Option<Box<dyn ConsoleSink>>,
    /// A process that talks to the guest.
    pub socket: Option<PortSocket>,
}

impl Backend {
    /// Somebody is there: a log always is.
    pub fn is_open(&self) -> bool {
        self.sink.is_some() || self.socket.as_ref().is_some_and(PortSocket::is_connected)
    }
}

/// A port of a console whose driver is ready.
pub struct Port {
    pub backend: Backend,
    pub receive: VirtQueue,
    pub transmit: VirtQueue,
    /// Linux spins with interrupts off until what it writes to a console is taken, so that nothing must wait there.
    pub is_console: bool,
    /// The driver has made the port.
    pub is_ready: bool,
    /// A process in the guest has the port open.
    pub is_guest_open: bool,
    pub owed: Owed,
    /// Bytes of the chain at the head of the transmit queue that are sent already.
    sent_bytes: usize,
}

impl Port {
    /// A port that the driver doesn't know yet.
    pub fn new(backend: Backend, receive: VirtQueue, transmit: VirtQueue, is_console: bool) -> Self {
        Self {
            backend,
            receive,
            transmit,
            is_console,
            is_ready: false,
            is_guest_open: false,
            owed: Owed::default(),
            sent_bytes: 0,
        }
    }

    /// Gives what the guest wrote to the host. What a process doesn't take waits in the ring, but for the console: its log is
    /// complete, and its process loses what it is too slow for.
    pub fn take_output(&mut self, memory: &GuestMemoryMmap, counters: &Counters) {
        let Self { backend, transmit, sent_bytes, is_console, .. } = self;
        transmit.drain_while(memory, |queue, Chain { mut reader, head, .. }| {
            if reader.remaining() > MAX_REQUEST_BYTES {
                reader.truncate(MAX_REQUEST_BYTES);
            }
            let total = reader.remaining();
            if *is_console {
                copy_out(&mut reader, backend);
            } else if let Some(socket) = &mut backend.socket {
                reader.skip(*sent_bytes);
                if socket.send(&mut reader) == Sent::Part {
                    *sent_bytes = total.saturating_sub(reader.remaining());
                    return ControlFlow::Break(head);
                }
            }
            *sent_bytes = 0;
            counters.bytes_from_guest.add(total as u64);
            queue.complete(memory, head, 0);
            ControlFlow::Continue(())
        });
    }

    /// Gives what the host's process wrote to the guest, as far as the guest has buffers. True if there may be more to do at once.
    pub fn give_input(&mut self, memory: &GuestMemoryMmap, counters: &Counters) -> bool {
        let Self { backend, receive, is_guest_open, .. } = self;
        let Some(socket) = backend.socket.as_mut().filter(|_| *is_guest_open) else { return false };
        if !socket.has_input() {
            return false;
        }
        receive.disable_notification(memory);
        let mut looks = 0;
        while looks < BUFFERS_AT_ONCE && socket.has_input() {
            looks += 1;
            let Some(Chain { mut writer, head, .. }) = receive.pop(memory) else {
                if receive.enable_notification(memory) {
                    continue;
                }
                break;
            };
            if writer.remaining() == 0 {
                counters.errors.add(1);
                receive.complete(memory, head, 0);
                continue;
            }
            match socket.receive(&mut writer) {
                Some(bytes) => {
                    counters.bytes_to_guest.add(u64::from(bytes));
                    receive.complete(memory, head, bytes);
                }
                None => receive.unpop(head),
            }
        }
        receive.signal(memory);
        looks == BUFFERS_AT_ONCE && socket.has_input()
    }
}

fn copy_out(reader: &mut Reader<'_>, backend: &mut Backend) {
    let mut buffer = [0; 4096];
    loop {
        let count = reader.read(&mut buffer);
        let bytes = buffer.get(..count).unwrap_or_default();
        if bytes.is_empty() {
            return;
        }
        backend.sink.iter_mut().for_each(|sink| sink.write(bytes));
        backend.socket.iter_mut().for_each(|socket| socket.send_some(bytes));
    }
}
