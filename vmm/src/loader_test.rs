#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests stop at the first surprise")]

use std::io::Write;

use proptest::prelude::*;

use super::*;

const MIB: u64 = 1 << 20;

fn memory(mib: u64) -> GuestMemoryMmap {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), usize::try_from(mib * MIB).unwrap())]).unwrap()
}

fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

fn load(mib: u64, image: &[u8]) -> Result<LoadedKernel, LoadError> {
    load_kernel(&memory(mib), &mut file(image), image.len() as u64)
}

/// An ELF file with one loadable segment of four bytes behind the headers.
fn elf(start: u64, memory_bytes: u64, entry: u64) -> Vec<u8> {
    let mut image = vec![0; 64 + 56];
    image[..8].copy_from_slice(b"\x7fELF\x02\x01\x01\0");
    image[16..20].copy_from_slice(&[2, 0, 62, 0]);
    image[20] = 1;
    image[24..32].copy_from_slice(&entry.to_le_bytes());
    image[32..40].copy_from_slice(&64u64.to_le_bytes());
    image[52..54].copy_from_slice(&64u16.to_le_bytes());
    image[54..56].copy_from_slice(&56u16.to_le_bytes());
    image[56..58].copy_from_slice(&1u16.to_le_bytes());
    let program = &mut image[64..];
    program[0] = 1;
    program[8..16].copy_from_slice(&120u64.to_le_bytes());
    program[16..24].copy_from_slice(&start.wrapping_add(0xffff_ffff_8000_0000).max(1 << 63).to_le_bytes());
    program[24..32].copy_from_slice(&start.to_le_bytes());
    program[32..40].copy_from_slice(&4u64.to_le_bytes());
    program[40..48].copy_from_slice(&memory_bytes.to_le_bytes());
    image.extend(b"\xf4\xf4\xf4\xf4");
    image
}

#[test]
fn an_elf_kernel_is_loaded_where_it_says() {
    let memory = memory(32);
    let image = elf(16 * MIB, 4096, 16 * MIB);
    let kernel = load_kernel(&memory, &mut file(&image), image.len() as u64).unwrap();
    assert_eq!((kernel.entry, kernel.end), (GuestAddress(16 * MIB), GuestAddress(16 * MIB + 4096)));
    assert_eq!(memory.read_obj::<u32>(GuestAddress(16 * MIB)).unwrap(), 0xf4f4_f4f4);
}

#[test]
fn a_truncated_elf_is_called_so_at_every_length() {
    let image = elf(16 * MIB, 4096, 16 * MIB);
    for len in 4..image.len() {
        let error = load(32, &image[..len]).unwrap_err();
        assert!(error.to_string().contains("truncated ELF"), "{len}: {error}");
    }
}

#[test]
fn what_is_no_kernel_is_refused() {
    for (image, words) in [
        (vec![], "not a kernel"),
        (b"#!/bin/sh\necho hello\n".to_vec(), "not a kernel"),
        (vec![0; 4096], "not a kernel"),
        (elf(16 * MIB, 4096, 8 * MIB), "entry point"),
        (elf(0x1000, 4096, 0x1000), "below 1 MiB"),
        (elf(u64::MAX - 100, 4096, u64::MAX - 100), "wraps around"),
    ] {
        let error = load(32, &image).unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
    }
    let mut program = elf(16 * MIB, 4096, 16 * MIB);
    program[64 + 16..64 + 24].copy_from_slice(&0x40_0000u64.to_le_bytes());
    assert!(load(32, &program).unwrap_err().to_string().contains("a program or a library"));
    let mut arm = elf(16 * MIB, 4096, 16 * MIB);
    arm[18] = 183;
    assert!(load(32, &arm).unwrap_err().to_string().contains("x86"));
}

#[test]
fn a_kernel_larger_than_memory_is_called_so() {
    let error = load(32, &elf(16 * MIB, 64 * MIB, 16 * MIB)).unwrap_err();
    assert_eq!(error.to_string(), "The kernel needs memory up to 80 MiB, but the VM has 32 MiB there");
    assert!(matches!(load(2048, &elf(1 << 30, 4096, 1 << 30)), Err(LoadError::KernelTooLarge { .. })));
}

/// The least of a bzImage: one setup sector, protocol 2.12 with a 64-bit entry.
fn bzimage() -> Vec<u8> {
    let mut image = vec![0; 3 * 512];
    image[0x1f1] = 1;
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x20cu16.to_le_bytes());
    image[0x211] = 1;
    image[0x214..0x218].copy_from_slice(&0x10_0000u32.to_le_bytes());
    image[0x236] = 1;
    image[0x258..0x260].copy_from_slice(&(16 * MIB).to_le_bytes());
    image[0x260..0x264].copy_from_slice(&0x1000u32.to_le_bytes());
    image.resize(8 * 512, 0xf4);
    image
}

#[test]
fn a_bzimage_is_entered_behind_its_32_bit_code() {
    let kernel = load(32, &bzimage()).unwrap();
    assert_eq!(kernel.entry, GuestAddress(MIB + 0x200));
    assert_eq!(kernel.end, GuestAddress(16 * MIB + 0x1000), "where it unpacks");
}

