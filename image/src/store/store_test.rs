use std::cell::RefCell;

use super::*;
use crate::progress::NoProgress;

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

/// Another process that holds a lock, as far as the kernel is concerned: an open file of its own. It says it is process
/// `text`.
fn hold(path: &Path, text: &str) -> File {
    std::fs::write(path, text).unwrap();
    let file = File::open(path).unwrap();
    file.lock().unwrap();
    file
}

#[test]
fn whoever_waits_for_a_build_is_told_for_whom_and_goes_on_when_it_dies() {
    let dir = tempfile::tempdir().unwrap();
    let mut layout = Layout::open(dir.path()).unwrap();
    layout.poll = Duration::from_millis(1);
    let path = dir.path().join("locks/key");
    for (text, expected) in [("4711", "process 4711"), ("", "another process"), ("\u{1b}[2J", "another process")] {
        let other = RefCell::new(Some(hold(&path, text)));
        let told = RefCell::new(Vec::new());
        let lock = run(layout.lock_build("key", |holder| {
            told.borrow_mut().push(holder.to_string());
            // It dies, and the kernel closes its file.
            *other.borrow_mut() = None;
        }));
        assert_eq!(*told.borrow(), [expected]);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), std::process::id().to_string());
        drop(lock);
        assert!(!path.exists());
    }
}

/// Remembers why it was told to wait.
#[derive(Default)]
struct Waiting(std::sync::Mutex<Vec<String>>);

impl Progress for Waiting {
    fn started(&self, _item: &str, _total_bytes: Option<u64>) {}
    fn advanced(&self, _item: &str, _bytes: u64) {}
    fn finished(&self, _item: &str) {}
    fn message(&self, _text: &str) {}
    fn waiting(&self, text: &str) {
        self.0.lock().unwrap().push(text.to_owned());
    }
}

#[test]
fn a_store_that_somebody_holds_is_waited_for_with_an_explanation_and_not_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(dir.path()).unwrap();
    store.layout.poll = Duration::from_millis(1);
    let source = dir.path().join("source");
    std::fs::create_dir(&source).unwrap();
    let reference = ImageReference::RootfsDir(source);
    let other = hold(&dir.path().join("lock"), "4711");
    // Who waits can be interrupted: its future is dropped.
    let waiting = Waiting::default();
    let options = GetOptions::default();
    run(async {
        let told = async {
            while waiting.0.lock().unwrap().is_empty() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::select! {
            _ = store.get(&reference, &options, &waiting) => panic!("the store is locked"),
            () = told => {}
        }
    });
    assert_eq!(*waiting.0.lock().unwrap(), ["Waiting for process 4711, which uses the image store"]);
    // Others don't wait for ever.
    let locked = store.layout.lock_store_soon(false, Duration::from_millis(1)).unwrap().unwrap_err();
    assert_eq!(locked.to_string(), "process 4711");
    drop(other);
    assert!(run(store.get(&reference, &options, &NoProgress)).is_ok());
    assert_eq!(store.list().unwrap().len(), 1);
}

#[test]
fn the_store_names_who_holds_it_alone() {
    let dir = tempfile::tempdir().unwrap();
    let layout = Layout::open(dir.path()).unwrap();
    let lock = layout.lock_store_soon(true, Duration::ZERO).unwrap().unwrap();
    let holder = layout.lock_store_soon(false, Duration::ZERO).unwrap().unwrap_err();
    assert_eq!(holder.to_string(), format!("process {}", std::process::id()));
    drop(lock);
    let shared = layout.lock_store_soon(false, Duration::ZERO).unwrap().unwrap();
    let _another = layout.lock_store_soon(false, Duration::ZERO).unwrap().unwrap();
    let holder = layout.lock_store_soon(true, Duration::ZERO).unwrap().unwrap_err();
    assert_eq!(holder.to_string(), "another process", "a name that no longer holds is not said");
    drop(shared);
}
