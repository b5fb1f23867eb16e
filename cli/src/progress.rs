//! What the image store is doing: bars on a terminal, lines otherwise, or nothing.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::sync::{Mutex, PoisonError};

use hull_image::Progress;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::output::say;
use crate::table;

const BAR: &str = "{prefix:<20} {bar:30} {bytes:>10}/{total_bytes:<10} {bytes_per_sec:>12}";
const SPINNER: &str = "{prefix:<20} {spinner} {bytes:>10} {bytes_per_sec:>12}";

/// Progress for standard error.
pub enum Display {
    /// A terminal.
    Bars(Bars),
    /// A file or pipe.
    Lines(Lines),
    /// The caller wants to read nothing but the command's own output.
    Silent,
}

impl Display {
    /// `lines`: say something also without a terminal.
    pub fn new(lines: bool) -> Self {
        match (std::io::stderr().is_terminal(), lines) {
            (true, _) => Self::Bars(Bars::default()),
            (false, true) => Self::Lines(Lines::default()),
            (false, false) => Self::Silent,
        }
    }
}

impl Progress for Display {
    fn started(&self, item: &str, total_bytes: Option<u64>) {
        match self {
            Self::Bars(bars) => bars.started(item, total_bytes),
            Self::Lines(lines) => lines.started(item, total_bytes),
            Self::Silent => (),
        }
    }

    fn advanced(&self, item: &str, bytes: u64) {
        if let Self::Bars(bars) = self {
            bars.with(item, |bar| bar.inc(bytes));
        }
    }

    fn finished(&self, item: &str) {
        match self {
            Self::Bars(bars) => bars.finished(item),
            Self::Lines(_) => say(format_args!("{item}: done")),
            Self::Silent => (),
        }
    }

    fn message(&self, text: &str) {
        match self {
            Self::Bars(bars) => drop(bars.all.println(text)),
            Self::Lines(_) => say(text),
            Self::Silent => (),
        }
    }

    fn waiting(&self, text: &str) {
        match self {
            Self::Bars(_) => self.message(text),
            // A command that seems to hang is worse than a line too many.
            Self::Lines(_) | Self::Silent => say(text),
        }
    }
}

/// One bar an item. They are wiped when this is dropped: what stays on the screen is the command's own.
#[derive(Default)]
pub struct Bars {
    all: MultiProgress,
    bars: Mutex<HashMap<String, ProgressBar>>,
}

impl Bars {
    fn started(&self, item: &str, total_bytes: Option<u64>) {
        let mut bars = self.bars.lock().unwrap_or_else(PoisonError::into_inner);
        // The same layer twice in an image, both under way: one bar for both.
        if let Some(bar) = bars.get(item).filter(|bar| !bar.is_finished()) {
            bar.inc_length(total_bytes.unwrap_or_default());
            return;
        }
        let (bar, template) = match total_bytes {
            Some(total) => (ProgressBar::new(total), BAR),
            None => (ProgressBar::new_spinner(), SPINNER),
        };
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = self.all.add(bar.with_style(style));
        bar.set_prefix(item.chars().take(20).collect::<String>());
        bars.insert(item.to_owned(), bar);
    }

    fn with(&self, item: &str, action: impl FnOnce(&ProgressBar)) {
        let bars = self.bars.lock().unwrap_or_else(PoisonError::into_inner);
        bars.get(item).map(action);
    }

    fn finished(&self, item: &str) {
        self.with(item, ProgressBar::finish);
    }
}

impl Drop for Bars {
    fn drop(&mut self) {
        let _ = self.all.clear();
    }
}

/// A line at the beginning and at the end of each item.
#[derive(Default)]
pub struct Lines {}

impl Lines {
    fn started(&self, item: &str, total_bytes: Option<u64>) {
        match total_bytes {
            Some(total) => say(format_args!("{item}: {}", table::size(total))),
            None => say(format_args!("{item}: started")),
        }
    }
}
