//! Arguments of `hull-vmm` that are refused.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::process::Command;

#[test]
fn one_descriptor_for_configuration_and_events_is_a_usage_error() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hull-vmm"));
    let output = command.args(["run", "--config-fd", "7", "--events-fd", "7"]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains("--events-fd and --config-fd must be different descriptors, not both 7"), "{text}");
}
