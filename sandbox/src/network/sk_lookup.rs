//! A BPF program that chooses the socket of a connection (`BPF_PROG_TYPE_SK_LOOKUP`, Linux 5.9).
#![allow(unsafe_code, reason = "bpf(2) has no safe wrapper")]

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;

const BPF_MAP_CREATE: libc::c_int = 0;
const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_MAP_TYPE_SOCKMAP: u32 = 15;
const BPF_PROG_TYPE_SK_LOOKUP: u32 = 30;
const BPF_SK_LOOKUP: u32 = 36;

/// Gives every new TCP connection to 127.0.0.1 in a network namespace, whatever its port, to `listener`, for as long as the
/// returned descriptor is open. Nothing else is left of it then.
pub fn take_loopback_connections(namespace: BorrowedFd<'_>, listener: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let map = create_map()?;
    put(&map, listener)?;
    let program = load(&program(&map))?;
    attach(&program, namespace)
}

fn create_map() -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attributes {
        map_type: u32,
        key_bytes: u32,
        value_bytes: u32,
        entries: u32,
    }
    descriptor(BPF_MAP_CREATE, &Attributes { map_type: BPF_MAP_TYPE_SOCKMAP, key_bytes: 4, value_bytes: 8, entries: 1 })
}

fn put(map: &OwnedFd, socket: BorrowedFd<'_>) -> io::Result<()> {
    #[repr(C)]
    struct Attributes {
        map: u32,
        padding: u32,
        key: u64,
        value: u64,
        flags: u64,
    }
    let (key, value) = (0_u32, u64::from(number(socket.as_raw_fd())?));
    let attributes = Attributes {
        map: number(map.as_raw_fd())?,
        padding: 0,
        key: (&raw const key) as u64,
        value: (&raw const value) as u64,
        flags: 0,
    };
    call(BPF_MAP_UPDATE_ELEM, &attributes).map(drop)
}

/// Instructions in the kernel's encoding (Documentation/bpf/standardization/instruction-set.rst).
fn program(map: &OwnedFd) -> [u64; 23] {
    // Fields of `struct bpf_sk_lookup`.
    const FAMILY: i16 = 8;
    const PROTOCOL: i16 = 12;
    const LOCAL_IPV4: i16 = 40;
    const MAP_LOOKUP_ELEM: i32 = 1;
    const SK_RELEASE: i32 = 86;
    const SK_ASSIGN: i32 = 124;
    const PSEUDO_MAP_FD: u8 = 1;
    // Operation codes.
    const LOAD_WORD: u8 = 0x61;
    const LOAD_IMMEDIATE: u8 = 0x18;
    const STORE_WORD_IMMEDIATE: u8 = 0x62;
    const MOVE: u8 = 0xbf;
    const MOVE_IMMEDIATE: u8 = 0xb7;
    const ADD_IMMEDIATE: u8 = 0x07;
    const JUMP_NOT_EQUAL: u8 = 0x55;
    const JUMP_EQUAL: u8 = 0x15;
    const CALL: u8 = 0x85;
    const EXIT: u8 = 0x95;
    const PASS: i32 = 1;

    let loopback = i32::from_ne_bytes([127, 0, 0, 1]);
    // The distance of each jump is to the two last instructions.
    [
        instruction(MOVE, 6, 1, 0, 0),
        instruction(LOAD_WORD, 2, 6, PROTOCOL, 0),
        instruction(JUMP_NOT_EQUAL, 2, 0, 18, libc::IPPROTO_TCP),
        instruction(LOAD_WORD, 2, 6, FAMILY, 0),
        instruction(JUMP_NOT_EQUAL, 2, 0, 16, libc::AF_INET),
        instruction(LOAD_WORD, 2, 6, LOCAL_IPV4, 0),
        instruction(JUMP_NOT_EQUAL, 2, 0, 14, loopback),
        instruction(STORE_WORD_IMMEDIATE, 10, 0, -4, 0),
        instruction(LOAD_IMMEDIATE, 1, PSEUDO_MAP_FD, 0, map.as_raw_fd()),
        0,
        instruction(MOVE, 2, 10, 0, 0),
        instruction(ADD_IMMEDIATE, 2, 0, 0, -4),
        instruction(CALL, 0, 0, 0, MAP_LOOKUP_ELEM),
        instruction(JUMP_EQUAL, 0, 0, 7, 0),
        instruction(MOVE, 7, 0, 0, 0),
        instruction(MOVE, 1, 6, 0, 0),
        instruction(MOVE, 2, 7, 0, 0),
        instruction(MOVE_IMMEDIATE, 3, 0, 0, 0),
        instruction(CALL, 0, 0, 0, SK_ASSIGN),
        instruction(MOVE, 1, 7, 0, 0),
        instruction(CALL, 0, 0, 0, SK_RELEASE),
        instruction(MOVE_IMMEDIATE, 0, 0, 0, PASS),
        instruction(EXIT, 0, 0, 0, 0),
    ]
}

fn instruction(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> u64 {
    let [low, high] = offset.to_ne_bytes();
    let [a, b, c, d] = immediate.to_ne_bytes();
    u64::from_ne_bytes([code, source << 4 | destination, low, high, a, b, c, d])
}

fn load(program: &[u64]) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attributes {
        program_type: u32,
        instruction_count: u32,
        instructions: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log_buffer: u64,
        kernel_version: u32,
        flags: u32,
        name: [u8; 16],
        interface: u32,
        attach_type: u32,
    }
    let attributes = Attributes {
        program_type: BPF_PROG_TYPE_SK_LOOKUP,
        instruction_count: u32::try_from(program.len()).map_err(io::Error::other)?,
        instructions: program.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log_buffer: 0,
        kernel_version: 0,
        flags: 0,
        name: *b"hull_forward\0\0\0\0",
        interface: 0,
        attach_type: BPF_SK_LOOKUP,
    };
    descriptor(BPF_PROG_LOAD, &attributes)
}

fn attach(program: &OwnedFd, namespace: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attributes {
        program: u32,
        target: u32,
        attach_type: u32,
        flags: u32,
    }
    let attributes = Attributes {
        program: number(program.as_raw_fd())?,
        target: number(namespace.as_raw_fd())?,
        attach_type: BPF_SK_LOOKUP,
        flags: 0,
    };
    descriptor(BPF_LINK_CREATE, &attributes)
}

/// A command that makes a descriptor, which is closed on exec.
fn descriptor<Attributes>(command: libc::c_int, attributes: &Attributes) -> io::Result<OwnedFd> {
    let fd = RawFd::try_from(call(command, attributes)?).map_err(io::Error::other)?;
    // SAFETY: the kernel has just returned this descriptor to us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// `attributes` are the head of `union bpf_attr`; what follows them counts as zero.
fn call<Attributes>(command: libc::c_int, attributes: &Attributes) -> io::Result<libc::c_long> {
    // SAFETY: the attributes and what they point to outlive the call, and the size is the attributes'.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes, size_of::<Attributes>()) };
    Ok(Errno::result(result)?)
}

fn number(fd: RawFd) -> io::Result<u32> {
    u32::try_from(fd).map_err(io::Error::other)
}
