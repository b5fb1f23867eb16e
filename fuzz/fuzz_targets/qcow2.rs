//! qcow2 images: opened, and read in some places.
#![no_main]

use hull_vmm::virtio::blk::{Block, BlockConfig, Format};
use hull_vmm::virtio::testing::{Machine, Part};
use libfuzzer_sys::fuzz_target;

fuzz_target!(init: hull_fuzz::prepare(), |image: &[u8]| {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("image");
    std::fs::write(&path, image).expect("a small file");
    std::fs::write(directory.path().join("base"), [1; 4096]).expect("a small file");
    let (id, read_only, format) = ("q".to_owned(), true, Format::Qcow2);
    let config = BlockConfig { path, id, read_only, format, queues: 1, ..BlockConfig::default() };
    let Ok(block) = Block::new(&config) else { return };
    let machine = Machine::new();
    let mut driver = machine.plug(Box::new(block));
    driver.start();
    let at = machine.allocate(8192);
    let queue = &mut driver.queues[0];
    for sector in [0u64, 1, 2, 8, 100, 1 << 20, u64::MAX >> 9] {
        machine.write(at, &[[0; 8], sector.to_le_bytes()].concat());
        let part = |offset: u64, len: u32, writable: bool| Part { address: at + offset, len, writable };
        queue.add(&[part(0, 16, false), part(512, 2048, true), part(4096, 1, true)]);
        queue.kick();
        queue.wait_used();
    }
});
