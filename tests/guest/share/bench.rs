//! How long things take, for comparisons in one run: a line each.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;
use std::time::Instant;

const FILES: usize = 1000;
const STREAM_MIB: usize = 64;

fn report(what: &str, start: Instant, count: usize) {
    println!("bench {what}: {count} in {} ms", start.elapsed().as_millis());
}

/// Names, then a stream in each direction.
pub fn run(directory: &Path) {
    let name = |number: usize| directory.join(format!("{number}"));
    let start = Instant::now();
    (0..FILES).for_each(|number| drop(File::create_new(name(number)).unwrap()));
    report("create", start, FILES);
    let start = Instant::now();
    (0..FILES).for_each(|number| assert!(fs::metadata(name(number)).unwrap().is_file()));
    report("stat", start, FILES);
    let start = Instant::now();
    (0..FILES).for_each(|number| fs::remove_file(name(number)).unwrap());
    report("unlink", start, FILES);

    let mut block = vec![1; 1 << 20];
    let path = directory.join("stream");
    let start = Instant::now();
    let mut file = File::create_new(&path).unwrap();
    (0..STREAM_MIB).for_each(|_| file.write_all(&block).unwrap());
    file.sync_all().unwrap();
    report("write MiB", start, STREAM_MIB);
    drop(file);
    fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
    let start = Instant::now();
    let mut file = File::open(&path).unwrap();
    (0..STREAM_MIB).for_each(|_| file.read_exact(&mut block).unwrap());
    report("read MiB", start, STREAM_MIB);
    fs::remove_file(&path).unwrap();
}
