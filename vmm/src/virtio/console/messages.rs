//! Control messages between a console and its driver (virtio 1.2, section 5.3.6.2).

/// Feature: the device has a size, `VIRTIO_CONSOLE_F_SIZE` (section 5.3.3).
pub const FEATURE_SIZE: u64 = 1;
/// Feature: there may be several ports, `VIRTIO_CONSOLE_F_MULTIPORT`.
pub const FEATURE_MULTIPORT: u64 = 1 << 1;
/// Size of a message without what may follow it.
pub const MESSAGE_BYTES: usize = 8;

/// What a message says.
pub mod event {
    /// Driver: it is ready for ports, if the value is 1.
    pub const DEVICE_READY: u16 = 0;
    /// Device: there is a port.
    pub const PORT_ADD: u16 = 1;
    /// Driver: it has made the port, if the value is 1.
    pub const PORT_READY: u16 = 3;
    /// Device: the port is a console.
    pub const CONSOLE_PORT: u16 = 4;
    /// Device: columns and rows of a console port follow.
    pub const RESIZE: u16 = 5;
    /// Both: their end of the port is open, if the value is 1.
    pub const PORT_OPEN: u16 = 6;
    /// Device: the name of the port follows.
    pub const PORT_NAME: u16 = 7;
}

/// A message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message {
    /// Number of the port.
    pub port: u32,
    /// One of [`event`].
    pub event: u16,
    /// Its value.
    pub value: u16,
}

impl Message {
    /// Reads a message.
    pub fn from_bytes(bytes: [u8; MESSAGE_BYTES]) -> Self {
        let [a, b, c, d, e, f, g, h] = bytes;
        Self {
            port: u32::from_le_bytes([a, b, c, d]),
            event: u16::from_le_bytes([e, f]),
            value: u16::from_le_bytes([g, h]),
        }
    }

    /// Writes a message.
    pub fn to_bytes(self) -> [u8; MESSAGE_BYTES] {
        let [a, b, c, d] = self.port.to_le_bytes();
        let ([e, f], [g, h]) = (self.event.to_le_bytes(), self.value.to_le_bytes());
        [a, b, c, d, e, f, g, h]
    }
}

/// What a driver has to be told of a port. One of each kind at most, so that a driver that asks again and again makes no queue grow.
#[derive(Debug, Clone, Copy, Default)]
pub struct Owed {
    pub add: bool,
    pub console: bool,
    pub resize: bool,
    pub name: bool,
    pub open: bool,
}

impl Owed {
    /// The next to be told, in the order in which a driver needs it.
    pub fn next(&self) -> Option<u16> {
        let all = [
            (self.add, event::PORT_ADD),
            (self.console, event::CONSOLE_PORT),
            (self.resize, event::RESIZE),
            (self.name, event::PORT_NAME),
            (self.open, event::PORT_OPEN),
        ];
        all.into_iter().find_map(|(owed, event)| owed.then_some(event))
    }

    /// It has been told.
    pub fn told(&mut self, event: u16) {
        match event {
            event::PORT_ADD => self.add = false,
            event::CONSOLE_PORT => self.console = false,
            event::RESIZE => self.resize = false,
            event::PORT_NAME => self.name = false,
            event::PORT_OPEN => self.open = false,
            _ => {}
        }
    }
}
