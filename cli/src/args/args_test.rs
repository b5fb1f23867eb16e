//! Command lines that Docker users type.

use clap::{CommandFactory, Parser};

use super::*;

fn run(args: &[&str]) -> RunArgs {
    match Cli::try_parse_from(["hull", "run"].iter().chain(args)).unwrap().command {
        Command::Run(args) => *args,
        other => panic!("{other:?}"),
    }
}

fn refusal(args: &[&str]) -> String {
    Cli::try_parse_from(["hull", "run"].iter().chain(args)).unwrap_err().to_string()
}

#[test]
fn the_definition_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn what_follows_the_image_belongs_to_the_command() {
    let args = run(&["-it", "--rm", "img", "sh", "-c", "echo --rm -x"]);
    assert!(args.interactive && args.tty && args.rm);
    assert_eq!(args.image_and_command, ["img", "sh", "-c", "echo --rm -x"]);
    let args = run(&["img", "--help", "-e", "x"]);
    assert_eq!(args.image_and_command, ["img", "--help", "-e", "x"]);
    assert!(args.env.is_empty());
    assert_eq!(run(&["img", "--", "a"]).image_and_command, ["img", "--", "a"]);
}

#[test]
fn flags_have_dockers_short_forms() {
    let args = run(&["-e", "A=1", "-w", "/w", "-u", "1:2", "-h", "host", "-m", "50m", "--init", "img"]);
    assert_eq!(args.hostname.as_deref(), Some("host"));
    assert_eq!(args.memory.unwrap().bytes(), 50 << 20);
    assert_eq!(args.init, Some(Init::True));
    assert_eq!(args.image_and_command, ["img"]);
    assert_eq!(run(&["--init=false", "img"]).init, Some(Init::False));
}

#[test]
fn a_refusal_names_its_flag() {
    for (flag, value) in [
        ("--memory", "0"),
        ("--vm-memory", "1m"),
        ("--vcpus", "0"),
        ("--vcpus", "65"),
        ("--cpus", "-1"),
        ("--pids-limit", "many"),
        ("--ulimit", "nofile"),
        ("--sysctl", "novalue"),
        ("--tmpfs", "relative"),
        ("--cap-add", "NO_SUCH"),
        ("--network", "bridge"),
        ("--security-opt", "label=x"),
        ("--name", "a/b"),
        ("--hostname", "a b"),
    ] {
        let text = refusal(&[&format!("{flag}={value}"), "img"]);
        assert!(text.contains(flag), "{text}");
    }
    assert!(refusal(&["--no-such-flag", "img"]).contains("--no-such-flag"));
    assert!(refusal(&[]).contains("IMAGE"));
}

#[test]
fn negative_and_zero_process_limits_mean_none() {
    assert_eq!(run(&["--pids-limit", "-1", "img"]).pids_limit.unwrap().0, None);
    assert_eq!(run(&["--pids-limit", "10", "img"]).pids_limit.unwrap().0, Some(10));
}
