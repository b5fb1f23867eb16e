//! What a panic means: the end of the process, unless it is in code that is contained.

use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe};

use crate::log;

thread_local! {
    static IS_CONTAINED: Cell<bool> = const { Cell::new(false) };
}

/// Sets the process's hook: a panic is logged, and has `end` called with a message, unless it is [contained](contain). `end` runs on
/// the thread that panics, before its stack unwinds; it ends the process.
pub fn set_hook(end: impl Fn(String) + Send + Sync + 'static) {
    panic::set_hook(Box::new(move |info| {
        let message = format!("hull-vmm panicked: {}", info.to_string().replace('\n', " "));
        log::line(&message);
        if !IS_CONTAINED.get() {
            end(message);
        }
    }));
}

/// Does `work` on this thread. `None` if it panicked: what it had hold of can't be relied on.
pub fn contain<T>(work: impl FnOnce() -> T) -> Option<T> {
    IS_CONTAINED.set(true);
    let result = panic::catch_unwind(AssertUnwindSafe(work));
    IS_CONTAINED.set(false);
    result.ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

    use std::process::{self, Command};

    use super::*;

    const ENDED: i32 = 42;
    const WENT_ON: i32 = 43;

    /// In a process of its own, because a hook is for all threads.
    #[test]
    fn only_a_contained_panic_does_not_end_the_process() {
        const MARK: &str = "HULL_PANIC_TEST";
        let exit_status = |way: &str| {
            let name = "panics::tests::only_a_contained_panic_does_not_end_the_process";
            let mut child = Command::new(std::env::current_exe().unwrap());
            child.args(["--exact", name, "--nocapture"]).env(MARK, way).status().unwrap().code()
        };
        let Ok(way) = std::env::var(MARK) else {
            assert_eq!(exit_status("contained"), Some(WENT_ON));
            assert_eq!(exit_status("bare"), Some(ENDED));
            assert_eq!(exit_status("after"), Some(ENDED));
            return;
        };
        set_hook(|_| process::exit(ENDED));
        if way != "bare" {
            assert_eq!(contain(|| panic!("expected")), None::<()>);
        }
        if way != "contained" {
            panic!("expected");
        }
        process::exit(WENT_ON);
    }
}
