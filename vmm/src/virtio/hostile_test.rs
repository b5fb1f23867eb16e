//! Drivers that do anything: whatever they do, nothing panics or hangs, and a reset makes the device work again.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "tests"
)]

use std::cell::RefCell;
use std::io::Write;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use proptest::prelude::*;
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
use super::testing::{Driver, FakeSlots, Machine};
use super::vsock::Vsock;
use crate::config::HugePages;
use crate::memory::{GuestRam, Reserve};

struct Nowhere;

impl ConsoleSink for Nowhere {
    fn write(&mut self, _bytes: &[u8]) {}
}

thread_local! {
    /// Keeps the peer of a network device or a port alive. It never reads, so that the device finds its socket full, too.
    static PEER: RefCell<Option<UnixStream>> = const { RefCell::new(None) };
}

fn net(directory: &Path) -> Net {
    let path = directory.join("n");
    let listener = UnixListener::bind(&path).unwrap();
    let id = "n".to_owned();
    let backend = Backend::Socket(path);
    let net = NetConfig { id, backend, mac: None, mtu: None, pairs: 1, rx_limits: None, tx_limits: None };
    let net = Net::new(&net).unwrap();
    let mut peer = listener.accept().unwrap().0;
    for bytes in (14u32..1500).step_by(50) {
        peer.write_all(&bytes.to_be_bytes()).unwrap();
        peer.write_all(&vec![7; bytes as usize]).unwrap();
    }
    PEER.set(Some(peer));
    net
}

fn device(kind: usize, directory: &Path, memory: &GuestRam) -> Box<dyn VirtioDevice> {
    match kind {
        0 => Box::new(Rng::new()),
        1 => Box::new(Console::new(ConsoleConfig::log(Box::new(Nowhere))).unwrap()),
        9 => {
            let [first, named] = ["c", "p"].map(|name| directory.join(name));
            let ports = vec![("named", named.as_path())];
            let config = ConsoleConfig { socket: Some(&first), ports, ..ConsoleConfig::log(Box::new(Nowhere)) };
            let console = Console::new(config).unwrap();
            // A process that has sent something and reads nothing.
            let mut peer = UnixStream::connect(named).unwrap();
            peer.write_all(&[7; 5000]).unwrap();
            PEER.set(Some(peer));
            Box::new(console)
        }
        4 => {
            let (amount_mib, stats_polling_interval_s) = (1, 1);
            let config =
                BalloonConfig { amount_mib, deflate_on_oom: true, stats_polling_interval_s, free_page_reporting: true };
            Box::new(Balloon::new(config).unwrap())
        }
        7 => Box::new(mem(memory)),
        8 => {
            let path = directory.join("pmem");
            std::fs::write(&path, [0; 8192]).unwrap();
            Box::new(Pmem::new(&pmem_config(path, false), Arc::new(FakeSlots::default())).unwrap())
        }
        2 => Box::new(Vsock::new(3, &directory.join("v"), None, None).unwrap()),
        3 => Box::new(net(directory)),
        5 => {
            let path = directory.join("share");
            std::fs::create_dir(&path).unwrap();
            let json = serde_json::json!({ "tag": "t", "path_on_host": path });
            Box::new(Share::new(&serde_json::from_value(json).unwrap(), 100).unwrap())
        }
        6 | 10 => {
            let path = directory.join("disk");
            std::fs::write(&path, [0; 65536]).unwrap();
            let (id, asynchronous) = ("d".to_owned(), kind == 10);
            Box::new(Block::new(&BlockConfig { path, id, asynchronous, queues: 2, ..BlockConfig::default() }).unwrap())
        }
        _ => unreachable!("kinds are 0 to 10"),
    }
}

fn mem(memory: &GuestRam) -> Mem {
    let (start, total_bytes, block_bytes, slot_bytes) = (GuestAddress(128 << 20), 8 << 20, 2 << 20, 4 << 20);
    let config = MemConfig { start, total_bytes, block_bytes, slot_bytes, usable_unit_bytes: slot_bytes };
    let reserve = Reserve::new(start, total_bytes, HugePages::Transparent).unwrap();
    let mem = Mem::new(config, reserve, memory.clone(), Arc::new(FakeSlots::default())).unwrap();
    assert!(mem.control().request(6 << 20));
    mem
}

fn pmem_config(path: PathBuf, read_only: bool) -> PmemConfig {
    PmemConfig { id: "p".to_owned(), path, read_only, start: GuestAddress(1 << 30) }
}

