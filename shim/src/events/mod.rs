//! What containerd is told: events in the order in which they happened.
//!
//! Events wait in a queue of bounded length for one task that hands them over, one after the other. containerd may be
//! restarted meanwhile: an event that could not be handed over is tried again, before all that came later.

mod event;
mod transport;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::args::Args;

pub use event::Event;
use transport::{Failed, Transport};

/// Most events that wait. Then the oldest give way, ends of processes last: after a long absence containerd asks for the state
/// anyway, but somebody may wait for an end.
const MAX_WAITING: usize = 2048;
/// How long events may take to be handed over when the shim ends.
const FAREWELL: Duration = Duration::from_secs(2);
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// The task that hands events over.
pub struct Publisher {
    queue: EventQueue,
    task: JoinHandle<()>,
}

/// Where events are put.
#[derive(Debug, Clone, Default)]
pub struct EventQueue(Arc<Queue>);

#[derive(Debug, Default)]
struct Queue {
    waiting: Mutex<VecDeque<Event>>,
    changed: Notify,
}

impl Publisher {
    /// Starts the task.
    pub fn start(args: &Args) -> Self {
        let queue = EventQueue::default();
        let transport = Transport::new(args);
        Self { task: tokio::spawn(publish(queue.clone(), transport)), queue }
    }

    /// Where events are put.
    pub fn queue(&self) -> EventQueue {
        self.queue.clone()
    }

    /// Hands over what waits, for a limited time.
    pub async fn finish(self) {
        if timeout(FAREWELL, self.queue.empty()).await.is_err() {
            tracing::warn!(count = self.queue.lock().len(), "events were not handed over");
        }
        self.task.abort();
    }
}

impl EventQueue {
    /// Puts an event behind all others. Never waits.
    pub fn push(&self, event: Event) {
        tracing::debug!(topic = event.topic(), "event");
        let mut waiting = self.lock();
        if waiting.len() >= MAX_WAITING {
            let oldest = waiting.iter().position(|event| !event.is_exit()).unwrap_or(0);
            waiting.remove(oldest);
            tracing::warn!("containerd takes no events; the oldest is dropped");
        }
        waiting.push_back(event);
        drop(waiting);
        self.0.changed.notify_waiters();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<Event>> {
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What waits, the oldest first.
    #[cfg(test)]
    pub fn topics(&self) -> Vec<&'static str> {
        self.lock().iter().map(Event::topic).collect()
    }

    /// The oldest event; it stays in the queue.
    async fn first(&self) -> Event {
        loop {
            let changed = self.0.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if let Some(event) = self.lock().front() {
                return event.clone();
            }
            changed.await;
        }
    }

    async fn empty(&self) {
        loop {
            let changed = self.0.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.lock().is_empty() {
                return;
            }
            changed.await;
        }
    }

    /// `event` has been dealt with. It may have given way to others meanwhile.
    fn done(&self, event: &Event) {
        let mut waiting = self.lock();
        if waiting.front().is_some_and(|first| first.is(event)) {
            waiting.pop_front();
        }
        drop(waiting);
        self.0.changed.notify_waiters();
    }
}

async fn publish(queue: EventQueue, mut transport: Transport) {
    let mut pause = FIRST_PAUSE;
    loop {
        let event = queue.first().await;
        match transport.publish(&event).await {
            Ok(()) => pause = FIRST_PAUSE,
            Err(Failed::ForGood(reason)) => {
                tracing::warn!(topic = event.topic(), reason, "containerd does not take an event");
            }
            Err(Failed::ForNow(reason)) => {
                tracing::debug!(topic = event.topic(), reason, "an event waits for containerd");
                sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
                continue;
            }
        }
        queue.done(&event);
    }
}

#[cfg(test)]
mod events_test;
