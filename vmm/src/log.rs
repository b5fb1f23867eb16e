//! Lines on standard error, or in a file that the control API named.

use std::error::Error;
use std::fs::File;
use std::io::{self, Write};
use std::sync::{Mutex, PoisonError};

/// Where lines go.
#[derive(Debug, Default)]
pub struct Sink {
    /// A file or FIFO, non-blocking; standard error without it.
    pub file: Option<File>,
    /// Write the level before each line. All lines have the same: they are warnings.
    pub show_level: bool,
    /// Write nothing.
    pub off: bool,
}

static SINK: Mutex<Sink> = Mutex::new(Sink { file: None, show_level: false, off: false });

/// Sends all later lines elsewhere.
pub fn redirect(sink: Sink) {
    *SINK.lock().unwrap_or_else(PoisonError::into_inner) = sink;
}

/// Writes a line. Nobody may read it any more, which `eprintln` would answer with a panic.
pub fn line(text: &str) {
    let sink = SINK.lock().unwrap_or_else(PoisonError::into_inner);
    if sink.off {
        return;
    }
    let level = if sink.show_level { "WARN " } else { "" };
    // In one piece, so that a FIFO's reader gets whole lines.
    let line = format!("{level}hull-vmm: {text}\n");
    let _ = match sink.file.as_ref() {
        Some(mut file) => file.write_all(line.as_bytes()),
        None => io::stderr().write_all(line.as_bytes()),
    };
}

/// The error and its causes on one line.
pub fn one_line(error: &(dyn Error + 'static)) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        // A transparent error shows its cause already.
        if !line.ends_with(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
        cause = error.source();
    }
    line.replace('\n', " ")
}
