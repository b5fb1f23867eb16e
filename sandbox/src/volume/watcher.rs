//! Tells the guest when a volume has changed.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hull_protocol::agent::{UpdateVolumeRequest, Volume};
use hull_protocol::agent_ttrpc::AgentClient;
use protobuf::MessageField;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use super::changes::{Change, Changes};
use super::current_data;
use crate::agent::{AgentError, CREATE_TIMEOUT};

/// How often the guest is told of a change that it fails to follow. Then the next change does it.
const ATTEMPTS: u32 = 4;

/// When the guest is told.
#[derive(Debug, Clone, Copy)]
struct Pace {
    /// The writer is done when it has done nothing for so long.
    quiet: Duration,
    /// Longest time from a change until the guest is told, whatever else changes meanwhile.
    patience: Duration,
    /// Time from a failure until the guest is told again.
    retry: Duration,
}

const USUAL: Pace =
    Pace { quiet: Duration::from_millis(100), patience: Duration::from_secs(1), retry: Duration::from_secs(5) };

/// The volumes of a sandbox that are watched. One task serves them all, from the first one on.
pub(crate) struct Volumes {
    pace: Pace,
    watcher: Mutex<Option<Watcher>>,
}

impl Default for Volumes {
    fn default() -> Self {
        Self { pace: USUAL, watcher: Mutex::default() }
    }
}

struct Watcher {
    state: Arc<State>,
    task: AbortHandle,
}

struct State {
    pace: Pace,
    changes: Changes,
    agent: AgentClient,
    entries: Mutex<Entries>,
    /// There is something to do.
    work: Notify,
}

#[derive(Default)]
struct Entries {
    all: BTreeMap<u64, Entry>,
    last_key: u64,
}

/// A volume of a container.
struct Entry {
    watch: i32,
    path: PathBuf,
    container_id: String,
    number: u32,
    /// The container is there.
    live: bool,
    stale: Option<Stale>,
}

/// The guest does not know the volume as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stale {
    since: Instant,
    due: Instant,
    failures: u32,
}

/// Volumes of one container that are watched as long as this lives.
pub(crate) struct Watch {
    state: Arc<State>,
    keys: Vec<u64>,
    volumes: Vec<Volume>,
}

impl Volumes {
    /// Watches those of a container's volumes, given by number and path, that are written as Kubernetes does it. `None` if none
    /// is. The guest hears nothing before [`Watch::container_is_there`].
    pub(crate) fn watch(
        &self,
        agent: &AgentClient,
        container_id: &str,
        candidates: &[(u32, PathBuf)],
    ) -> io::Result<Option<Watch>> {
        let mut watch: Option<Watch> = None;
        for (number, path) in candidates {
            // Before it is looked at, so that no change is missed.
            let state = self.state(agent)?;
            let key = state.add(container_id, *number, path)?;
            let watch = watch.get_or_insert_with(|| Watch { state, keys: Vec::new(), volumes: Vec::new() });
            watch.keys.push(key);
            match current_data(path)? {
                Some(data) => watch.volumes.push(Volume { number: *number, data, ..Default::default() }),
                None => watch.forget_last(),
            }
        }
        Ok(watch.filter(|watch| !watch.keys.is_empty()))
    }

