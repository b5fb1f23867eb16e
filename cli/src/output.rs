//! Text for the standard streams. A reader that has gone away (`hull images | head -1`) is no reason to panic.

use std::io::{self, Write};

/// Writes `text` to standard output. Nobody who reads it any more is no failure; a full disk is one.
pub fn print(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    forgive_closed(stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()))
}

/// [`print`] with a line break.
pub fn line(text: impl std::fmt::Display) -> io::Result<()> {
    print(&format!("{text}\n"))
}

/// A line for standard error; there is nobody to tell if that fails.
pub fn say(line: impl std::fmt::Display) {
    let _ = io::stderr().write_all(format!("{line}\n").as_bytes());
}

fn forgive_closed(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}
