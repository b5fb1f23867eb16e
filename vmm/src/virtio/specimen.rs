//! One of each device with its backend and a driver, for tests that treat all devices alike.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "tests stop at the first surprise"
)]

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;

use tempfile::TempDir;
use vm_memory::GuestAddress;

use super::balloon::{Balloon, BalloonConfig};
use super::blk::{Block, BlockConfig};
use super::console::{Console, ConsoleConfig, ConsoleSink};
use super::device::VirtioDevice;
use super::fs::Share;
use super::mem::{Mem, MemConfig};
use super::net::{Backend, Net, NetConfig};
use super::pmem::{Pmem, PmemConfig};
use super::rng::Rng;
use super::spec::status;
use super::testing::{Driver, FakeSlots, Machine, Part, wait_for};
use super::vsock::Vsock;
use crate::config::HugePages;
use crate::memory::{GuestRam, Reserve};

/// Size of the disks.
pub const DISK_BYTES: usize = 65536;
/// What a frame has to have for [`Specimen::works`] to find it.
const FRAME: [u8; 64] = [0xd7; 64];

/// Where the memory device has its region.
const MEM_START: GuestAddress = GuestAddress(128 << 20);

/// A device of the monitor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Rng,
    Console,
    /// A console with a socket and a named port.
    Ports,
    Vsock,
    Net,
    Balloon,
    Share,
    /// With plain system calls.
    Disk,
    /// With `io_uring`, where the host has it.
    AsyncDisk,
    Mem,
    Pmem,
}

impl Kind {
    pub const ALL: [Self; 11] = [
        Self::Rng,
        Self::Console,
        Self::Ports,
        Self::Vsock,
        Self::Net,
        Self::Balloon,
        Self::Share,
        Self::Disk,
        Self::AsyncDisk,
        Self::Mem,
        Self::Pmem,
    ];

    /// The queue whose requests are always answered.
    pub fn request_queue(self) -> usize {
        match self {
            Self::Rng | Self::Balloon | Self::Disk | Self::AsyncDisk | Self::Mem | Self::Pmem => 0,
            Self::Console | Self::Ports | Self::Vsock | Self::Net | Self::Share => 1,
        }
    }

    /// Makes the device with its files in `directory`, for a machine with `memory`. The second is the other end of the network.
    pub fn make(self, directory: &Path, memory: &GuestRam) -> (Box<dyn VirtioDevice>, Option<UnixStream>) {
        let device: Box<dyn VirtioDevice> = match self {
            Self::Rng => Box::new(Rng::new()),
            Self::Console => Box::new(Console::new(ConsoleConfig::log(Box::new(Nowhere))).unwrap()),
            Self::Ports => {
                let (console, peer) = ports(directory);
                return (Box::new(console), Some(peer));
            }
            Self::Vsock => Box::new(Vsock::new(3, &directory.join("v"), None, None).unwrap()),
            Self::Net => {
                let (net, peer) = net(directory);
                return (Box::new(net), Some(peer));
            }
            Self::Balloon => {
                let (amount_mib, stats_polling_interval_s) = (1, 1);
                let (deflate_on_oom, free_page_reporting) = (true, true);
                let config =
                    BalloonConfig { amount_mib, deflate_on_oom, stats_polling_interval_s, free_page_reporting };
                Box::new(Balloon::new(config).unwrap())
            }
            Self::Share => {
                let path = directory.join("share");
                std::fs::create_dir(&path).unwrap();
                let json = serde_json::json!({ "tag": "t", "path_on_host": path });
                Box::new(Share::new(&serde_json::from_value(json).unwrap(), 100).unwrap())
            }
            Self::Disk | Self::AsyncDisk => {
                let path = directory.join("disk");
                std::fs::write(&path, [0; DISK_BYTES]).unwrap();
                let (id, asynchronous) = ("d".to_owned(), self == Self::AsyncDisk);
                let config = BlockConfig { path, id, asynchronous, queues: 2, ..BlockConfig::default() };
                Box::new(Block::new(&config).unwrap())
            }
            Self::Mem => Box::new(mem(memory)),
            Self::Pmem => {
                let path = directory.join("pmem");
                std::fs::write(&path, [0; 8192]).unwrap();
                let (id, read_only, start) = ("p".to_owned(), false, GuestAddress(1 << 30));
                let config = PmemConfig { id, path, read_only, start };
                Box::new(Pmem::new(&config, Arc::new(FakeSlots::default())).unwrap())
            }
        };
        (device, None)
    }
}

