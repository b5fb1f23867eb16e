//! A VM's rank among the processes that the host's kernel kills when memory is short.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, PoisonError};

use oci_spec::runtime::Spec;

/// The rank of the monitor, which holds its containers' memory: that of the container that is to be killed first. containerd
/// protects the sandbox of a pod, which is small elsewhere; here it would protect its containers with it.
pub struct Rank {
    /// Opened while the monitor was known to live: after its end, another process may get its number, but not this file.
    file: io::Result<File>,
    own: i32,
    containers: Mutex<BTreeMap<String, i32>>,
}

impl Rank {
    /// Gives the monitor the score of what it was started for, until it has containers.
    pub fn new(monitor_pid: u32, spec: &Spec) -> Self {
        let file = fs::OpenOptions::new().write(true).open(format!("/proc/{monitor_pid}/oom_score_adj"));
        let rank = Self { file, own: score(spec), containers: Mutex::default() };
        rank.change(|_| ());
        rank
    }

    /// A container is there, with this [`score`].
    pub fn add(&self, id: &str, score: i32) {
        self.change(|containers| _ = containers.insert(id.into(), score));
    }

    /// A container is gone.
    pub fn remove(&self, id: &str) {
        self.change(|containers| _ = containers.remove(id));
    }

    fn change(&self, change: impl FnOnce(&mut BTreeMap<String, i32>)) {
        let mut containers = self.containers.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut containers);
        let score = containers.values().copied().max().unwrap_or(self.own);
        let written = match &self.file {
            Ok(file) => file.write_all_at(score.to_string().as_bytes(), 0).map_err(|error| error.kind()),
            Err(error) => Err(error.kind()),
        };
        if let Err(error) = written {
            tracing::debug!(%error, score, "the VM keeps its rank among processes to kill");
        }
    }
}

/// `process.oomScoreAdj` of a container: the more, the earlier it is killed.
pub fn score(spec: &Spec) -> i32 {
    spec.process().as_ref().and_then(|process| process.oom_score_adj()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use super::*;

    struct Monitor(Child);

    impl Monitor {
        fn score(&self) -> i32 {
            fs::read_to_string(format!("/proc/{}/oom_score_adj", self.0.id())).unwrap().trim().parse().unwrap()
        }
    }

    impl Drop for Monitor {
        fn drop(&mut self) {
            self.0.kill().unwrap();
            self.0.wait().unwrap();
        }
    }

    fn spec(score: i32) -> Spec {
        let json = format!(
            r#"{{"ociVersion":"1.1.0","process":{{"cwd":"/","user":{{"uid":0,"gid":0}},"oomScoreAdj":{score}}}}}"#
        );
        serde_json::from_str(&json).unwrap()
    }

    #[test]
    fn a_vm_is_killed_as_early_as_the_first_of_its_containers() {
        let monitor = Monitor(Command::new("sleep").arg("1000").spawn().unwrap());
        // Higher than this process's own, so that it takes no rights.
        let rank = Rank::new(monitor.0.id(), &spec(900));
        assert_eq!(monitor.score(), 900);
        rank.add("best effort", score(&spec(1000)));
        rank.add("burstable", 980);
        assert_eq!(monitor.score(), 1000);
        rank.remove("best effort");
        assert_eq!(monitor.score(), 980);
        rank.remove("burstable");
        assert_eq!(monitor.score(), 900);
    }

    #[test]
    fn containers_that_are_killed_late_are_not_killed_for_the_sandbox() {
        let monitor = Monitor(Command::new("sleep").arg("1000").spawn().unwrap());
        let rank = Rank::new(monitor.0.id(), &spec(950));
        rank.add("guaranteed", 930);
        assert_eq!(monitor.score(), 930);
    }
}
