//! `containerd-shim-kata-v2`: containerd's way to Hull, the runtime `io.containerd.kata.v2`.
//!
//! containerd runs this program with `start` when it wants a container, and with `delete` when a shim has gone. `start`
//! leaves a daemon behind that serves containerd's task API on a socket; one daemon serves one container, or one pod, and
//! so one VM. All of the work with the VM is done by the crate `hull-sandbox`.
//!
//! | module | subject |
//! |---|---|
//! | [`args`] | flags and actions |
//! | [`bootstrap`] | `start`: address, grouping, daemon, answer |
//! | [`serve`] | the daemon |
//! | [`delete`] | `delete`: cleaning up after a shim that has gone |
//! | [`task`] | the task API |
//! | [`vm`] | from a bundle to a VM |
//! | [`stdio`] | standard streams of processes |
//! | [`events`] | what containerd is told |
//! | [`bundle`] | the container's directory |
//! | [`config`] | what the host's administrator sets |
//! | [`log`] | messages for containerd's log |

#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        reason = "tests stop at the first surprise"
    )
)]

mod args;
mod bootstrap;
mod bundle;
mod child;
mod config;
mod delete;
mod error;
mod events;
mod info;
mod log;
mod serve;
mod stdio;
mod task;
mod vm;

use std::process::ExitCode;

use args::{Action, Args};

/// Name of the runtime.
const RUNTIME: &str = "io.containerd.kata.v2";

fn main() -> ExitCode {
    let result = Args::parse(std::env::args_os().skip(1)).and_then(run);
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{RUNTIME}: {}", error::one_line(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> anyhow::Result<()> {
    match args.action {
        Action::Version => info::print_version(),
        Action::Info => info::print_info(),
        Action::Start => bootstrap::start(&args),
        Action::Delete => delete::delete(&args),
        Action::Serve => serve::serve(args),
    }
}
