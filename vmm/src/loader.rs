//! Kernel, initramfs, command line and boot parameters in guest memory.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use linux_loader::loader::KernelLoader;
use linux_loader::loader::bootparam::{XLF_KERNEL_64, boot_params, setup_header};
use linux_loader::loader::bzimage::BzImage;
use linux_loader::loader::elf::Elf;
use thiserror::Error;
use vm_memory::{Address, Bytes, GuestAddress, GuestMemory, GuestMemoryMmap};

use crate::arch::layout;

/// Offset of the 64-bit entry from the start of a bzImage's protected-mode code.
const BZIMAGE_ENTRY_64: u64 = 0x200;
/// `loadflags`: protected-mode code is at 1 MiB.
const LOADED_HIGH: u8 = 1;
/// First boot protocol with `xloadflags` (Linux 3.8).
const PROTOCOL_2_12: u16 = 0x20c;
/// "HdrS", at 0x202 in a bzImage.
const BZIMAGE_MAGIC: u32 = 0x5372_6448;
const BZIMAGE_HEADER_START: u64 = 0x1f1;
const ELF_MAGIC: [u8; 4] = *b"\x7fELF";
/// Kernels have about five program headers.
const MAX_PROGRAM_HEADERS: u16 = 64;
/// What Linux accepts when the kernel's header doesn't say.
const INITRD_ADDR_MAX: u64 = 0x7fff_ffff;
const PAGE_BYTES: u64 = 4096;