struct Nowhere;

impl ConsoleSink for Nowhere {
    fn write(&mut self, _bytes: &[u8]) {}
}

/// A console whose named port has a process that has sent something.
fn ports(directory: &Path) -> (Console, UnixStream) {
    let [first, named] = ["c", "p"].map(|name| directory.join(name));
    let ports = vec![("named", named.as_path())];
    let config = ConsoleConfig { socket: Some(&first), ports, ..ConsoleConfig::log(Box::new(Nowhere)) };
    let console = Console::new(config).unwrap();
    let mut peer = UnixStream::connect(&named).unwrap();
    peer.write_all(&[7; 5000]).unwrap();
    peer.set_nonblocking(true).unwrap();
    (console, peer)
}

/// 8 MiB that can be plugged, of which the guest should plug six.
fn mem(memory: &GuestRam) -> Mem {
    let (start, total_bytes, block_bytes, slot_bytes) = (MEM_START, 8 << 20, 2 << 20, 4 << 20);
    let config = MemConfig { start, total_bytes, block_bytes, slot_bytes, usable_unit_bytes: slot_bytes };
    let reserve = Reserve::new(start, total_bytes, HugePages::Transparent).unwrap();
    let mem = Mem::new(config, reserve, memory.clone(), Arc::new(FakeSlots::default())).unwrap();
    assert!(mem.control().request(6 << 20));
    mem
}

/// A network device whose peer has sent some frames already.
fn net(directory: &Path) -> (Net, UnixStream) {
    let path = directory.join("n");
    let listener = UnixListener::bind(&path).unwrap();
    let (id, backend) = ("n".to_owned(), Backend::Socket(path));
    let net = NetConfig { id, backend, mac: None, mtu: None, vhost: false, pairs: 1, rx_limits: None, tx_limits: None };
    let net = Net::new(&net).unwrap();
    let mut peer = listener.accept().unwrap().0;
    for bytes in (14u32..1500).step_by(50) {
        peer.write_all(&bytes.to_be_bytes()).unwrap();
        peer.write_all(&vec![7; bytes as usize]).unwrap();
    }
    peer.set_nonblocking(true).unwrap();
    (net, peer)
}

/// A device in a machine.
pub struct Specimen {
    pub kind: Kind,
    pub machine: Arc<Machine>,
    pub driver: Driver,
    /// The other end of the network. Nobody reads it but [`Specimen::works`], so that the device finds its socket full, too.
    peer: Option<UnixStream>,
    /// Where the device has its files.
    pub directory: TempDir,
}

impl Specimen {
    /// Plugs a device into a machine of its own. Its driver isn't started.
    pub fn new(kind: Kind) -> Self {
        Self::within(&Machine::new(), kind)
    }

    /// Plugs a device into a machine. Its driver isn't started.
    pub fn within(machine: &Arc<Machine>, kind: Kind) -> Self {
        let directory = TempDir::new().unwrap();
        let (device, peer) = kind.make(directory.path(), &machine.memory);
        let driver = machine.plug(device);
        Self { kind, machine: Arc::clone(machine), driver, peer, directory }
    }

    /// What a driver does that is bound anew: BARs to where they were, decoding on, reset, start.
    pub fn restart(&mut self) {
        let (machine, slot) = (&self.machine, self.driver.slot);
        machine.config_write(slot, 4, &[0, 0]);
        for (register, address) in [(0x10, self.driver.common), (0x18, self.driver.notify)] {
            machine.config_write(slot, register, &(address as u32).to_le_bytes());
            machine.config_write(slot, register + 4, &[0; 4]);
        }
        machine.config_write(slot, 4, &[6, 4]);
        self.driver.start();
    }

    /// Waits until the request queue has given back a chain, or is broken. The peer of the network takes all frames meanwhile.
    pub fn settle(&mut self) {
        let queue = self.kind.request_queue();
        wait_for("a used chain or a broken queue", || {
            if let Some(peer) = &mut self.peer {
                let _ = peer.read(&mut [0; 65536]);
            }
            let broken = self.driver.status() & status::DEVICE_NEEDS_RESET != 0;
            broken || self.driver.queues[queue].poll_used().is_some()
        });
    }

