//! Frames that a guest sends, and control commands.
#![no_main]

use hull_vmm::virtio::specimen::Kind;
use libfuzzer_sys::fuzz_target;

fuzz_target!(init: hull_fuzz::prepare(), |data: &[u8]| {
    hull_fuzz::device(Kind::Net, data);
});
