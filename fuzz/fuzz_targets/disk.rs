//! Block requests, with either engine.
#![no_main]

use hull_vmm::virtio::specimen::Kind;
use libfuzzer_sys::fuzz_target;

fuzz_target!(init: hull_fuzz::prepare(), |data: &[u8]| {
    let Some((first, rest)) = data.split_first() else { return };
    let kind = if first % 2 == 0 { Kind::Disk } else { Kind::AsyncDisk };
    hull_fuzz::device(kind, rest);
});