#[test]
fn unusable_bzimages_are_refused() {
    let mut no_64_bit = bzimage();
    no_64_bit[0x236] = 0;
    assert!(load(32, &no_64_bit).unwrap_err().to_string().contains("64-bit entry"));
    assert!(load(32, &bzimage()[..0x240]).unwrap_err().to_string().contains("truncated"));
    let mut large = bzimage();
    large[0x260..0x264].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(matches!(load(32, &large), Err(LoadError::KernelTooLarge { .. })));
    let mut wraps = bzimage();
    wraps[0x258..0x260].copy_from_slice(&u64::MAX.to_le_bytes());
    assert!(load(32, &wraps).is_err());
}

#[test]
fn the_initrd_is_at_the_end_of_memory_and_behind_the_kernel() {
    let memory = memory(32);
    let image = elf(16 * MIB, 4096, 16 * MIB);
    let kernel = load_kernel(&memory, &mut file(&image), image.len() as u64).unwrap();
    let mut initrd = tempfile::NamedTempFile::new().unwrap();
    initrd.write_all(&[7; 5000]).unwrap();
    let placed = load_initrd(&memory, &kernel, initrd.path()).unwrap();
    assert_eq!((placed.start, placed.size), (GuestAddress(32 * MIB - 8192), 5000));
    assert_eq!(memory.read_obj::<u8>(GuestAddress(placed.start.0 + 4999)).unwrap(), 7);

    initrd.as_file().set_len(16 * MIB).unwrap();
    let error = load_initrd(&memory, &kernel, initrd.path()).unwrap_err();
    assert_eq!(error.to_string(), "The initrd has 16 MiB, but only 15 MiB of memory are free behind the kernel");
    initrd.as_file().set_len(1 << 40).unwrap();
    assert!(matches!(load_initrd(&memory, &kernel, initrd.path()), Err(LoadError::InitrdTooLarge { .. })));
}

#[test]
fn only_regular_files_are_opened() {
    let dir = tempfile::tempdir().unwrap();
    let fifo = dir.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    for path in [dir.path(), &fifo, Path::new("/dev/zero")] {
        assert!(matches!(open_regular("Kernel", path), Err(LoadError::NotAFile { .. })), "{}", path.display());
    }
    let error = open_regular("Kernel", &dir.path().join("missing")).unwrap_err();
    assert!(error.to_string().starts_with("Kernel /"), "{error}");
}

#[test]
fn the_users_words_come_last_and_fit() {
    let line = command_line(true, "quiet loglevel=7").unwrap();
    assert!(line.starts_with("loglevel=2 earlyprintk=") && line.ends_with("console=hvc0 quiet loglevel=7"), "{line}");
    assert!(!command_line(false, "").unwrap().contains("hvc0"));
    let room = layout::CMDLINE_MAX_BYTES - command_line(true, "").unwrap().len() - 2;
    assert!(command_line(true, &"x".repeat(room)).is_ok());
    assert!(matches!(command_line(true, &"x".repeat(room + 1)), Err(LoadError::CommandLineTooLong { .. })));
    assert!(
        command_line(true, &"x".repeat(crate::config::MAX_BOOT_ARGS_BYTES)).is_ok(),
        "what the configuration allows"
    );
}

#[test]
fn boot_parameters_say_where_everything_is() {
    let memory = memory(32);
    let kernel = LoadedKernel { entry: GuestAddress(16 * MIB), end: GuestAddress(17 * MIB), header: None };
    let initrd = Initrd { start: GuestAddress(30 * MIB), size: 77 };
    write_boot_params(&memory, &kernel, Some(initrd), "a b", 32 * MIB, layout::ACPI_START).unwrap();
    let params: boot_params = memory.read_obj(layout::BOOT_PARAMS_START).unwrap();
    let header = params.hdr;
    assert_eq!(({ header.ramdisk_image }, { header.ramdisk_size }), (0x1e0_0000, 77));
    assert_eq!(({ header.cmd_line_ptr }, { header.cmdline_size }), (0x2_0000, 3));
    assert_eq!({ params.acpi_rsdp_addr }, 0xe_0000);
    assert_eq!(params.e820_entries, 4);
    let mut text = [0; 4];
    memory.read_slice(&mut text, layout::CMDLINE_START).unwrap();
    assert_eq!(&text, b"a b\0");
}

proptest! {
    #[test]
    fn no_elf_panics(changes in prop::collection::vec((0usize..124, any::<u8>()), 1..12), cut in 4usize..125) {
        let mut image = elf(16 * MIB, 4096, 16 * MIB);
        for (at, value) in changes {
            if at >= 4 {
                image[at] = value;
            }
        }
        image.truncate(cut.max(100));
        let _ = load(32, &image);
    }

    #[test]
    fn no_elf_header_panics(start in any::<u64>(), size in any::<u64>(), entry in any::<u64>(), offset in any::<u64>(), note in any::<bool>()) {
        let mut image = elf(start, size, entry);
        image[72..80].copy_from_slice(&offset.to_le_bytes());
        image[64] = if note { 4 } else { 1 };
        let _ = load(32, &image);
    }

    #[test]
    fn no_bzimage_panics(changes in prop::collection::vec((0x1f1usize..0x26c, any::<u8>()), 1..12), cut in 0x206usize..4096) {
        let mut image = bzimage();
        for (at, value) in changes {
            if !(0x202..0x206).contains(&at) {
                image[at] = value;
            }
        }
        image.truncate(cut);
        let _ = load(32, &image);
    }
}
