//! Boot phases on one clock.

use std::fmt::Write as _;
use std::sync::{Mutex, PoisonError};

use hull_vmm::report::BootPhase;
use nix::time::{ClockId, clock_gettime};

/// Points in time of one sandbox, on CLOCK_MONOTONIC.
#[derive(Debug, Default)]
pub struct Timeline {
    marks: Mutex<Vec<Mark>>,
}

/// A phase that was reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// What happened.
    pub name: &'static str,
    /// CLOCK_MONOTONIC in nanoseconds.
    pub at_ns: u64,
}

impl Timeline {
    /// Something happened now; only the first time counts.
    pub fn mark(&self, name: &'static str) {
        self.mark_at(name, now_ns());
    }

    /// Something happened at `at_ns` of CLOCK_MONOTONIC; only the first time counts.
    pub fn mark_at(&self, name: &'static str, at_ns: u64) {
        let mut marks = self.marks.lock().unwrap_or_else(PoisonError::into_inner);
        if !marks.iter().any(|mark| mark.name == name) {
            marks.push(Mark { name, at_ns });
        }
    }

    pub(crate) fn mark_phase(&self, phase: BootPhase, at_ns: u64) {
        let name = match phase {
            BootPhase::MonitorStarted => "monitor started",
            BootPhase::MemoryReady => "memory mapped",
            BootPhase::KernelLoaded => "kernel loaded",
            BootPhase::DevicesReady => "devices ready",
            BootPhase::GuestEntered => "guest entered",
        };
        self.mark_at(name, at_ns);
    }

    /// All marks in order of time.
    pub fn marks(&self) -> Vec<Mark> {
        let marks = self.marks.lock().unwrap_or_else(PoisonError::into_inner);
        let mut marks = marks.clone();
        marks.sort_by_key(|mark| mark.at_ns);
        marks
    }

    /// A table for people: time since the first mark, time since the one before, name.
    pub fn table(&self) -> String {
        let marks = self.marks();
        let mut table = String::from("   total ms     step ms  phase\n");
        let Some(first) = marks.first().map(|mark| mark.at_ns) else {
            return table;
        };
        let mut previous = first;
        for mark in marks {
            let (total, step) = (mark.at_ns - first, mark.at_ns - previous);
            let _ = writeln!(table, "{}{}  {}", ms(total), ms(step), mark.name);
            previous = mark.at_ns;
        }
        table
    }
}

/// CLOCK_MONOTONIC in nanoseconds.
pub fn now_ns() -> u64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |time| {
        let seconds = u64::try_from(time.tv_sec()).unwrap_or(0);
        let nanoseconds = u64::try_from(time.tv_nsec()).unwrap_or(0);
        seconds * 1_000_000_000 + nanoseconds
    })
}

fn ms(nanoseconds: u64) -> String {
    let micros = nanoseconds / 1000;
    format!("{:>8}.{:03}", micros / 1000, micros % 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_order_of_time_and_the_first_mark_of_a_name_counts() {
        let timeline = Timeline::default();
        timeline.mark_at("late", 3_500_000);
        timeline.mark_at("early", 1_000_000);
        timeline.mark_at("late", 9_000_000);
        assert_eq!(
            timeline.table(),
            "   total ms     step ms  phase\n       0.000       0.000  early\n       2.500       2.500  late\n"
        );
    }
}
