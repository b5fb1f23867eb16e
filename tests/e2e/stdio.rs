//! Standard streams: apart, exact, whole.

use crate::harness::{Hull, image, noise};

#[test]
fn output_and_errors_stay_apart() {
    let run = Hull::new().sh(&[], "echo out; echo err >&2; printf 'tail'");
    assert_eq!(run.ok(), "out\ntail");
    assert_eq!(run.stderr, "err\n");
}

#[test]
fn sixty_four_mebibytes_pass_through_all_three_streams_unchanged() {
    let input = noise(64 << 20);
    let image = image("busybox");
    let run = Hull::new().feed(&["run", "-i", &image, "sh", "-c", "tee /proc/self/fd/2"], input.clone());
    assert_eq!(run.code, Some(0));
    assert_eq!(run.stdout.len(), input.len());
    assert!(run.stdout == input, "stdout differs");
    // stderr went through a lossy conversion, which is the same for the same bytes.
    assert!(run.stderr == String::from_utf8_lossy(&input), "stderr differs");
}

#[test]
fn standard_input_is_empty_without_the_interactive_flag() {
    let image = image("busybox");
    let run = Hull::new().feed(&["run", &image, "cat"], b"not for you".to_vec());
    assert_eq!(run.ok(), "");
}

#[test]
fn the_end_of_standard_input_reaches_the_container() {
    let image = image("busybox");
    let run = Hull::new().feed(&["run", "-i", &image, "wc", "-c"], noise(100_000));
    assert_eq!(run.ok().trim(), "100000");
}

#[test]
fn a_reader_that_goes_away_ends_the_writer() {
    let hull = Hull::new();
    let image = image("busybox");
    let mut child = hull.command(["run", &image, "yes"]).spawn().unwrap();
    drop(child.stdout.take());
    // `yes` dies of SIGPIPE; what counts is that nothing hangs.
    assert!(!child.wait().unwrap().success());
}
