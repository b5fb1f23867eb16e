//! Messages for containerd's log, through the FIFO `log` of the bundle.
//!
//! containerd may read slowly, be gone, or come back: writing never waits, and never fails for want of a reader.
//!
//! containerd copies each line to its own standard error. Where that is systemd's journal, lines begin with their priority
//! (sd-daemon(3)), so that `journalctl -u containerd -p err` finds failures; the journal has the time itself.

use std::env;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::sync::OnceLock;

use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::{Format, Full, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter};
use tracing_subscriber::registry::LookupSpan;

use crate::bundle::Bundle;
use crate::config::LogLevel;

const LOG: &str = "log";
/// systemd sets it for services whose standard error it reads, and containerd hands it on.
const JOURNAL_VARIABLE: &str = "JOURNAL_STREAM";

/// Changes the level of the running log.
static SET_LEVEL: OnceLock<Box<dyn Fn(LevelFilter) + Send + Sync>> = OnceLock::new();

/// Sends messages to the log of `bundle` from now on; with `debug` also those about each step, and the guest's console.
/// Without a FIFO there is no log.
pub fn start(bundle: &Bundle, debug: bool) {
    let least = if debug { LevelFilter::DEBUG } else { LevelFilter::INFO };
    let Ok(fifo) = open(bundle) else { return };
    let lines = Lines::new(env::var_os(JOURNAL_VARIABLE).is_some());
    let log = tracing_subscriber::fmt().with_writer(Log(fifo)).event_format(lines).with_env_filter(filter(least));
    let log = log.with_filter_reloading();
    let handle = log.reload_handle();
    let started = log.try_init();
    if started.is_ok() {
        let set = move |level: LevelFilter| drop(handle.reload(filter(if debug { level.max(least) } else { level })));
        let _ = SET_LEVEL.set(Box::new(set));
    }
}

fn filter(level: LevelFilter) -> EnvFilter {
    EnvFilter::default().add_directive(level.into())
}

/// Changes the level. Where containerd asked for all messages, they stay.
pub fn set_level(level: LogLevel) {
    if let Some(set) = SET_LEVEL.get() {
        set(level.into());
    }
}

/// How a message becomes a line.
enum Lines {
    /// With the time in front.
    Timed(Format),
    /// With its priority in front.
    Prioritised(Format<Full, ()>),
}

impl Lines {
    fn new(for_journal: bool) -> Self {
        let format = Format::default().with_ansi(false).with_target(false);
        if for_journal { Self::Prioritised(format.without_time()) } else { Self::Timed(format) }
    }
}

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut out: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let format = match self {
            Self::Timed(format) => return format.format_event(context, out, event),
            Self::Prioritised(format) => format,
        };
        // syslog(3)
        let priority = match *event.metadata().level() {
            Level::ERROR => 3,
            Level::WARN => 4,
            Level::INFO => 6,
            Level::DEBUG | Level::TRACE => 7,
        };
        write!(out, "<{priority}>")?;
        format.format_event(context, out, event)
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
    fn each_line_for_the_journal_begins_with_its_priority() {
        let (mut reader, writer) = io::pipe().unwrap();
        let log = tracing_subscriber::fmt().with_writer(Log(std::os::fd::OwnedFd::from(writer).into()));
        tracing::subscriber::with_default(log.event_format(Lines::new(true)).finish(), || {
            tracing::error!(cause = "it broke", "lost");
            tracing::info!("found");
        });
        let mut text = String::new();
        io::Read::read_to_string(&mut reader, &mut text).unwrap();
        assert_eq!(text, "<3>ERROR lost cause=\"it broke\"\n<6> INFO found\n");
    }

    #[test]
    fn what_is_no_fifo_is_no_log() {
        let dir = tempfile::tempdir().unwrap();
        assert!(open(&bundle(dir.path())).is_err());
        std::fs::write(dir.path().join(LOG), "").unwrap();
        assert!(open(&bundle(dir.path())).is_err());
    }
}
