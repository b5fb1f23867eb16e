//! Is a registry sending, or only keeping the connection alive?

use std::time::{Duration, Instant};

use bytes::Bytes;
use reqwest::Response;

use super::NetworkOptions;

/// Where the client gets the time from when it measures a registry's speed. Tests bring their own.
#[derive(Clone)]
pub struct Clock(std::sync::Arc<dyn Fn() -> Instant + Send + Sync>);

impl Clock {
    /// A clock that asks `now`.
    pub fn new(now: impl Fn() -> Instant + Send + Sync + 'static) -> Self {
        Clock(std::sync::Arc::new(now))
    }

    fn now(&self) -> Instant {
        (self.0)()
    }
}

impl Default for Clock {
    /// The monotonic clock.
    fn default() -> Self {
        Clock::new(Instant::now)
    }
}

impl std::fmt::Debug for Clock {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Clock")
    }
}

/// Why a transfer didn't go on.
#[derive(Debug)]
pub(super) enum Broken {
    /// The connection broke.
    Connection(reqwest::Error),
    /// Next to nothing came.
    Slow(Rate),
}

/// What came in some time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rate {
    pub(super) bytes: u64,
    pub(super) time: Duration,
}

/// Reads a response and measures it. Only the time spent waiting for the registry counts, not the time in which we
/// don't want more.
pub(super) struct Meter<'a> {
    options: &'a NetworkOptions,
    window: Rate,
}

impl<'a> Meter<'a> {
    pub(super) fn new(options: &'a NetworkOptions) -> Self {
        Meter { options, window: Rate { bytes: 0, time: Duration::ZERO } }
    }

    /// The next piece; none at the end. (Silence has a limit of its own, so pieces come often enough for measuring.)
    pub(super) async fn chunk(&mut self, response: &mut Response) -> Result<Option<Bytes>, Broken> {
        self.judge().map_err(Broken::Slow)?;
        let before = self.options.clock.now();
        let chunk = response.chunk().await.map_err(Broken::Connection)?;
        let waited = self.options.clock.now().saturating_duration_since(before);
        self.count(waited, chunk.as_ref().map_or(0, Bytes::len));
        Ok(chunk)
    }

    fn count(&mut self, waited: Duration, bytes: usize) {
        self.window.time += waited;
        self.window.bytes += bytes as u64;
    }

    /// Looks at each full window, and begins the next.
    fn judge(&mut self) -> Result<(), Rate> {
        if self.window.time < self.options.rate_window {
            return Ok(());
        }
        let window = std::mem::replace(&mut self.window, Rate { bytes: 0, time: Duration::ZERO });
        if window.bytes < self.options.min_window_bytes { Err(window) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_window_must_bring_its_bytes() {
        let options = NetworkOptions::default();
        let mut meter = Meter::new(&options);
        let mut after = |seconds, bytes| {
            meter.count(Duration::from_secs(seconds), bytes);
            meter.judge()
        };
        assert_eq!(after(59, 0), Ok(()), "the window is not over");
        assert_eq!(after(1, 1024), Ok(()));
        // Much in one window doesn't excuse the next.
        assert_eq!(after(20, 1 << 30), Ok(()));
        assert_eq!(after(40, 0), Ok(()));
        assert_eq!(after(30, 1000), Ok(()));
        assert_eq!(after(31, 23), Err(Rate { bytes: 1023, time: Duration::from_secs(61) }));
        assert_eq!(after(59, 0), Ok(()), "measuring begins anew");
    }
}
