//! Which devices a container may open: the rules of its specification as a program on its cgroup.
//!
//! Each requested access (read, write, mknod) is decided by the last rule that speaks of it, as for cgroup v1. What no
//! rule allows is denied.

use std::path::Path;

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

use crate::failure::{Context, Failure};
use crate::sys::{self, BpfInstruction};

/// Most rules of a specification.
const MAX_RULES: usize = 256;

// `struct bpf_cgroup_dev_ctx`: access << 16 | type, major, minor; 32 bits each.
const OFFSET_ACCESS_AND_TYPE: i16 = 0;
const OFFSET_MAJOR: i16 = 4;
const OFFSET_MINOR: i16 = 8;

const TYPE_BLOCK: i32 = 1;
const TYPE_CHARACTER: i32 = 2;

const MKNOD: i32 = 1;
const READ: i32 = 2;
const WRITE: i32 = 4;

/// A rule; `None` stands for any.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rule {
    allow: bool,
    kind: Option<i32>,
    major: Option<i32>,
    minor: Option<i32>,
    access: i32,
}

/// Attaches a program with the rules of the specification to a cgroup.
pub fn restrict(cgroup: &Path, rules: &[LinuxDeviceCgroup]) -> Result<(), Failure> {
    if rules.len() > MAX_RULES {
        return Err(Failure::invalid(format!("a specification has at most {MAX_RULES} device rules")));
    }
    let mut all = rules.iter().map(rule).collect::<Result<Vec<_>, _>>()?;
    all.extend(ALWAYS_ALLOWED);
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let cgroup = open(cgroup, flags, Mode::empty()).context("open the cgroup")?;
    sys::attach_device_program(&program(&all), cgroup).context("restrict devices")
}

/// What every container may do, whatever its specification says: make any node (opening it is another matter), and use
/// the devices that are in every container's /dev.
const ALWAYS_ALLOWED: [Rule; 11] = [
    Rule { allow: true, kind: Some(TYPE_CHARACTER), major: None, minor: None, access: MKNOD },
    Rule { allow: true, kind: Some(TYPE_BLOCK), major: None, minor: None, access: MKNOD },
    character(1, Some(3)), // /dev/null
    character(1, Some(5)), // /dev/zero
    character(1, Some(7)), // /dev/full
    character(1, Some(8)), // /dev/random
    character(1, Some(9)), // /dev/urandom
    character(5, Some(0)), // /dev/tty
    character(5, Some(1)), // /dev/console, which is a pseudo-terminal's slave in a container
    character(5, Some(2)), // /dev/ptmx
    character(136, None),  // /dev/pts/*
];

const fn character(major: i32, minor: Option<i32>) -> Rule {
    Rule { allow: true, kind: Some(TYPE_CHARACTER), major: Some(major), minor, access: MKNOD | READ | WRITE }
}

fn rule(rule: &LinuxDeviceCgroup) -> Result<Rule, Failure> {
    let number = |number: Option<i64>, name: &str| match number {
        None | Some(-1) => Ok(None),
        Some(number) => i32::try_from(number)
            .map(Some)
            .map_err(|_| Failure::invalid(format!("device {name} number {number} is out of range"))),
    };
    let kind = match rule.typ().unwrap_or(LinuxDeviceType::A) {
        LinuxDeviceType::A => None,
        LinuxDeviceType::B => Some(TYPE_BLOCK),
        LinuxDeviceType::C | LinuxDeviceType::U => Some(TYPE_CHARACTER),
        LinuxDeviceType::P => return Err(Failure::invalid("a FIFO needs no device rule")),
    };
    let access = match rule.access() {
        None => MKNOD | READ | WRITE,
        Some(letters) => letters.chars().try_fold(0, |access, letter| match letter {
            'm' => Ok(access | MKNOD),
            'r' => Ok(access | READ),
            'w' => Ok(access | WRITE),
            _ => Err(Failure::invalid(format!("device access {letters:?} is not made of r, w and m"))),
        })?,
    };
    Ok(Rule {
        allow: rule.allow(),
        kind,
        major: number(rule.major(), "major")?,
        minor: number(rule.minor(), "minor")?,
        access,
    })
}

/// The program: register 2 holds the device's type, 3 the accesses not yet allowed, 4 and 5 its numbers.
fn program(rules: &[Rule]) -> Vec<BpfInstruction> {
    let mut code = vec![
        load(2, OFFSET_ACCESS_AND_TYPE),
        constant(AND, 2, 0xffff),
        load(3, OFFSET_ACCESS_AND_TYPE),
        constant(SHIFT_RIGHT, 3, 16),
        load(4, OFFSET_MAJOR),
        load(5, OFFSET_MINOR),
    ];
    for rule in rules.iter().rev() {
        let tests = [(2, rule.kind), (4, rule.major), (5, rule.minor)];
        let decide = decision(rule);
        let mut tests: Vec<_> = tests.iter().filter_map(|(register, wanted)| wanted.map(|w| (*register, w))).collect();
        while !tests.is_empty() {
            let (register, wanted) = tests.remove(0);
            // Over the tests that are left and the decision, to the next rule.
            let skip = tests.len() + decide.len();
            code.push(jump(NOT_EQUAL, register, wanted, i16::try_from(skip).unwrap_or(i16::MAX)));
        }
        code.extend(decide);
    }
    code.extend(answer(0));
    code
}

fn decision(rule: &Rule) -> Vec<BpfInstruction> {
    let [set, exit] = answer(i32::from(rule.allow));
    if rule.allow {
        // What is allowed is settled; with nothing left to settle, the answer is yes.
        vec![constant(AND, 3, !rule.access), jump(NOT_EQUAL, 3, 0, 2), set, exit]
    } else {
        // One access that is asked for and denied is enough for a no.
        vec![jump(ANY_BIT, 3, rule.access, 1), jump(ALWAYS, 0, 0, 2), set, exit]
    }
}

// Operations on 32 bits with a constant, from linux/bpf.h and linux/bpf_common.h.
const AND: u8 = 0x54;
const SHIFT_RIGHT: u8 = 0x74;
const MOVE: u8 = 0xb4;
const NOT_EQUAL: u8 = 0x56;
const ANY_BIT: u8 = 0x46;
const ALWAYS: u8 = 0x05;
const LOAD_WORD: u8 = 0x61;
const EXIT: u8 = 0x95;

/// The context's address, which register 1 holds at the start, is the source.
const fn load(register: u8, offset: i16) -> BpfInstruction {
    BpfInstruction { code: LOAD_WORD, registers: 1 << 4 | register, offset, immediate: 0 }
}

const fn constant(code: u8, register: u8, immediate: i32) -> BpfInstruction {
    BpfInstruction { code, registers: register, offset: 0, immediate }
}

const fn jump(code: u8, register: u8, immediate: i32, offset: i16) -> BpfInstruction {
    BpfInstruction { code, registers: register, offset, immediate }
}

const fn answer(value: i32) -> [BpfInstruction; 2] {
    [constant(MOVE, 0, value), constant(EXIT, 0, 0)]
}

#[cfg(test)]
#[path = "devices_test.rs"]
mod tests;
