//! Command lines that Docker users type.

use clap::{CommandFactory, Parser};
use hull_sandbox::sizing;

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
        ("--cpus", "0"),
        ("--pids-limit", "-2"),
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
fn a_size_that_no_vm_can_have_is_refused_with_the_flag_the_value_and_the_bound() {
    let most = sizing::max_cpus().to_string();
    let most_memory = format!("{}m", sizing::MAX_LIMIT_MIB);
    for (flag, value, bound) in [
        ("--memory", "1", "6m"),
        ("--memory", "6291455", "6m"),
        ("--memory", "1t", &most_memory),
        ("--vm-memory", "39m", "40m"),
        ("--vm-memory", "2t", "1t"),
        ("--max-memory", "39m", "40m"),
        ("--max-memory", "2t", "1t"),
        ("--cpus", "0", "0.01"),
        ("--cpus", "500", &most),
        ("--pids-limit", "-2", "from 1"),
        ("--pids-limit", "4294967296", "4294967295"),
    ] {
        let text = refusal(&[flag, value, "img"]);
        assert!(text.contains(flag) && text.contains(&format!("'{value}'")) && text.contains(bound), "{text}");
    }
    assert_eq!(run(&["-m", "6m", "img"]).memory.unwrap().bytes(), 6 << 20);
    assert_eq!(run(&["--vm-memory", "40m", "img"]).vm_memory.unwrap().bytes(), 40 << 20);
    assert!(run(&["--cpus", &most, "img"]).cpus.is_some());
}

#[test]
fn a_process_limit_of_minus_one_means_none() {
    for none in ["0", "-1"] {
        assert_eq!(run(&["--pids-limit", none, "img"]).pids_limit.unwrap().0, None);
    }
    assert_eq!(run(&["--pids-limit", "10", "img"]).pids_limit.unwrap().0, Some(10));
}
