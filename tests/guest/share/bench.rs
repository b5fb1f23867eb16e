//! How much work things take, for comparisons in one run: a line each.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;
use std::time::{Duration, Instant};

const FILES: usize = 1000;
const STREAM_MIB: usize = 64;
/// Time for the host to read its counters before the next step.
const GAP: Duration = Duration::from_secs(3);

/// Names, then a stream in each direction.
pub fn run(directory: &Path) {
    let name = |number: usize| directory.join(format!("{number}"));
    report("start", 0, || ());
    report("create", FILES, || (0..FILES).for_each(|number| drop(File::create_new(name(number)).unwrap())));
    report("stat", FILES, || (0..FILES).for_each(|number| assert!(fs::metadata(name(number)).unwrap().is_file())));
    report("unlink", FILES, || (0..FILES).for_each(|number| fs::remove_file(name(number)).unwrap()));

    let mut block = vec![1; 1 << 20];
    let path = directory.join("stream");
    report("write-MiB", STREAM_MIB, || {
        let mut file = File::create_new(&path).unwrap();
        (0..STREAM_MIB).for_each(|_| file.write_all(&block).unwrap());
        file.sync_all().unwrap();
    });
    fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
    report("read-MiB", STREAM_MIB, || {
        let mut file = File::open(&path).unwrap();
        (0..STREAM_MIB).for_each(|_| file.read_exact(&mut block).unwrap());
    });
    fs::remove_file(&path).unwrap();
}

fn report(what: &str, count: usize, act: impl FnOnce()) {
    let (start, before) = (Instant::now(), interrupts());
    act();
    println!("bench {what} {count} {} {}", start.elapsed().as_millis(), interrupts() - before);
    std::thread::sleep(GAP);
}

/// Interrupts of the file system device so far.
fn interrupts() -> u64 {
    let table = fs::read_to_string("/proc/interrupts").unwrap();
    let lines = table.lines().filter(|line| line.contains("-requests") || line.contains("-hiprio"));
    lines.flat_map(|line| line.split_whitespace().skip(1).map_while(|word| word.parse::<u64>().ok())).sum()
}
