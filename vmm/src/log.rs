//! Lines on standard error.

use std::io::{self, Write};

/// Writes a line. Nobody may read it any more, which `eprintln` would answer with a panic.
pub fn line(text: &str) {
    let _ = writeln!(io::stderr(), "hull-vmm: {text}");
}
