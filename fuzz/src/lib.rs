//! What the targets share: input that is taken apart, and drivers that send it to a device.

use hull_vmm::log;
use hull_vmm::virtio::spec::status;
use hull_vmm::virtio::specimen::{Kind, Specimen};
use hull_vmm::virtio::testing::Part;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigHandler, Signal, signal};

/// Most requests that one input makes.
const MAX_REQUESTS: usize = 12;
/// Most bytes of a file that a device makes for its guest.
const MAX_FILE_BYTES: u64 = 4 << 20;

/// Before the first input. Keeps the files that a guest makes small: writing behind the limit is an error and no signal. And the
/// monitor doesn't say anything about broken queues.
pub fn prepare() {
    log::redirect(log::Sink { off: true, ..log::Sink::default() });
    // SAFETY: ignoring a signal runs no code.
    unsafe { signal(Signal::SIGXFSZ, SigHandler::SigIgn) }.expect("a signal that can be ignored");
    setrlimit(Resource::RLIMIT_FSIZE, MAX_FILE_BYTES, MAX_FILE_BYTES).expect("a lower limit");
}

/// Bytes that are used up from the front; zeros when there are no more.
pub struct Input<'a>(pub &'a [u8]);

impl<'a> Input<'a> {
    /// Whether all is used up.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next bytes, as many as there are.
    pub fn take(&mut self, bytes: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(bytes.min(self.0.len()));
        self.0 = rest;
        taken
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        let taken = self.take(N);
        array[..taken.len()].copy_from_slice(taken);
        array
    }

    /// The next byte.
    pub fn byte(&mut self) -> u8 {
        u8::from_le_bytes(self.array())
    }

    /// The next two bytes.
    pub fn word(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    /// The next four bytes.
    pub fn double(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }
}

/// Sends requests made of `data` to a device. Each is answered or breaks the device, and after a reset the device works.
pub fn device(kind: Kind, data: &[u8]) {
    let mut input = Input(data);
    let mut specimen = Specimen::new(kind);
    specimen.driver.start();
    if kind == Kind::Share {
        // Most requests are refused before FUSE_INIT.
        specimen.works();
    }
    for _ in 0..MAX_REQUESTS {
        if input.is_empty() {
            break;
        }
        request(&mut specimen, &mut input);
    }
    specimen.restart();
    specimen.works();
}

/// Control byte: queue, and whether the beginning is made to fit the device. Then the lengths of both sides, cuts and content.
fn request(specimen: &mut Specimen, input: &mut Input) {
    let control = input.byte();
    let queues = specimen.driver.queues.len();
    // Mostly the queue that answers.
    let queue = match control & 7 {
        index @ 0..4 => usize::from(index) % queues,
        _ => specimen.kind.request_queue(),
    };
    let (readable, writable, cut) = (usize::from(input.word() % 2048), u32::from(input.word()), input.byte());
    let mut message = if control & 0x80 == 0 { beginning(specimen.kind, input) } else { Vec::new() };
    message.extend(input.take(readable));
    if specimen.kind == Kind::Share && control & 0x80 == 0 {
        let length = (message.len() as u32).to_le_bytes();
        message[..4].copy_from_slice(&length);
    }
    let from = specimen.machine.allocate(message.len() as u64 + 1);
    let to = specimen.machine.allocate(u64::from(writable) + 1);
    specimen.machine.write(from, &message);
    let mut parts = Vec::new();
    for (address, len, writable) in [(from, message.len() as u32, false), (to, writable, true)] {
        let first = len.min(u32::from(cut));
        parts.push(Part { address, len: first, writable });
        parts.push(Part { address: address + u64::from(first), len: len - first, writable });
    }
    parts.retain(|part| part.len > 0);
    if parts.is_empty() {
        return;
    }
    let ring = &mut specimen.driver.queues[queue];
    ring.add(&parts);
    ring.kick();
    if queue == specimen.kind.request_queue() {
        specimen.settle();
    }
    if specimen.driver.status() & status::DEVICE_NEEDS_RESET != 0 {
        specimen.driver.start();
    }
}

/// The first bytes of a message that reaches the interesting part of a device.
fn beginning(kind: Kind, input: &mut Input) -> Vec<u8> {
    match kind {
        Kind::Disk | Kind::AsyncDisk => {
            let mut header = vec![input.byte(), 0, 0, 0, 0, 0, 0, 0];
            header.extend(u64::from(input.byte()).to_le_bytes());
            header
        }
        Kind::Vsock => {
            let mut header = [3u64, 2].map(u64::to_le_bytes).concat();
            header.extend([u32::from(input.byte()), u32::from(input.byte())].map(u32::to_le_bytes).concat());
            header.extend(u32::from(input.word()).to_le_bytes());
            header.extend([1, u16::from(input.byte())].map(u16::to_le_bytes).concat());
            header.extend([u32::from(input.byte()), input.double(), input.double()].map(u32::to_le_bytes).concat());
            header
        }
        Kind::Share => {
            let mut header = [0, u32::from(input.byte())].map(u32::to_le_bytes).concat();
            header.extend([1, u64::from(input.byte()), 0, 0].map(u64::to_le_bytes).concat());
            header
        }
        Kind::Net => input.take(12).to_vec(),
        Kind::Rng | Kind::Console | Kind::Ports | Kind::Balloon | Kind::Mem | Kind::Pmem => Vec::new(),
    }
}
