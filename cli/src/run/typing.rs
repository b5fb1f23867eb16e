//! From the terminal to the keeper, without loss.
//!
//! The keeper says what the container has taken, and no more than [`CREDIT_BYTES`] are under way: the keeper never has to
//! leave its socket unread, and so a container that does not read holds up neither signals nor sizes. What is typed beyond
//! that waits here, and the detach keys are looked for as soon as it is read. When [`BUFFER_BYTES`] wait, the terminal is
//! no longer read, and whoever writes to it has to wait.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use super::detach::DetachKeys;
use super::frames::{FrameWriter, ToKeeper};
use super::pump::read;

/// Most bytes that are sent and not yet taken by the container.
pub const CREDIT_BYTES: usize = 64 << 10;
/// Most bytes that wait for credit.
pub const BUFFER_BYTES: usize = 1 << 20;
const PIECE_BYTES: usize = 4096;

/// What is typed, on its way to the keeper.
#[derive(Default)]
pub struct Typing {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<u8>,
    under_way: usize,
    /// Nothing more is read from the terminal.
    end: Option<End>,
}

/// Why typing ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// The detach keys were typed.
    Detached,
    /// The terminal has no more input, or the keeper is gone.
    Over,
}

#[derive(Debug, PartialEq, Eq)]
enum Step {
    Send(Vec<u8>),
    End(End),
}

impl Typing {
    /// Passes on what is typed, on threads. `detached` is called after the keeper was told of the detach keys.
    pub fn start(
        self: &Arc<Self>,
        keeper: Arc<FrameWriter>,
        detached: impl FnOnce() + Send + 'static,
    ) -> io::Result<()> {
        let reader = Arc::clone(self);
        thread::Builder::new().name("keys".into()).spawn(move || reader.read_keys(io::stdin().as_fd()))?;
        let sender = Arc::clone(self);
        thread::Builder::new().name("typed".into()).spawn(move || {
            if sender.send_to(&keeper) == End::Detached {
                detached();
            }
        })?;
        Ok(())
    }

    /// The container has taken so many bytes.
    pub fn taken(&self, count: usize) {
        self.lock().taken(count);
        self.changed.notify_all();
    }

    fn read_keys(&self, input: BorrowedFd<'_>) {
        let mut keys = DetachKeys::default();
        let mut buffer = [0; PIECE_BYTES];
        while self.wait_for_room()
            && let Ok(length @ 1..) = read(input, &mut buffer)
        {
            let mut typed = Vec::new();
            let is_over = keys.filter(buffer.get(..length).unwrap_or_default(), &mut typed);
            self.add(&typed, is_over.then_some(End::Detached));
        }
        self.add(&[], Some(End::Over));
    }

    fn send_to(&self, keeper: &FrameWriter) -> End {
        loop {
            match self.next() {
                Step::Send(bytes) => {
                    if keeper.bytes(&bytes).is_err() {
                        self.add(&[], Some(End::Over));
                        return End::Over;
                    }
                }
                Step::End(end) => {
                    let message = match end {
                        End::Detached => ToKeeper::Detach,
                        End::Over => ToKeeper::InputEnd,
                    };
                    let _ = keeper.message(&message);
                    return end;
                }
            }
        }
    }

    /// False when nothing more shall be read.
    fn wait_for_room(&self) -> bool {
        let mut state = self.lock();
        while state.end.is_none() && !state.has_room() {
            state = self.wait(state);
        }
        state.end.is_none()
    }

    fn next(&self) -> Step {
        let mut state = self.lock();
        loop {
            if let Some(step) = state.next() {
                drop(state);
                self.changed.notify_all();
                return step;
            }
            state = self.wait(state);
        }
    }

    fn add(&self, bytes: &[u8], end: Option<End>) {
        self.lock().add(bytes, end);
        self.changed.notify_all();
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// For a piece, and for a Ctrl-P that was held back before it.
    fn has_room(&self) -> bool {
        self.waiting.len() + PIECE_BYTES < BUFFER_BYTES
    }

    fn add(&mut self, bytes: &[u8], end: Option<End>) {
        self.waiting.extend(bytes);
        self.end = self.end.or(end);
    }

    fn taken(&mut self, count: usize) {
        self.under_way = self.under_way.saturating_sub(count);
    }

    /// What the credit allows. After the detach keys all that waits goes to the keeper, which has it to itself from then on.
    fn next(&mut self) -> Option<Step> {
        let credit = match self.end {
            Some(End::Detached) => BUFFER_BYTES,
            _ => CREDIT_BYTES.saturating_sub(self.under_way),
        };
        let count = self.waiting.len().min(credit);
        if count > 0 {
            self.under_way += count;
            return Some(Step::Send(self.waiting.drain(..count).collect()));
        }
        let end = self.end.filter(|_| self.waiting.is_empty());
        end.map(Step::End)
    }
}

#[cfg(test)]
#[path = "typing_test.rs"]
mod tests;
