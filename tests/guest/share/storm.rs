//! Many files, and many threads on few.

use std::fs;
use std::path::Path;

use crate::fsx::Random;
use crate::sys;

const FILES: usize = 16;
const ROUNDS: usize = 300;
/// Threads that make and remove files.
const MAKERS: usize = 4;

/// Four threads move files between two directories, and two look for them.
pub fn renames(directory: &Path) {
    let name =
        |number: usize| directory.join(if number.is_multiple_of(2) { "a" } else { "b" }).join(format!("{number}"));
    for sub in ["a", "b"] {
        fs::create_dir(directory.join(sub)).unwrap();
    }
    for number in 0..FILES {
        fs::write(name(number), number.to_string()).unwrap();
    }
    std::thread::scope(|scope| {
        for thread in 0..4 {
            scope.spawn(move || {
                let mut random = Random::new(thread + 1);
                for _ in 0..ROUNDS {
                    let (from, to) = (random.below(2 * FILES), random.below(2 * FILES));
                    match sys::rename_with(&name(from), &name(to), libc::RENAME_NOREPLACE) {
                        Ok(()) => {}
                        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::EEXIST | libc::EINVAL)) => {}
                        Err(e) => panic!("rename: {e}"),
                    }
                }
            });
        }
        for thread in 0..2 {
            scope.spawn(move || {
                let mut random = Random::new(thread + 100);
                for _ in 0..ROUNDS {
                    match fs::read_to_string(name(random.below(2 * FILES))) {
                        Ok(text) => assert!(text.parse::<usize>().unwrap() < FILES),
                        Err(e) => assert_eq!(e.kind(), std::io::ErrorKind::NotFound),
                    }
                }
            });
        }
    });
    let mut found: Vec<usize> = ["a", "b"]
        .iter()
        .flat_map(|sub| fs::read_dir(directory.join(sub)).unwrap())
        .map(|entry| fs::read_to_string(entry.unwrap().path()).unwrap().parse().unwrap())
        .collect();
    found.sort_unstable();
    assert_eq!(found, (0..FILES).collect::<Vec<_>>(), "files were lost or doubled");
}

/// Makes, lists, looks at and removes `count` files in one directory, with several threads.
pub fn many(directory: &Path, count: u64) {
    let count = usize::try_from(count).unwrap();
    let name = |number: usize| directory.join(format!("file-{number:06}"));
    let each = |act: &(dyn Fn(&Path) + Sync)| {
        std::thread::scope(|scope| {
            for thread in 0..MAKERS {
                scope.spawn(move || (thread..count).step_by(MAKERS).for_each(|number| act(&name(number))));
            }
        });
    };
    each(&|path| drop(fs::File::create_new(path).unwrap()));
    println!("made");
    let mut listed: Vec<_> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    listed.sort();
    assert!(listed.len() == count && listed.iter().enumerate().all(|(number, path)| *path == name(number)));
    println!("listed");
    each(&|path| {
        assert_eq!(fs::metadata(path).unwrap().len(), 0);
        fs::remove_file(path).unwrap();
    });
    assert_eq!(fs::read_dir(directory).unwrap().count(), 0);
}
