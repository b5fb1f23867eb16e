//! Random operations on one file, against a copy in memory.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::sys::{self, Mapping};

const MAX_BYTES: usize = 256 << 10;

/// xorshift64*: the same numbers for the same seed.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % bound.max(1)
    }
}

/// A file and what should be in it.
struct Twin {
    path: std::path::PathBuf,
    file: File,
    model: Vec<u8>,
    random: Random,
}

pub fn run(directory: &Path, seed: u64, operations: u64) {
    println!("seed {seed}");
    let path = directory.join(format!("fsx-{seed}"));
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).unwrap();
    let mut twin = Twin { path, file, model: Vec::new(), random: Random::new(seed) };
    for number in 0..operations {
        twin.step(number);
    }
    assert!(std::fs::read(&twin.path).unwrap() == twin.model, "at the end of seed {seed}");
}

impl Twin {
    fn step(&mut self, number: u64) {
        let at = self.random.below(MAX_BYTES);
        let bytes = self.random.below((MAX_BYTES - at).min(70_000)) + 1;
        match self.random.below(10) {
            0..3 => self.write(at, bytes, number),
            3..5 => self.compare(at, bytes, number),
            5 => self.write_mapped(at, bytes, number),
            6 => self.compare_mapped(number),
            7 => {
                self.file.set_len(at as u64).unwrap();
                self.model.resize(at, 0);
            }
            8 => self.punch(at, bytes),
            _ => self.reopen_or_extend(at, bytes),
        }
        let length = self.file.metadata().unwrap().len();
        assert_eq!(length, self.model.len() as u64, "length after operation {number}");
    }

    fn fill(number: u64, bytes: usize) -> Vec<u8> {
        (0..bytes).map(|i| (number as usize + i) as u8 | 1).collect()
    }

    fn put(&mut self, at: usize, data: &[u8]) {
        let end = at + data.len();
        self.model.resize(self.model.len().max(end), 0);
        self.model[at..end].copy_from_slice(data);
    }

    fn write(&mut self, at: usize, bytes: usize, number: u64) {
        let data = Self::fill(number, bytes);
        self.file.write_all_at(&data, at as u64).unwrap();
        self.put(at, &data);
    }

    fn compare(&self, at: usize, bytes: usize, number: u64) {
        let end = (at + bytes).min(self.model.len());
        let expected = self.model.get(at..end).unwrap_or_default();
        let mut data = vec![0; expected.len()];
        self.file.read_exact_at(&mut data, at as u64).unwrap();
        assert!(data == expected, "read of {bytes} bytes at {at}, operation {number}");
    }

    fn write_mapped(&mut self, at: usize, bytes: usize, number: u64) {
        let end = (at + bytes).min(self.model.len());
        if at < end {
            let data = Self::fill(number, end - at);
            let mut mapping = Mapping::new(&self.file, self.model.len()).unwrap();
            mapping.write(at, &data);
            if self.random.below(2) == 0 {
                mapping.sync().unwrap();
            }
            self.put(at, &data);
        }
    }

    fn compare_mapped(&self, number: u64) {
        if !self.model.is_empty() {
            let mapping = Mapping::new(&self.file, self.model.len()).unwrap();
            assert!(mapping.read(0, self.model.len()) == self.model, "mapping, operation {number}");
        }
    }

    fn punch(&mut self, at: usize, bytes: usize) {
        let end = (at + bytes).min(self.model.len());
        if at < end {
            sys::allocate(&self.file, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, at, end - at).unwrap();
            self.model[at..end].fill(0);
        }
    }

    fn reopen_or_extend(&mut self, at: usize, bytes: usize) {
        if self.random.below(2) == 0 {
            self.file = OpenOptions::new().read(true).write(true).open(&self.path).unwrap();
        } else {
            sys::allocate(&self.file, 0, at, bytes).unwrap();
            self.model.resize(self.model.len().max(at + bytes), 0);
        }
    }
}
