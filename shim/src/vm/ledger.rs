//! Limits of the containers of a VM, where what was written can be taken back.

use std::collections::BTreeMap;

use super::limits::Limits;

/// Limits by container.
#[derive(Default)]
pub struct Ledger {
    lines: BTreeMap<String, Line>,
    written: u64,
}

#[derive(Clone, Copy)]
struct Line {
    limits: Limits,
    /// Each time something is written it has another number.
    number: u64,
}

/// What was written, and what was there before.
pub struct Entry {
    id: String,
    number: u64,
    before: Option<Line>,
}

impl Entry {
    /// The container had limits before.
    pub fn replaces_another(&self) -> bool {
        self.before.is_some()
    }
}

impl Ledger {
    /// Those of a container.
    pub fn limits(&self, id: &str) -> Option<Limits> {
        self.lines.get(id).map(|line| line.limits)
    }

    /// Those of all containers.
    pub fn all(&self) -> impl Iterator<Item = &Limits> {
        self.lines.values().map(|line| &line.limits)
    }

    /// Writes those of a container.
    pub fn write(&mut self, id: &str, limits: Limits) -> Entry {
        self.written += 1;
        let line = Line { limits, number: self.written };
        Entry { id: id.into(), number: line.number, before: self.lines.insert(id.into(), line) }
    }

    /// Has again what was there before, unless the container is gone meanwhile, or somebody has written something else.
    pub fn undo(&mut self, entry: &Entry) {
        if self.lines.get(&entry.id).is_none_or(|line| line.number != entry.number) {
            return;
        }
        match entry.before {
            Some(before) => self.lines.insert(entry.id.clone(), before),
            None => self.lines.remove(&entry.id),
        };
    }

    /// A container is gone.
    pub fn remove(&mut self, id: &str) {
        self.lines.remove(id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mib(mib: u64) -> Limits {
        Limits::default().updated(&serde_json::from_str(&format!(r#"{{"memory":{{"limit":{}}}}}"#, mib << 20)).unwrap())
    }

    #[test]
    fn what_is_undone_was_not_there() {
        let mut ledger = Ledger::default();
        let first = ledger.write("a", mib(1));
        assert!(!first.replaces_another());
        let second = ledger.write("a", mib(2));
        assert!(second.replaces_another());
        ledger.undo(&second);
        assert_eq!(ledger.limits("a"), Some(mib(1)));
        ledger.undo(&first);
        assert_eq!(ledger.all().count(), 0);
    }

    #[test]
    fn a_container_that_is_gone_does_not_come_back_and_what_others_wrote_stays() {
        let mut ledger = Ledger::default();
        let _ = ledger.write("a", mib(1));
        let failed = ledger.write("a", mib(2));
        ledger.remove("a");
        ledger.undo(&failed);
        assert_eq!(ledger.limits("a"), None);
        let failed = ledger.write("a", mib(2));
        let _ = ledger.write("a", mib(2));
        ledger.undo(&failed);
        assert_eq!(ledger.limits("a"), Some(mib(2)), "as much, but somebody else's");
    }
}
