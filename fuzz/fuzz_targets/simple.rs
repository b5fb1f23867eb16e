//! Requests to the small devices: entropy, console, balloon, memory and persistent memory.
#![no_main]

use hull_vmm::virtio::specimen::Kind;
use libfuzzer_sys::fuzz_target;

fuzz_target!(init: hull_fuzz::prepare(), |data: &[u8]| {
    let Some((first, rest)) = data.split_first() else { return };
    let kind = [Kind::Rng, Kind::Console, Kind::Balloon, Kind::Mem, Kind::Pmem, Kind::Ports][usize::from(first % 6)];
    hull_fuzz::device(kind, rest);
});
