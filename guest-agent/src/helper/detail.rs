//! What libcontainer logs about a failure, for the message of that failure.
//!
//! Its errors cross its processes as text without their causes ("failed to prepare rootfs"); the cause is only in its log.

use std::fmt::{self, Write};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use crate::helper::reply::{Reply, Reporter};

/// Longest detail, in bytes.
const MAX_BYTES: usize = 400;

/// Passes every logged error to the agent, which keeps the first: the deepest cause.
pub struct Details(Reporter);

impl Details {
    /// Receives the log of this process and of those that libcontainer forks from it.
    pub fn collect(reporter: Reporter) {
        // Fails only when it was done before.
        let _ = tracing::subscriber::set_global_default(Self(reporter));
    }
}

impl Subscriber for Details {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() == Level::ERROR
    }

    fn event(&self, event: &Event<'_>) {
        let mut text = Text::default();
        event.record(&mut text);
        self.0.report(&Reply::Detail(text.0));
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

#[derive(Default)]
struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if self.0.len() >= MAX_BYTES {
            return;
        }
        let separator = if self.0.is_empty() { "" } else { ", " };
        // Writing to a string can't fail.
        let _ = match field.name() {
            "message" => write!(self.0, "{separator}{value:?}"),
            name => write!(self.0, "{separator}{name}={value:?}"),
        };
    }
}