/// One thing that a driver does.
#[derive(Debug, Clone)]
enum Act {
    Config(usize, Vec<u8>),
    Register(u64, Vec<u8>),
    Doorbell(u64, Vec<u8>),
    Descriptor { queue: usize, index: u16, address: u64, len: u32, flags: u16, next: u16 },
    Offer { queue: usize, head: u16 },
    AvailableIndex { queue: usize, index: u16 },
    Garbage { address: u64, bytes: Vec<u8> },
    Kick(usize),
    Restart,
    PauseAndResume,
}

fn address() -> impl Strategy<Value = u64> {
    prop_oneof![
        8 => 0u64..(2 << 20),
        2 => (32u64 << 20) - 64..(32u64 << 20) + 64,
        1 => any::<u64>(),
    ]
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        prop::collection::vec(any::<u8>(), 1),
        prop::collection::vec(any::<u8>(), 2),
        prop::collection::vec(any::<u8>(), 4),
        prop::collection::vec(any::<u8>(), 8),
    ]
}

fn act() -> impl Strategy<Value = Act> {
    let queue = 0..6usize;
    let small = 0..70u16;
    prop_oneof![
        2 => (0..300usize, bytes()).prop_map(|(at, data)| Act::Config(at, data)),
        3 => (0u64..8192, bytes()).prop_map(|(at, data)| Act::Register(at, data)),
        3 => (0u64..64, bytes()).prop_map(|(at, data)| Act::Register(at, data)),
        1 => (0u64..64, bytes()).prop_map(|(at, data)| Act::Doorbell(at, data)),
        6 => (queue.clone(), small.clone(), address(), prop_oneof![0u32..200, any::<u32>()], 0..8u16, small.clone())
            .prop_map(|(queue, index, address, len, flags, next)| {
                Act::Descriptor { queue, index, address, len, flags, next }
            }),
        6 => (queue.clone(), small).prop_map(|(queue, head)| Act::Offer { queue, head }),
        1 => (queue.clone(), any::<u16>()).prop_map(|(queue, index)| Act::AvailableIndex { queue, index }),
        2 => (0u64..(2 << 20), prop::collection::vec(any::<u8>(), 64))
            .prop_map(|(address, bytes)| Act::Garbage { address, bytes }),
        4 => queue.prop_map(Act::Kick),
        1 => Just(Act::Restart),
        1 => Just(Act::PauseAndResume),
    ]
}

fn perform(machine: &Arc<Machine>, driver: &mut Driver, act: &Act) {
    let queues = driver.queues.len();
    match act {
        Act::Config(at, data) => machine.config_write(driver.slot, *at, data),
        Act::Register(at, data) => machine.device_write(driver.common + at, data),
        Act::Doorbell(at, data) => machine.device_write(driver.notify + at, data),
        Act::Descriptor { queue, index, address, len, flags, next } => {
            driver.queues[queue % queues].descriptor(*index, *address, *len, *flags, *next);
        }
        Act::Offer { queue, head } => driver.queues[queue % queues].offer(*head),
        Act::AvailableIndex { queue, index } => driver.queues[queue % queues].set_available_index(*index),
        Act::Garbage { address, bytes } => machine.write(*address, bytes),
        Act::Kick(queue) => driver.queues[queue % queues].kick(),
        Act::Restart => restart(machine, driver),
        Act::PauseAndResume => {
            machine.root.pause_devices();
            machine.root.resume_devices();
        }
    }
}

/// What a driver does that is bound anew: BARs back to where they were, decoding on, reset.
fn restart(machine: &Arc<Machine>, driver: &mut Driver) {
    machine.config_write(driver.slot, 4, &[0, 0]);
    machine.config_write(driver.slot, 0x10, &(driver.common as u32).to_le_bytes());
    machine.config_write(driver.slot, 0x14, &[0; 4]);
    machine.config_write(driver.slot, 0x18, &(driver.notify as u32).to_le_bytes());
    machine.config_write(driver.slot, 0x1c, &[0; 4]);
    machine.config_write(driver.slot, 4, &[6, 4]);
    driver.start();
}

/// All kinds of devices, or the one that `HULL_KIND` says.
fn kinds() -> std::ops::RangeInclusive<usize> {
    let only = std::env::var("HULL_KIND").map(|kind| kind.parse().expect("HULL_KIND is a number"));
    only.map_or(0..=10, |kind| kind..=kind)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: std::env::var("HULL_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(200), max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn nothing_that_a_driver_does_hurts(kind in kinds(), acts in prop::collection::vec(act(), 1..60)) {
        let directory = TempDir::new().unwrap();
        let machine = Machine::new();
        let mut driver = machine.plug(device(kind, directory.path(), &machine.memory));
        driver.start();
        for act in &acts {
            perform(&machine, &mut driver, act);
        }
        restart(&machine, &mut driver);
        if kind == 0 {
            prop_assert_eq!(driver.queues[0].request(&[], 16).len(), 16);
        }
    }
}
