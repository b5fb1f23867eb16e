//! Which container is meant.

use anyhow::anyhow;
use hull_sandbox::SandboxRecord;

/// By name, by identifier, or by the beginning of one if that is unambiguous.
pub fn find<'a>(records: &'a [SandboxRecord], wanted: &str) -> anyhow::Result<&'a SandboxRecord> {
    if let Some(record) = records.iter().find(|record| record.name == wanted || record.id == wanted) {
        return Ok(record);
    }
    let mut candidates = records.iter().filter(|record| record.id.starts_with(wanted));
    match (candidates.next(), candidates.next()) {
        (Some(record), None) => Ok(record),
        (Some(_), Some(_)) => Err(anyhow!("{wanted:?} is the beginning of several containers' identifiers")),
        (None, _) => Err(anyhow!("no running container is called {wanted:?}; `hull ps` lists them")),
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use hull_sandbox::runtime_dir::SandboxStatus;

    pub fn record(id: &str, name: &str) -> SandboxRecord {
        SandboxRecord {
            id: id.into(),
            name: name.into(),
            image: String::new(),
            command: Vec::new(),
            created_s: 0,
            status: SandboxStatus::Running,
            owner_pid: 0,
            monitor_pid: 0,
            vcpus: 1,
            memory_mib: 1,
            max_memory_mib: 1,
            stop_signal: 15,
            stop_timeout_s: 1,
        }
    }

    #[test]
    fn containers_are_found_by_name_or_unambiguous_beginning() {
        let records = [record("ab1", "web"), record("ab2", "ab1x")];
        assert_eq!(find(&records, "web").unwrap().id, "ab1");
        assert_eq!(find(&records, "ab2").unwrap().id, "ab2");
        assert!(find(&records, "ab").is_err());
        assert!(find(&records, "zz").is_err());
    }
}
