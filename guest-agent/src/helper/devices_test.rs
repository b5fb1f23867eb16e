use super::*;
use proptest::prelude::*;

/// Runs a program as the kernel does.
fn execute(code: &[BpfInstruction], access: i32, kind: i32, major: i32, minor: i32) -> i32 {
    let context = [access << 16 | kind, major, minor];
    let mut registers = [0_i32; 16];
    let mut next = 0_i32;
    loop {
        let i = code[next as usize];
        let register = (i.registers & 15) as usize;
        next += 1;
        let jump = match i.code {
            AND => {
                registers[register] &= i.immediate;
                false
            }
            SHIFT_RIGHT => {
                registers[register] = (registers[register] as u32 >> i.immediate) as i32;
                false
            }
            MOVE => {
                registers[register] = i.immediate;
                false
            }
            LOAD_WORD => {
                registers[register] = context[i.offset as usize / 4];
                false
            }
            NOT_EQUAL => registers[register] != i.immediate,
            ANY_BIT => registers[register] & i.immediate != 0,
            ALWAYS => true,
            EXIT => return registers[0],
            other => panic!("operation {other:#x}"),
        };
        if jump {
            next += i32::from(i.offset);
        }
    }
}

/// The same decision without a program.
fn decide(rules: &[Rule], access: i32, kind: i32, major: i32, minor: i32) -> bool {
    [MKNOD, READ, WRITE].into_iter().filter(|bit| access & bit != 0).all(|bit| {
        rules
            .iter()
            .rfind(|rule| {
                rule.access & bit != 0
                    && rule.kind.is_none_or(|k| k == kind)
                    && rule.major.is_none_or(|m| m == major)
                    && rule.minor.is_none_or(|m| m == minor)
            })
            .is_some_and(|rule| rule.allow)
    })
}

const ALL: i32 = MKNOD | READ | WRITE;

#[test]
fn without_rules_only_the_usual_devices_can_be_opened() {
    let code = program(&ALWAYS_ALLOWED);
    assert_eq!(execute(&code, READ | WRITE, TYPE_CHARACTER, 1, 3), 1);
    assert_eq!(execute(&code, READ | WRITE, TYPE_CHARACTER, 136, 7), 1);
    assert_eq!(execute(&code, MKNOD, TYPE_BLOCK, 254, 0), 1);
    assert_eq!(execute(&code, READ, TYPE_BLOCK, 254, 0), 0);
    assert_eq!(execute(&code, READ, TYPE_CHARACTER, 1, 1), 0);
}

#[test]
fn a_privileged_container_may_open_everything() {
    let everything = Rule { allow: true, kind: None, major: None, minor: None, access: ALL };
    assert_eq!(execute(&program(&[everything]), ALL, TYPE_BLOCK, 254, 0), 1);
}

fn rules() -> impl Strategy<Value = Vec<Rule>> {
    let number = || prop::option::of(0..3_i32);
    let rule = (any::<bool>(), prop::option::of(1..3_i32), number(), number(), 0..8_i32)
        .prop_map(|(allow, kind, major, minor, access)| Rule { allow, kind, major, minor, access });
    prop::collection::vec(rule, 0..12)
}

proptest! {
    #[test]
    fn the_program_decides_by_the_last_rule_for_each_access(
        rules in rules(), access in 1..8_i32, kind in 1..3_i32, major in 0..3_i32, minor in 0..3_i32
    ) {
        let expected = decide(&rules, access, kind, major, minor);
        prop_assert_eq!(execute(&program(&rules), access, kind, major, minor) == 1, expected);
    }
}