/// The VM has nothing to boot.
#[derive(Debug, Error)]
pub enum LoadError {
    /// The file can't be opened or read.
    #[error("{what} {}: can't read", path.display())]
    File {
        /// "Kernel" or "Initrd".
        what: &'static str,
        /// Path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A directory, a FIFO or the like.
    #[error("{what} {}: not a regular file", path.display())]
    NotAFile {
        /// "Kernel" or "Initrd".
        what: &'static str,
        /// Path.
        path: PathBuf,
    },
    /// Neither ELF nor bzImage.
    #[error("The kernel file is not a kernel: neither an ELF vmlinux nor a bzImage")]
    NotAKernel,
    /// An ELF file that can't be a kernel for this machine, or a damaged one.
    #[error("The kernel is not usable: {0}")]
    BadElf(&'static str),
    /// A bzImage that can't be used.
    #[error("The kernel is not usable: {0}")]
    BadBzImage(&'static str),
    /// Part of the kernel would be outside memory.
    #[error("The kernel needs memory up to {need_mib} MiB, but the VM has {have_mib} MiB there")]
    KernelTooLarge {
        /// End of the kernel.
        need_mib: u64,
        /// End of low memory.
        have_mib: u64,
    },
    /// No room between kernel and end of memory.
    #[error("The initrd has {size_mib} MiB, but only {room_mib} MiB of memory are free behind the kernel")]
    InitrdTooLarge {
        /// Size of the file.
        size_mib: u64,
        /// Room for it.
        room_mib: u64,
    },
    /// Too many words.
    #[error("The kernel command line has {len} bytes, but at most {max} fit")]
    CommandLineTooLong {
        /// With the platform's words and the final NUL.
        len: usize,
        /// Limit.
        max: usize,
    },
    /// The loader failed after all checks.
    #[error("Can't load the kernel")]
    Loader(#[from] linux_loader::loader::Error),
    /// Guest memory has no place at a fixed address.
    #[error("Can't write to guest memory")]
    Memory(#[from] vm_memory::GuestMemoryError),
}

/// A kernel in guest memory.
#[derive(Debug)]
pub struct LoadedKernel {
    /// Address of the 64-bit entry.
    pub entry: GuestAddress,
    /// First address that the kernel doesn't need before it reads the memory map.
    pub end: GuestAddress,
    /// Header of a bzImage.
    header: Option<setup_header>,
}

impl LoadedKernel {
    fn initrd_address_max(&self) -> u64 {
        self.header.map_or(INITRD_ADDR_MAX, |header| u64::from(header.initrd_addr_max))
    }
}

/// Opens a file that must be a regular one; never waits for the other end of a FIFO.
pub fn open_regular(what: &'static str, path: &Path) -> Result<(File, u64), LoadError> {
    let fail = |source| LoadError::File { what, path: path.to_owned(), source };
    let file = std::fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(fail)?;
    let metadata = file.metadata().map_err(fail)?;
    if !metadata.is_file() {
        return Err(LoadError::NotAFile { what, path: path.to_owned() });
    }
    Ok((file, metadata.len()))
}

/// Loads an ELF `vmlinux` or a bzImage.
pub fn load_kernel(memory: &GuestMemoryMmap, file: &mut File, file_bytes: u64) -> Result<LoadedKernel, LoadError> {
    let mut magic = [0; 4];
    if file.read_exact_at(&mut magic, 0).is_ok() && magic == ELF_MAGIC {
        return load_elf(memory, file, file_bytes);
    }
    let mut header = [0; 4];
    if file.read_exact_at(&mut header, 0x202).is_ok() && u32::from_le_bytes(header) == BZIMAGE_MAGIC {
        return load_bzimage(memory, file, file_bytes);
    }
    Err(LoadError::NotAKernel)
}

fn load_elf(memory: &GuestMemoryMmap, file: &mut File, file_bytes: u64) -> Result<LoadedKernel, LoadError> {
    let image = check_elf(memory, file, file_bytes)?;
    let loaded = Elf::load(memory, None, file, Some(layout::HIMEM_START))?;
    Ok(LoadedKernel { entry: loaded.kernel_load, end: GuestAddress(image.end), header: None })
}

struct ElfImage {
    end: u64,
}

/// Checks all that the loader will follow: it trusts the sizes in the headers.
fn check_elf(memory: &GuestMemoryMmap, file: &File, file_bytes: u64) -> Result<ElfImage, LoadError> {
    const CLASS_64: u8 = 2;
    const LITTLE_ENDIAN: u8 = 1;
    const MACHINE_X86_64: u16 = 62;
    const PT_LOAD: u32 = 1;
    const PT_NOTE: u32 = 4;
    const KERNEL_HALF: u64 = 1 << 63;
    let truncated = LoadError::BadElf("truncated ELF file");
    let mut header = [0; 64];
    if file.read_exact_at(&mut header, 0).is_err() {
        return Err(truncated);
    }
    if header[4] != CLASS_64 || header[5] != LITTLE_ENDIAN || u16_at(&header, 18) != MACHINE_X86_64 {
        return Err(LoadError::BadElf("not a 64-bit x86 ELF file"));
    }
    let (entry, table, count) = (u64_at(&header, 24), u64_at(&header, 32), u16_at(&header, 56));
    if count == 0 || count > MAX_PROGRAM_HEADERS {
        return Err(LoadError::BadElf("no program headers, or too many"));
    }
    let mut image = ElfImage { end: 0 };
    let mut has_entry = false;
    let mut has_kernel_address = false;
    for index in 0..u64::from(count) {
        let mut program = [0; 56];
        let at = table.checked_add(index * 56);
        if at.is_none_or(|at| at > file_bytes || file.read_exact_at(&mut program, at).is_err()) {
            return Err(truncated);
        }
        let kind = u32_at(&program, 0);
        if kind != PT_LOAD && kind != PT_NOTE {
            continue;
        }
        let (offset, linked, start) = (u64_at(&program, 8), u64_at(&program, 16), u64_at(&program, 24));
        let (in_file, in_memory) = (u64_at(&program, 32), u64_at(&program, 40));
        if offset.checked_add(in_file).is_none_or(|end| end > file_bytes) {
            return Err(truncated);
        }
        if kind == PT_NOTE {
            continue;
        }
        let size = in_memory.max(in_file);
        let end = start.checked_add(size).ok_or(LoadError::BadElf("segment wraps around"))?;
        if start < layout::HIMEM_START.0 && size > 0 {
            return Err(LoadError::BadElf("segment below 1 MiB"));
        }
        check_room(memory, end)?;
        has_entry |= (start..end).contains(&entry);
        has_kernel_address |= linked >= KERNEL_HALF;
        image.end = image.end.max(end);
    }
    if !has_kernel_address {
        return Err(LoadError::BadElf("an ELF file, but a program or a library, not a kernel"));
    }
    if !has_entry {
        return Err(LoadError::BadElf("the entry point is in no segment"));
    }
    Ok(image)
}

fn load_bzimage(memory: &GuestMemoryMmap, file: &mut File, file_bytes: u64) -> Result<LoadedKernel, LoadError> {
    let mut bytes = [0; size_of::<setup_header>()];
    if file.read_exact_at(&mut bytes, BZIMAGE_HEADER_START).is_err() {
        return Err(LoadError::BadBzImage("truncated bzImage"));
    }
    if file_bytes <= (u64::from(bytes[0]).max(4) + 1) * 512 {
        return Err(LoadError::BadBzImage("truncated bzImage"));
    }
    file.seek(SeekFrom::Start(0)).map_err(|_| LoadError::BadBzImage("unreadable bzImage"))?;
    check_room(memory, layout::HIMEM_START.0 + file_bytes)?;
    let loaded = BzImage::load(memory, Some(layout::HIMEM_START), file, Some(layout::HIMEM_START))?;
    let header = loaded.setup_header.ok_or(LoadError::BadBzImage("no setup header"))?;
    if header.version < PROTOCOL_2_12 || u32::from(header.xloadflags) & XLF_KERNEL_64 == 0 {
        return Err(LoadError::BadBzImage("a bzImage without a 64-bit entry"));
    }
    // The kernel moves itself to its preferred address and unpacks there.
    let unpacked = header.pref_address.checked_add(u64::from(header.init_size));
    let end = unpacked.ok_or(LoadError::BadBzImage("preferred address wraps around"))?.max(loaded.kernel_end);
    check_room(memory, end)?;
    let entry = loaded.kernel_load.unchecked_add(BZIMAGE_ENTRY_64);
    Ok(LoadedKernel { entry, end: GuestAddress(end), header: Some(header) })
}

/// The kernel has to be in low memory, as far as the first page tables reach.
fn check_room(memory: &GuestMemoryMmap, end: u64) -> Result<(), LoadError> {
    let have = low_memory_end(memory).min(layout::BOOT_MAPPED_BYTES);
    if end > have {
        return Err(LoadError::KernelTooLarge { need_mib: end.div_ceil(1 << 20), have_mib: have >> 20 });
    }
    Ok(())
}

fn low_memory_end(memory: &GuestMemoryMmap) -> u64 {
    memory.find_region(GuestAddress(0)).map_or(0, vm_memory::GuestMemoryRegion::len)
}

/// Where an initramfs is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Initrd {
    /// Address.
    pub start: GuestAddress,
    /// Size in bytes.
    pub size: u32,
}

/// Loads the initramfs as high in low memory as the kernel can reach, away from where the kernel unpacks.
pub fn load_initrd(memory: &GuestMemoryMmap, kernel: &LoadedKernel, path: &Path) -> Result<Initrd, LoadError> {
    const WHAT: &str = "Initrd";
    let (mut file, bytes) = open_regular(WHAT, path)?;
    let top = low_memory_end(memory).min(kernel.initrd_address_max().saturating_add(1));
    let bottom = kernel.end.0.next_multiple_of(PAGE_BYTES);
    let room = top.saturating_sub(bottom);
    let too_large = LoadError::InitrdTooLarge { size_mib: bytes.div_ceil(1 << 20), room_mib: room >> 20 };
    let (true, Ok(size)) = (bytes <= room, u32::try_from(bytes)) else { return Err(too_large) };
    let start = (top - bytes) / PAGE_BYTES * PAGE_BYTES;
    if start < bottom {
        return Err(too_large);
    }
    memory
        .read_exact_volatile_from(GuestAddress(start), &mut file, size as usize)
        .map_err(|error| LoadError::File { what: WHAT, path: path.to_owned(), source: io::Error::other(error) })?;
    Ok(Initrd { start: GuestAddress(start), size })
}

/// The kernel's command line: what the platform needs, then the user's words, which win where Linux takes the last.
pub fn command_line(has_console: bool, boot_args: &str) -> Result<String, LoadError> {
    let mut words = PLATFORM_WORDS.join(" ");
    if has_console {
        words.push_str(" console=hvc0");
    }
    if !boot_args.is_empty() {
        words.push(' ');
        words.push_str(boot_args);
    }
    let len = words.len() + 1;
    if len > layout::CMDLINE_MAX_BYTES {
        return Err(LoadError::CommandLineTooLong { len, max: layout::CMDLINE_MAX_BYTES });
    }
    Ok(words)
}

/// Words that fit the kernel to this machine.
const PLATFORM_WORDS: &[&str] = &[
    // The level first: what is printed before it is parsed goes out byte by byte through the serial port.
    "loglevel=2",
    "earlyprintk=serial,ttyS0",
    // ACPI's reset register. A triple fault (reboot=t) could not be told from a crash: Linux resets the console device before it says
    // "Restarting system".
    "reboot=a",
    "panic=-1",
    // No probes of configuration ports that don't exist.
    "pci=noearly",
    // Processors start one after another. In parallel all of them spin until the first has seen each: with 64 vCPUs on two host
    // processors the start took minutes instead of five seconds.
    "cpuhp.parallel=0",
];

/// Writes the boot parameters ("zero page") and the command line.
pub fn write_boot_params(
    memory: &GuestMemoryMmap,
    kernel: &LoadedKernel,
    initrd: Option<Initrd>,
    command_line: &str,
    ram_bytes: u64,
    rsdp: GuestAddress,
) -> Result<(), LoadError> {
    let mut text = command_line.as_bytes().to_vec();
    text.push(0);
    memory.write_slice(&text, layout::CMDLINE_START)?;

    let mut params = boot_params { hdr: kernel.header.unwrap_or_else(elf_header), ..Default::default() };
    params.hdr.type_of_loader = 0xff;
    params.hdr.cmd_line_ptr = low_address(layout::CMDLINE_START);
    params.hdr.cmdline_size = u32::try_from(command_line.len()).unwrap_or(0);
    if let Some(initrd) = initrd {
        params.hdr.ramdisk_image = low_address(initrd.start);
        params.hdr.ramdisk_size = initrd.size;
    }
    params.acpi_rsdp_addr = rsdp.0;
    let map = layout::e820(ram_bytes);
    params.e820_entries = u8::try_from(map.len()).unwrap_or(0);
    for (slot, entry) in params.e820_table.iter_mut().zip(map) {
        *slot = entry;
    }
    memory.write_obj(params, layout::BOOT_PARAMS_START)?;
    Ok(())
}

/// An ELF file has no setup header: the least that the kernel looks at.
fn elf_header() -> setup_header {
    setup_header {
        boot_flag: 0xaa55,
        header: BZIMAGE_MAGIC,
        version: PROTOCOL_2_12,
        loadflags: LOADED_HIGH,
        kernel_alignment: 0x100_0000,
        ..Default::default()
    }
}

fn low_address(address: GuestAddress) -> u32 {
    // Everything that the header names is below 4 GiB by construction.
    u32::try_from(address.0).unwrap_or(0)
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).and_then(|b| b.try_into().ok()).map_or(0, u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
}

#[cfg(test)]
#[path = "loader_test.rs"]
mod tests;