    /// What serves them, made at the first need.
    fn state(&self, agent: &AgentClient) -> io::Result<Arc<State>> {
        let mut watcher = lock(&self.watcher);
        if let Some(watcher) = &*watcher {
            return Ok(Arc::clone(&watcher.state));
        }
        let state = Arc::new(State {
            pace: self.pace,
            changes: Changes::new()?,
            agent: agent.clone(),
            entries: Mutex::default(),
            work: Notify::new(),
        });
        let task = tokio::spawn(serve(Arc::clone(&state))).abort_handle();
        *watcher = Some(Watcher { state: Arc::clone(&state), task });
        Ok(state)
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Watch {
    /// For the agent, which makes copies of them.
    pub(crate) fn volumes(&self) -> &[Volume] {
        &self.volumes
    }

    /// The container has copies now. The guest is told at once what the volumes are, which may have changed since they were named;
    /// nobody waits for it, since it may take its time.
    pub(crate) fn container_is_there(&self) {
        let mut entries = lock(&self.state.entries);
        let now = Instant::now();
        for key in &self.keys {
            entries.all.entry(*key).and_modify(|entry| {
                entry.live = true;
                entry.stale = Some(Stale { since: now, due: now, failures: 0 });
            });
        }
        self.state.work.notify_one();
    }

    fn forget_last(&mut self) {
        if let Some(key) = self.keys.pop() {
            self.state.remove(key);
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.keys.iter().for_each(|key| self.state.remove(*key));
    }
}

impl State {
    fn add(&self, container_id: &str, number: u32, path: &Path) -> io::Result<u64> {
        let mut entries = lock(&self.entries);
        // With the lock, so that nobody ends the watch of the same directory meanwhile.
        let watch = self.changes.watch(path)?;
        entries.last_key += 1;
        let key = entries.last_key;
        let container_id = container_id.to_owned();
        entries.all.insert(key, Entry { watch, path: path.to_owned(), container_id, number, live: false, stale: None });
        Ok(key)
    }

    fn remove(&self, key: u64) {
        let mut entries = lock(&self.entries);
        if let Some(entry) = entries.all.remove(&key)
            && !entries.all.values().any(|other| other.watch == entry.watch)
        {
            self.changes.forget(entry.watch);
        }
    }

    /// Tells the guest what a volume is now.
    async fn update(&self, key: u64) {
        let Some((path, mut request, before)) = self.begin(key) else { return };
        let told = match tokio::task::spawn_blocking(move || current_data(&path)).await {
            Ok(Ok(Some(data))) => {
                request.volume.mut_or_insert_default().data = data;
                self.tell(&request).await
            }
            // Its writer makes or removes it: that is a change, too.
            Ok(Ok(None)) => return,
            Ok(Err(error)) => Err(error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        if let Err(error) = told {
            self.failed(key, before.map_or(0, |stale| stale.failures) + 1, &error);
        }
    }

    /// Takes what there is to do for a volume.
    fn begin(&self, key: u64) -> Option<(PathBuf, UpdateVolumeRequest, Option<Stale>)> {
        let mut entries = lock(&self.entries);
        let entry = entries.all.get_mut(&key)?;
        let volume = Volume { number: entry.number, ..Default::default() };
        let request = UpdateVolumeRequest {
            container_id: entry.container_id.clone(),
            volume: MessageField::some(volume),
            ..Default::default()
        };
        Some((entry.path.clone(), request, entry.stale.take()))
    }

    async fn tell(&self, request: &UpdateVolumeRequest) -> Result<(), String> {
        let context = ttrpc::context::with_duration(CREATE_TIMEOUT);
        // ttrpc has the same limit; this one also counts what happens before its own begins.
        let deadline = Instant::now() + CREATE_TIMEOUT + Duration::from_secs(1);
        match timeout_at(deadline, self.agent.update_volume(context, request)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(AgentError::from_ttrpc("UpdateVolume", CREATE_TIMEOUT, error).to_string()),
            Err(_) => Err("the guest's agent did not answer".to_owned()),
        }
    }

    fn failed(&self, key: u64, failures: u32, error: &str) {
        let mut entries = lock(&self.entries);
        // One that is gone, with its container, needs nothing.
        let Some(entry) = entries.all.get_mut(&key) else { return };
        let (container, volume) = (&entry.container_id, entry.number);
        if failures < ATTEMPTS {
            tracing::debug!(container, volume, error, "a volume is not updated, and tried again");
            let now = Instant::now();
            entry.stale.get_or_insert(Stale { since: now, due: now + self.pace.retry, failures });
            self.work.notify_one();
        } else {
            tracing::warn!(
                container,
                volume,
                error,
                "a container has an old content of a volume until it changes again"
            );
        }
    }
}

impl Entries {
    /// Something has changed.
    fn note(&mut self, change: Change, pace: Pace, now: Instant) {
        for entry in self.all.values_mut() {
            if change == Change::Somewhere || change == Change::In(entry.watch) {
                entry.stale = Some(Stale::after(entry.stale, pace, now));
            }
        }
    }

    fn next_due(&self) -> Option<Instant> {
        self.all.values().filter(|entry| entry.live).filter_map(|entry| entry.stale).map(|stale| stale.due).min()
    }

    fn due(&self, now: Instant) -> Vec<u64> {
        let is_due = |entry: &Entry| entry.live && entry.stale.is_some_and(|stale| stale.due <= now);
        self.all.iter().filter(|(_, entry)| is_due(entry)).map(|(key, _)| *key).collect()
    }
}

impl Stale {
    /// After another change; what failed before begins anew.
    fn after(before: Option<Self>, pace: Pace, now: Instant) -> Self {
        let since = before.filter(|before| before.failures == 0).map_or(now, |before| before.since);
        Self { since, due: (now + pace.quiet).min(since + pace.patience), failures: 0 }
    }
}

async fn serve(state: Arc<State>) {
    loop {
        let due = lock(&state.entries).next_due();
        let wait = async {
            match due {
                Some(due) => sleep_until(due).await,
                None => std::future::pending().await,
            }
        };
        let changes = state.changes.next(|change| lock(&state.entries).note(change, state.pace, Instant::now()));
        tokio::select! {
            result = changes => if let Err(error) = result {
                tracing::warn!(%error, "changes of volumes can't be watched");
                sleep(state.pace.retry).await;
            },
            () = state.work.notified() => {}
            () = wait => {
                let due = lock(&state.entries).due(Instant::now());
                for key in due {
                    state.update(key).await;
                }
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[path = "watcher_test.rs"]
mod tests;
