//! The worker of one queue.

use std::io;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use vm_memory::{GuestAddressSpace, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;

use super::engine::{Engine, Finished, Io};
use super::held::Held;
use super::request::{Action, Disk, Status};
use crate::memory::GuestRam;
use crate::virtio::queue::{TELL_TIME, VirtQueue};
use crate::virtio::rate_limiter::Gate;
use crate::virtio::worker::{Service, Watch};

const DOORBELL: u64 = 0;
const COMPLETIONS: u64 = 1;
const LIMITS: u64 = 2;
/// How long requests are taken before other events get their turn.
const TURN_TIME: Duration = Duration::from_millis(50);
/// How long a host that refuses requests is left alone.
const RETRY_TIME: Duration = Duration::from_millis(1);

/// Serves a queue.
pub struct BlockService {
    /// Guest memory.
    pub memory: GuestRam,
    /// The queue.
    pub queue: VirtQueue,
    /// Does the requests.
    pub engine: Box<dyn Engine>,
    /// What they are about.
    pub disk: Disk,
    /// The limits.
    pub gate: Gate,
}

/// Why no more requests are taken.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rest {
    /// There are none.
    Empty,
    /// The limits, or too many in flight.
    Stalled,
    /// The turn is over.
    Spent,
}

impl BlockService {
    fn serve(&mut self) {
        self.serve_turn();
        if self.engine.is_refused() {
            thread::sleep(RETRY_TIME);
            self.queue.ring();
        }
    }

    /// Takes, does and completes what there is. The driver hears of all completions of a round by one notification.
    fn serve_turn(&mut self) {
        let memory = self.memory.memory().into_inner();
        let start = Instant::now();
        loop {
            self.queue.disable_notification(&memory);
            let rest = self.take(&memory, start);
            self.engine.submit();
            let room = self.engine.has_room();
            self.complete(&memory);
            match rest {
                Rest::Empty if !self.queue.enable_notification(&memory) => return,
                // Some of what was in flight is done.
                Rest::Stalled if !room && self.engine.has_room() => {}
                Rest::Stalled => return,
                Rest::Spent => {
                    self.queue.ring();
                    return;
                }
                Rest::Empty => {}
            }
        }
    }

    fn take(&mut self, memory: &Arc<GuestMemoryMmap>, start: Instant) -> Rest {
        let mut told = start;
        let mut budget = 4 * u32::from(self.queue.size());
        loop {
            if budget == 0 || start.elapsed() >= TURN_TIME {
                return Rest::Spent;
            }
            budget -= 1;
            if self.gate.is_shut() || !self.engine.has_room() {
                return Rest::Stalled;
            }
            let Some(mut held) = Held::pop(&mut self.queue, memory) else { return Rest::Empty };
            let (action, bytes) = self.disk.parse(&mut held);
            if !self.gate.admit(bytes, 1) {
                self.queue.unpop(held.into_head());
                return Rest::Stalled;
            }
            if let Action::Io(Io::Write { .. }) = action {
                self.disk.counters.bytes_from_guest.add(bytes);
            }
            self.start(memory, held, action);
            // The driver shouldn't wait for the end of a long turn.
            if told.elapsed() >= TELL_TIME {
                self.queue.signal(memory);
                told = Instant::now();
            }
        }
    }

    fn start(&mut self, memory: &GuestMemoryMmap, mut held: Held, action: Action) {
        let status = match action {
            Action::Io(io) => {
                if let Some(finished) = self.engine.start(held, io) {
                    self.finish(memory, finished);
                }
                return;
            }
            Action::Clear(ranges) => Status::from(&self.disk.clear(&ranges)),
            Action::GetId => {
                self.disk.give_id(&mut held);
                Status::Ok
            }
            Action::Answer(status) => status,
        };
        self.answer(memory, held, status);
    }

    fn complete(&mut self, memory: &GuestMemoryMmap) {
        while let Some(finished) = self.engine.reap() {
            self.finish(memory, finished);
        }
        self.queue.signal(memory);
    }

    fn finish(&mut self, memory: &GuestMemoryMmap, finished: Finished) {
        let Finished { held, result } = finished;
        self.answer(memory, held, Status::from(&result));
    }

    fn answer(&mut self, memory: &GuestMemoryMmap, mut held: Held, status: Status) {
        let written = self.disk.finish(&mut held, status);
        self.queue.complete(memory, held.into_head(), written);
    }
}

