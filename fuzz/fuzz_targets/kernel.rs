//! Kernels: ELF files and bzImages.
#![no_main]

use std::io::Write;

use hull_vmm::loader::load_kernel;
use libfuzzer_sys::fuzz_target;
use vm_memory::{GuestAddress, GuestMemoryMmap};

const MEMORY_BYTES: usize = 32 << 20;

fuzz_target!(init: hull_fuzz::prepare(), |image: &[u8]| {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY_BYTES)]).expect("a little memory");
    let mut file = tempfile::tempfile().expect("a temporary file");
    file.write_all(image).expect("a small file");
    if let Ok(kernel) = load_kernel(&memory, &mut file, image.len() as u64) {
        assert!(kernel.end.0 <= MEMORY_BYTES as u64, "a kernel outside of memory");
    }
});
