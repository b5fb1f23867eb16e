//! The control socket at the limit of open files. The limit counts for a whole process: this test has one of its own.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use event_manager::{EventManager, SubscriberOps};
use hull_vmm::control::ControlServer;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Longest wait for something that is expected, in milliseconds.
const PATIENCE_MS: i32 = 30_000;

fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn a_client_that_can_not_be_accepted_waits_and_does_not_keep_the_loop_busy() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("control");
    let mut manager = EventManager::<ControlServer>::new().unwrap();
    manager.add_subscriber(ControlServer::bind(&path).unwrap());
    let _client = UnixStream::connect(&path).unwrap();

    let before = open_files();
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    // The lowest free number becomes the limit.
    let next = File::open("/dev/null").unwrap();
    let limit = next.as_raw_fd().try_into().unwrap();
    drop(next);
    setrlimit(Resource::RLIMIT_NOFILE, limit, hard).unwrap();
    assert_eq!(manager.run_with_timeout(PATIENCE_MS).unwrap(), 1, "the client is seen");
    assert_eq!(manager.run_with_timeout(0).unwrap(), 0, "and then left alone");

    setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
    assert_eq!(manager.run_with_timeout(PATIENCE_MS).unwrap(), 1, "the pause ends");
    assert_eq!(manager.run_with_timeout(PATIENCE_MS).unwrap(), 1, "the client is seen again");
    assert_eq!(open_files(), before + 1, "and accepted");
}