    /// Puts one real request to a device that was just started; stops the test if the answer is wrong.
    pub fn works(&mut self) {
        match self.kind {
            Kind::Rng => assert_eq!(self.driver.queues[0].request(&[], 16).len(), 16),
            Kind::Console | Kind::Ports => assert!(self.driver.queues[1].request(b"x", 0).is_empty()),
            // A page that no test uses.
            Kind::Balloon => assert!(self.driver.queues[0].request(&8191u32.to_le_bytes(), 0).is_empty()),
            Kind::Vsock => self.vsock_works(),
            Kind::Net => self.net_works(),
            Kind::Share => self.share_works(),
            Kind::Disk | Kind::AsyncDisk => self.disk_works(),
            // The state of a block is acknowledged.
            Kind::Mem => {
                let request = [3, MEM_START.0, 1].map(u64::to_le_bytes).concat();
                assert_eq!(self.driver.queues[0].request(&request, 10)[..2], [0, 0]);
            }
            // A flush succeeds.
            Kind::Pmem => assert_eq!(self.driver.queues[0].request(&[0; 4], 4), [0; 4]),
        }
    }

    /// A request for a port on which nobody listens is refused.
    fn vsock_works(&mut self) {
        let buffer = self.machine.allocate(4096);
        let receive = &mut self.driver.queues[0];
        receive.add(&[Part { address: buffer, len: 4096, writable: true }]);
        receive.kick();
        let mut header = [3u64, 2].map(u64::to_le_bytes).concat();
        header.extend([1000u32, 999, 0].map(u32::to_le_bytes).concat());
        header.extend([1u16, 1].map(u16::to_le_bytes).concat());
        header.extend([0u32, 65536, 0].map(u32::to_le_bytes).concat());
        self.driver.queues[1].request(&header, 0);
        self.driver.queues[0].wait_used();
        let answer = self.machine.read(buffer, 44);
        assert_eq!((&answer[16..24], &answer[30..32]), (&[231, 3, 0, 0, 232, 3, 0, 0][..], &[3, 0][..]), "no RST");
    }

    /// A frame reaches the peer.
    fn net_works(&mut self) {
        let at = self.machine.allocate(76);
        self.machine.write(at, &[[0; 12].as_slice(), &FRAME].concat());
        let transmit = &mut self.driver.queues[1];
        transmit.add(&[Part { address: at, len: 76, writable: false }]);
        transmit.kick();
        let peer = self.peer.as_mut().unwrap();
        let mut seen = Vec::new();
        wait_for("a frame at the peer", || {
            let mut piece = [0; 65536];
            match peer.read(&mut piece) {
                Ok(count) => seen.extend_from_slice(&piece[..count]),
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
            seen.windows(FRAME.len()).any(|window| window == FRAME)
        });
        transmit.wait_used();
    }

    /// FUSE_INIT succeeds, and a name that doesn't exist isn't found.
    fn share_works(&mut self) {
        let mut init = [7u32, 38, 65536, 0].map(u32::to_le_bytes).concat();
        init.extend([0; 48]);
        let mut ask = |opcode: u32, body: &[u8]| {
            let mut message = [40 + body.len() as u32, opcode].map(u32::to_le_bytes).concat();
            message.extend([5u64, 1, 0, 0].map(u64::to_le_bytes).concat());
            message.extend(body);
            let reply = self.driver.queues[1].request(&message, 256);
            i32::from_le_bytes(reply[4..8].try_into().unwrap())
        };
        assert_eq!(ask(26, &init), 0);
        assert_eq!(ask(1, b"no-such-file\0"), -2);
    }

    /// What is written is read back.
    fn disk_works(&mut self) {
        let at = self.machine.allocate(4096);
        let part = |offset: u64, len: u32, writable: bool| Part { address: at + offset, len, writable };
        for (kind, writable) in [(1u8, false), (0, true)] {
            let data = if writable { [0; 512] } else { [0x3c; 512] };
            self.machine.write(at, &[kind, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0]);
            self.machine.write(at + 512, &data);
            self.machine.write(at + 1024, &[0xee]);
            self.driver.queues[0].add(&[part(0, 16, false), part(512, 512, writable), part(1024, 1, true)]);
            self.driver.queues[0].kick();
            self.driver.queues[0].wait_used();
            assert_eq!(self.machine.read(at + 1024, 1), [0]);
        }
        assert_eq!(self.machine.read(at + 512, 512), [0x3c; 512]);
    }
}
