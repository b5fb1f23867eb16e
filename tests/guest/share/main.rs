//! What a guest does to a shared directory, to see whether it behaves like a file system: started in the guest by the
//! end-to-end tests, from the share itself.
//!
//! Each command ends with a line `COMMAND: ok`, or with the reason why not.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    missing_docs,
    reason = "a test fails by panicking"
)]

mod fsx;
mod sys;

use std::path::Path;

fn main() {
    let words: Vec<String> = std::env::args().collect();
    let words: Vec<&str> = words.iter().skip(1).map(String::as_str).collect();
    let number = |word: &str| word.parse().expect("a number");
    match words[..] {
        ["fsx", directory, seed, operations] => fsx::run(Path::new(directory), number(seed), number(operations)),
        _ => panic!("unknown command: {words:?}"),
    }
    println!("{}: ok", words[0]);
}
