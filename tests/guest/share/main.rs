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

mod bench;
mod checks;
mod fsx;
mod storm;
mod sys;

use std::path::Path;

fn main() {
    let start = std::time::Instant::now();
    let words: Vec<String> = std::env::args().collect();
    let words: Vec<&str> = words.iter().skip(1).map(String::as_str).collect();
    let number = |word: &str| word.parse().expect("a number");
    match words[..] {
        ["checks", directory] => checks::all(Path::new(directory)),
        ["fsx", directory, seed, operations] => fsx::run(Path::new(directory), number(seed), number(operations)),
        ["storm", directory] => storm::renames(Path::new(directory)),
        ["many", directory, count] => storm::many(Path::new(directory), number(count)),
        ["bench", directory] => bench::run(Path::new(directory)),
        _ => panic!("unknown command: {words:?}"),
    }
    println!("{}: ok ({} ms)", words[0], start.elapsed().as_millis());
}
