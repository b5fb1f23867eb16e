//! `hull completion`.

use clap::CommandFactory;
use clap_complete::Shell;

use crate::args::{Cli, CompletionArgs, CompletionShell};
use crate::failure::Failure;
use crate::output::print as print_text;

pub fn print(args: &CompletionArgs) -> Result<u8, Failure> {
    let shell = match args.shell {
        CompletionShell::Bash => Shell::Bash,
        CompletionShell::Zsh => Shell::Zsh,
        CompletionShell::Fish => Shell::Fish,
    };
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "hull", &mut script);
    print_text(&String::from_utf8_lossy(&script))?;
    Ok(0)
}
