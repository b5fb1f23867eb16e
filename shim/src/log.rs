//! Messages for containerd's log, through the FIFO `log` of the bundle.
//!
//! containerd may read slowly, be gone, or come back: writing never waits, and never fails for want of a reader.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};

use tracing::level_filters::LevelFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::bundle::Bundle;

const LOG: &str = "log";

/// Sends messages to the log of `bundle` from now on; with `debug` also those about each step, and the guest's console.
/// Without a FIFO there is no log.
pub fn start(bundle: &Bundle, debug: bool) {
    let level = if debug { LevelFilter::DEBUG } else { LevelFilter::INFO };
    if let Ok(fifo) = open(bundle) {
        let log = tracing_subscriber::fmt().with_max_level(level).with_ansi(false).with_target(false);
        let _ = log.with_writer(Log(fifo)).try_init();
    }
}

/// For both directions: then there is always a reader, this process.
fn open(bundle: &Bundle) -> io::Result<File> {
    let file =
        OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(bundle.path().join(LOG))?;
    match file.metadata()?.file_type().is_fifo() {
        true => Ok(file),
        false => Err(io::ErrorKind::InvalidInput.into()),
    }
}

struct Log(File);

impl<'a> MakeWriter<'a> for Log {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line(&self.0)
    }
}

/// One message; written in one piece, and dropped when there is no room.
struct Line<'a>(&'a File);

impl Write for Line<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.0.write(bytes) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(bytes.len()),
            result => result,
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn bundle(dir: &Path) -> Bundle {
        Bundle::open(dir).unwrap()
    }

    #[test]
    fn a_log_that_nobody_reads_never_stops_the_shim() {
        let dir = tempfile::tempdir().unwrap();
        nix::unistd::mkfifo(&dir.path().join(LOG), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let log = Log(open(&bundle(dir.path())).unwrap());
        let line = [b'x'; 512];
        for _ in 0..1000 {
            log.make_writer().write_all(&line).unwrap();
        }
    }

    #[test]
    fn what_is_no_fifo_is_no_log() {
        let dir = tempfile::tempdir().unwrap();
        assert!(open(&bundle(dir.path())).is_err());
        std::fs::write(dir.path().join(LOG), "").unwrap();
        assert!(open(&bundle(dir.path())).is_err());
    }
}
