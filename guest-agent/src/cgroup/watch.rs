//! Waits for what a file of a cgroup says. The kernel tells whoever polls such a file that it has changed.

use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::OwnedFd;
use std::path::Path;

use tokio::io::Interest;

use super::MAX_FILE_BYTES;
use crate::failure::{Context, Failure};
use crate::sys;

/// Waits until `found` finds something in the file. Has no limit of its own.
pub async fn until<T>(cgroup: &Path, file: &str, found: impl Fn(&str) -> Option<T>) -> Result<T, Failure> {
    let what = format!("watch {file}");
    let opened = OwnedFd::from(File::open(cgroup.join(file)).context(&what)?);
    // Changes are "exceptional conditions" (cgroup-v2.rst, "cgroup.events"); it is always readable.
    let watched = sys::register_with_interest(opened, Interest::PRIORITY).context(&what)?;
    loop {
        // A change after the reading is told; the reading itself acknowledges those before.
        if let Some(value) = found(&read(watched.get_ref()).context(&what)?) {
            return Ok(value);
        }
        watched.ready(Interest::PRIORITY).await.context(&what)?.clear_ready();
    }
}

fn read(file: &OwnedFd) -> std::io::Result<String> {
    let mut file = File::from(file.try_clone()?);
    file.rewind()?;
    let mut text = String::new();
    file.take(MAX_FILE_BYTES).read_to_string(&mut text)?;
    Ok(text)
}
