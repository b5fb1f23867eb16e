//! `hull`: secure containers, each in its own microVM.
//!
//! Raw arguments ([`args`]) become validated ones, then something runs; what goes wrong becomes one line and an exit code
//! ([`failure`]).

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
mod completion;
mod context;
mod device;
mod doctor;
mod failure;
mod find;
mod images;
mod kernel;
mod output;
mod progress;
mod ps;
mod run;
mod stop;
mod table;
mod update;
mod version;

use std::process::ExitCode;

use clap::Parser;

use args::{Cli, Command};
use failure::Failure;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return failure::usage(&error, std::env::args_os()),
    };
    start_log();
    let result = match cli.command {
        Command::Keeper => run::keeper(),
        command => dispatch(command, &cli.global),
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(failure) => failure.report(),
    }
}

fn dispatch(command: Command, global: &args::Global) -> Result<u8, Failure> {
    let context = context::Context::new(global);
    match command {
        Command::Run(args) => run::run(*args, &context),
        Command::Pull(args) => images::pull(&args, &context),
        Command::Images(args) => images::list(&args, &context),
        Command::Rmi(args) => images::remove(&args, &context),
        Command::Ps(args) => ps::list(&args, &context),
        Command::Stop(args) => stop::stop(&args, &context),
        Command::Update(args) => update::update(&args, &context),
        Command::Device { command } => device::device(&command, &context),
        Command::Kernel(args) => kernel::show(&args),
        Command::Doctor(args) => doctor::check(&args, &context),
        Command::Version(args) => version::show(&args),
        Command::Completion(args) => completion::print(&args),
        Command::Keeper => run::keeper(),
    }
}

/// Diagnostics go to standard error when `HULL_LOG` asks for them, such as `HULL_LOG=debug`.
fn start_log() {
    if let Ok(filter) = tracing_subscriber::EnvFilter::try_from_env("HULL_LOG") {
        let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).try_init();
    }
}