impl Service for BlockService {
    fn start(&mut self, watch: &Watch) -> io::Result<()> {
        watch.add(self.queue.doorbell(), EventSet::IN, DOORBELL)?;
        if let Some(completions) = self.engine.completions() {
            watch.add(&completions, EventSet::IN, COMPLETIONS)?;
        }
        self.gate.watch(watch, LIMITS)?;
        self.serve();
        Ok(())
    }

    fn fail(&mut self, error: &io::Error) {
        self.queue.fail(error);
    }

    fn handle(&mut self, _watch: &Watch, token: u64, _events: EventSet) {
        match token {
            DOORBELL => self.queue.acknowledge(),
            LIMITS => self.gate.retry(),
            _ => {}
        }
        self.serve();
    }

    fn settle(&mut self) {
        self.engine.settle();
        let memory = self.memory.memory();
        self.complete(&memory);
        // The engine may have been full: no completion is left that would make it go on after a pause.
        self.queue.ring();
    }

    fn deadline(&self) -> Option<Instant> {
        self.gate.deadline()
    }

    fn timeout(&mut self, _watch: &Watch) {
        self.gate.retry();
        self.serve();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::super::blk_test::{config, image};
    use super::super::image::Image;
    use super::*;
    use crate::virtio::counters::Counters;
    use crate::virtio::rate_limiter::SharedLimiter;
    use crate::virtio::rng::Rng;
    use crate::virtio::testing::{DriverQueue, Machine, Part, wait_for};
    use crate::virtio::worker::Worker;

    const PLACES: usize = 4;

    /// Ends requests only when it has to settle.
    #[derive(Default)]
    struct Slow {
        started: Arc<AtomicUsize>,
        /// So many times it doesn't take what was started, and then does it at once. Zero for never.
        refusals: usize,
        in_flight: Vec<Held>,
        done: Vec<Held>,
    }

    impl Engine for Slow {
        fn start(&mut self, held: Held, _io: Io) -> Option<Finished> {
            self.started.fetch_add(1, Ordering::SeqCst);
            self.in_flight.push(held);
            None
        }

        fn has_room(&self) -> bool {
            self.in_flight.len() < PLACES
        }

        fn is_refused(&mut self) -> bool {
            if self.refusals == 0 || self.in_flight.is_empty() {
                return false;
            }
            self.refusals -= 1;
            if self.refusals == 0 {
                self.done.append(&mut self.in_flight);
            }
            true
        }

        fn reap(&mut self) -> Option<Finished> {
            self.done.pop().map(|held| Finished { held, result: Ok(()) })
        }

        fn settle(&mut self) {
            self.done.append(&mut self.in_flight);
        }
    }

    /// A disk with `requests` reads in its ring, served by `engine`.
    fn start(engine: Slow, requests: usize) -> (DriverQueue, Worker<BlockService>) {
        let machine = Machine::new();
        let mut ring = machine.plug(Box::new(Rng::new())).make_queue(0, 64);
        let at = machine.allocate(16);
        machine.write(at, &[0; 16]);
        for _ in 0..requests {
            ring.add(&[
                Part { address: at, len: 16, writable: false },
                Part { address: machine.allocate(512), len: 512, writable: true },
                Part { address: machine.allocate(1), len: 1, writable: true },
            ]);
        }
        let file = image();
        let counters = Arc::new(Counters::default());
        let service = BlockService {
            memory: machine.memory.clone(),
            queue: ring.device_side(&counters),
            engine: Box::new(engine),
            disk: Disk {
                image: Arc::new(Image::open(&config(&file, true)).unwrap()),
                counters: Arc::clone(&counters),
                write_through: false,
            },
            gate: Gate::new(SharedLimiter::new(None).unwrap(), counters),
        };
        (ring, Worker::start("test", service).ok().unwrap())
    }

    #[test]
    fn requests_that_the_host_refuses_are_tried_again() {
        let (mut ring, worker) = start(Slow { refusals: 3, ..Slow::default() }, 2);
        (0..2).for_each(|_| assert_eq!(ring.wait_used().1, 1));
        assert!(worker.stop().is_some());
    }

    #[test]
    fn a_full_engine_goes_on_after_a_pause() {
        let started = Arc::new(AtomicUsize::new(0));
        let (mut ring, worker) = start(Slow { started: Arc::clone(&started), ..Slow::default() }, PLACES + 2);
        wait_for("a full engine", || started.load(Ordering::SeqCst) == PLACES);
        worker.pause();
        worker.resume();
        wait_for("the rest", || started.load(Ordering::SeqCst) == PLACES + 2);
        assert!(worker.stop().is_some());
        (0..PLACES + 2).for_each(|_| assert!(ring.poll_used().is_some()));
    }
}
