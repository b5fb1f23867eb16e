//! The guest's half of the tests of volumes: `DIRECTORY FILE LAST` says what inotify tells of the directory, a line an event, and
//! after each rename to `..data` what is in the file, until that is `LAST`.

#![allow(missing_docs, reason = "a program of tests")]

use std::error::Error;
use std::fs;
use std::mem::MaybeUninit;

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};

const NAMES: [(ReadFlags, &str); 4] = [
    (ReadFlags::CREATE, "create"),
    (ReadFlags::DELETE, "delete"),
    (ReadFlags::MOVED_FROM, "moved from"),
    (ReadFlags::MOVED_TO, "moved to"),
];

fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<_> = std::env::args().skip(1).collect();
    let [directory, file, last] = words.as_slice() else { return Err("DIRECTORY FILE LAST".into()) };
    let inotify = inotify::init(CreateFlags::CLOEXEC)?;
    inotify::add_watch(&inotify, directory.as_str(), WatchFlags::CREATE | WatchFlags::DELETE | WatchFlags::MOVE)?;
    println!("watching {}", fs::read_to_string(file)?);
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut reader = Reader::new(&inotify, &mut buffer);
    loop {
        let event = reader.next()?;
        let kind = NAMES.iter().find(|(flag, _)| event.events().contains(*flag)).map_or("other", |(_, name)| name);
        let name = event.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        println!("{kind} {name}");
        if (kind, name.as_str()) == ("moved to", "..data") {
            let content = fs::read_to_string(file)?;
            println!("content {content}");
            if content == *last {
                return Ok(());
            }
        }
    }
}
