//! Drivers that do anything: whatever they do, nothing panics or hangs, and a reset makes the device work again.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::cast_possible_truncation, reason = "tests")]

use std::sync::Arc;

use proptest::prelude::*;

use super::specimen::{Kind, Specimen};
use super::testing::Machine;

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

fn perform(specimen: &mut Specimen, act: &Act) {
    let (machine, driver): (Arc<Machine>, _) = (Arc::clone(&specimen.machine), &mut specimen.driver);
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
        Act::Restart => specimen.restart(),
        Act::PauseAndResume => {
            machine.root.pause_devices();
            machine.root.resume_devices();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: std::env::var("HULL_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(200), max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn nothing_that_a_driver_does_hurts(kind in prop::sample::select(&Kind::ALL[..]), acts in prop::collection::vec(act(), 1..60)) {
        let mut specimen = Specimen::new(kind);
        specimen.driver.start();
        for act in &acts {
            perform(&mut specimen, act);
        }
        specimen.restart();
        specimen.works();
    }
}
