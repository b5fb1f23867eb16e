//! What goes wrong becomes one line, `hull: cause; hint`, and an exit code.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::CommandFactory;
use clap::error::ErrorKind;
use hull_sandbox::SandboxError;
use hull_sandbox::text::one_line;

use crate::args::Cli;
use crate::output::say;

/// Hull failed, or was called wrongly.
pub const FAILED: u8 = 125;
/// The command can't be executed.
pub const NOT_EXECUTABLE: u8 = 126;
/// The command was not found.
pub const NOT_FOUND: u8 = 127;
/// The VM or the container was killed.
pub const KILLED: u8 = 137;

const MAX_LINE_BYTES: usize = 4000;

/// A command failed.
#[derive(Debug)]
pub struct Failure {
    pub code: u8,
    error: anyhow::Error,
}

impl Failure {
    pub fn new(code: u8, error: impl Into<anyhow::Error>) -> Self {
        Self { code, error: error.into() }
    }

    /// With a message instead of an error.
    pub fn message(code: u8, text: impl std::fmt::Display) -> Self {
        Self::new(code, anyhow::anyhow!("{text}"))
    }

    /// Cause and hint in one line.
    pub fn line(&self) -> String {
        let mut line = String::new();
        let mut last = String::new();
        for cause in self.error.chain() {
            let text = cause.to_string();
            // Some errors already contain their cause.
            if !last.contains(&text) {
                let separator = if line.is_empty() { "" } else { ": " };
                line = format!("{line}{separator}{text}");
                last = text;
            }
        }
        if let Some(hint) = self.hint() {
            line = format!("{line}; {hint}");
        }
        format!("hull: {}", one_line(&line, MAX_LINE_BYTES))
    }

    /// Prints the line.
    pub fn report(&self) -> ExitCode {
        say(self.line());
        ExitCode::from(self.code)
    }

    fn hint(&self) -> Option<&'static str> {
        self.error.chain().find_map(|cause| cause.downcast_ref::<SandboxError>()).and_then(SandboxError::hint)
    }
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::new(FAILED, error)
    }
}

/// What clap says about `args`: help as it is, mistakes in one line.
pub fn usage(error: &clap::Error, args: impl IntoIterator<Item = OsString>) -> ExitCode {
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    // clap's own text lists the hidden subcommands too.
    if error.kind() == ErrorKind::MissingSubcommand {
        say("hull: a command is needed; see `hull --help`");
        return ExitCode::from(FAILED);
    }
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        let _ = error.print();
        return ExitCode::from(FAILED);
    }
    say(usage_line(&error.to_string(), &command_line_of_help(args)));
    ExitCode::from(FAILED)
}

/// What to type for help with the subcommand in `args`, or with all of them if there is none.
fn command_line_of_help(args: impl IntoIterator<Item = OsString>) -> String {
    let cli = Cli::command();
    let mut args = args.into_iter().skip(1);
    while let Some(arg) = args.next() {
        // The only flag before the subcommand that takes a value.
        if arg == "--root" {
            args.next();
        } else if !arg.as_encoded_bytes().starts_with(b"-") {
            let subcommand = cli.find_subcommand(&arg).filter(|subcommand| !subcommand.is_hide_set());
            return subcommand.map_or("hull --help".into(), |found| format!("hull {} --help", found.get_name()));
        }
    }
    "hull --help".into()
}

/// The message without its usage text; tips become hints. `help` is what to type for more.
fn usage_line(rendered: &str, help: &str) -> String {
    let message: Vec<_> = rendered
        .lines()
        .map(str::trim)
        .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more information"))
        .filter(|line| !line.is_empty())
        .collect();
    let mut line = String::new();
    for part in message {
        match part.strip_prefix("tip: ") {
            // The other tips are about values that look like flags.
            Some(tip) if !tip.contains("similar") => (),
            Some(tip) => line = format!("{line}; {tip}"),
            None => line = format!("{line} {part}"),
        }
    }
    let line = line.trim_start().trim_start_matches("error: ");
    let line = one_line(line, MAX_LINE_BYTES);
    match line.contains("; ") {
        true => format!("hull: {line}"),
        false => format!("hull: {line}; see `{help}`"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn a_chain_is_one_line_and_says_nothing_twice() {
        let inner = std::io::Error::other("disk\nfull");
        let error = anyhow::Error::new(inner).context("writing x: disk\nfull").context("image y");
        assert_eq!(Failure::from(error).line(), "hull: image y: writing x: disk full");
    }

    #[test]
    fn a_sandbox_error_brings_its_hint() {
        let error = SandboxError::PathTooLong("/x".into());
        let result: Result<(), _> = Err(error);
        let line = Failure::from(result.context("starting").unwrap_err()).line();
        assert!(line.starts_with("hull: starting: The runtime directory /x"), "{line}");
        assert!(line.ends_with("; set HULL_RUNTIME_DIR to a shorter path"), "{line}");
    }

    #[test]
    fn a_wrong_flag_is_one_line() {
        let rendered =
            "error: unexpected argument '--foo' found\n\n  tip: a similar argument exists: '--for'\n\nUsage: hull\n";
        let line = usage_line(rendered, "hull run --help");
        assert_eq!(line, "hull: unexpected argument '--foo' found; a similar argument exists: '--for'");
        let line = usage_line("error: unexpected argument '--foo' found\n\nUsage: hull\n", "hull run --help");
        assert_eq!(line, "hull: unexpected argument '--foo' found; see `hull run --help`");
    }

    #[test]
    fn help_is_that_of_the_subcommand() {
        let help = |args: &[&str]| command_line_of_help(args.iter().map(Into::into));
        for subcommand in Cli::command().get_subcommands().filter(|subcommand| !subcommand.is_hide_set()) {
            let name = subcommand.get_name();
            assert_eq!(help(&["hull", name, "--no-such"]), format!("hull {name} --help"));
        }
        assert_eq!(help(&["hull", "--root", "run", "ps", "x"]), "hull ps --help");
        assert_eq!(help(&["hull", "--root=run", "ps"]), "hull ps --help");
        assert_eq!(help(&["hull", "--no-such", "stop"]), "hull stop --help");
        for args in [&["hull"][..], &["hull", "--no-such"], &["hull", "no-such", "run"], &["hull", "__keeper"]] {
            assert_eq!(help(args), "hull --help");
        }
    }
}
