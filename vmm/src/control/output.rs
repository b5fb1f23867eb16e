//! Log and metrics: where they go, and what they say.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::fault::{self, Fault};
use super::http::Response;
use super::routes::{Answer, Call};
use crate::instance::Instance;
use crate::log;
use crate::metrics::{Snapshot, openmetrics};

/// GET /stats
pub(super) fn get_stats(call: Call<'_>) -> Answer {
    // The type has nothing that JSON can't say.
    Ok(Response::ok(serde_json::to_value(Snapshot::take(call.instance)).unwrap_or_default()))
}

/// GET /metrics
pub(super) fn get_metrics(call: Call<'_>) -> Answer {
    Ok(Response::metrics(openmetrics::render(&Snapshot::take(call.instance))))
}

/// Body of PUT /metrics.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MetricsConfig {
    metrics_path: PathBuf,
}

/// The file to which `FlushMetrics` writes, a line of JSON each time.
pub struct MetricsFile(File);

/// PUT /metrics
pub(super) fn put_metrics(call: Call<'_>) -> Answer {
    let config: MetricsConfig = fault::parse(call.body)?;
    if call.instance.vm().is_some() {
        return Err(Fault::after_start());
    }
    if call.instance.metrics_file().is_some() {
        return Err(Fault::bad("Field metrics_path: metrics have a file already"));
    }
    let file = open_for_lines(&config.metrics_path).map_err(|e| unusable("metrics_path", &config.metrics_path, &e))?;
    *call.instance.metrics_file() = Some(MetricsFile(file));
    Ok(Response::done())
}

/// Action `FlushMetrics`
pub(super) fn flush_metrics(instance: &mut Instance) -> Result<(), Fault> {
    let mut line = serde_json::to_vec(&Snapshot::take(instance)).unwrap_or_default();
    line.push(b'\n');
    let Some(MetricsFile(file)) = instance.metrics_file() else {
        return Err(Fault::bad("Metrics have no file: PUT /metrics before the start, or GET /metrics at any time"));
    };
    file.write_all(&line).map_err(|error| Fault { status: 500, message: format!("Can't write the metrics: {error}") })
}

/// Body of PUT /logger.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LoggerConfig {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    log_path: Option<PathBuf>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    level: Option<String>,
    #[serde(default)]
    show_level: bool,
    #[serde(default)]
    show_log_origin: bool,
}

/// PUT /logger
pub(super) fn put_logger(call: Call<'_>) -> Answer {
    let config: LoggerConfig = fault::parse(call.body)?;
    if call.instance.vm().is_some() {
        return Err(Fault::after_start());
    }
    if config.show_log_origin {
        return Err(Fault::bad("Field show_log_origin: must be false: lines of the log have no origin"));
    }
    let level = config.level.unwrap_or_else(|| "Info".to_owned()).to_ascii_lowercase();
    if !["off", "error", "warning", "warn", "info", "debug", "trace"].contains(&level.as_str()) {
        return Err(Fault::bad("Field level: must be Off, Error, Warning, Info, Debug or Trace"));
    }
    let file = match &config.log_path {
        Some(path) => Some(open_for_lines(path).map_err(|error| unusable("log_path", path, &error))?),
        None => None,
    };
    log::redirect(log::Sink { file, show_level: config.show_level, off: matches!(level.as_str(), "off" | "error") });
    Ok(Response::done())
}

fn unusable(field: &str, path: &Path, error: &io::Error) -> Fault {
    Fault::bad(format!("Field {field}: can't open {}: {error}", path.display()))
}

/// Opens a FIFO, or a file that is made if it doesn't exist, to append to. Never waits, neither for a reader of the FIFO now nor for
/// space in it later.
fn open_for_lines(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    // A FIFO that is open for both has a reader from the start.
    options.read(true).append(true).create(true).mode(0o600).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC);
    let file = options.open(path)?;
    let kind = file.metadata()?.file_type();
    if kind.is_file() || kind.is_fifo() {
        return Ok(file);
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, "neither a file nor a FIFO"))
}
