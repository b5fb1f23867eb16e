//! A thread that owns a device's queues while the device is active.
//!
//! [`Worker::start`] moves the service in; [`Worker::stop`] returns it. In between the thread waits for file descriptors and
//! gives their events to the service. A pause waits until the service has returned from its handler.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::mpsc::{self, Receiver, SendError};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Workers need little: no deep recursion, buffers are on the heap or in guest memory.
const STACK_BYTES: usize = 128 << 10;
const CONTROL_TOKEN: u64 = u64::MAX;
const EVENTS_AT_ONCE: usize = 32;

/// What a worker does.
pub trait Service: Send + 'static {
    /// Called once on the worker's thread: registers file descriptors and looks at what is there already.
    fn start(&mut self, watch: &Watch) -> io::Result<()>;

    /// The thread ends, because it can't start or wait: tells the driver that the device needs a reset.
    fn fail(&mut self, error: &io::Error);

    /// A file descriptor has an event.
    fn handle(&mut self, watch: &Watch, token: u64, events: EventSet);

    /// Called after each batch of events.
    fn after_events(&mut self, _watch: &Watch) {}

    /// Called before a pause and before the end: afterwards nobody may touch guest memory on the service's behalf.
    fn settle(&mut self) {}

    /// When [`Service::timeout`] is to be called.
    fn deadline(&self) -> Option<Instant> {
        None
    }

    /// The deadline has passed.
    fn timeout(&mut self, _watch: &Watch) {}
}

/// The file descriptors that a worker waits for.
pub struct Watch(Epoll);

impl Watch {
    /// Waits for `events` of `fd`. `token` comes back with each; all values but the largest are free.
    pub fn add(&self, fd: &impl AsRawFd, events: EventSet, token: u64) -> io::Result<()> {
        self.0.ctl(ControlOperation::Add, fd.as_raw_fd(), EpollEvent::new(events, token))
    }

    /// Waits for other `events` of a descriptor that was added.
    pub fn change(&self, fd: &impl AsRawFd, events: EventSet, token: u64) -> io::Result<()> {
        self.0.ctl(ControlOperation::Modify, fd.as_raw_fd(), EpollEvent::new(events, token))
    }

    /// Stops waiting. Closing a file descriptor does that too, when it is the last one for its file.
    pub fn remove(&self, fd: RawFd) {
        let _ = self.0.ctl(ControlOperation::Delete, fd, EpollEvent::default());
    }
}

/// What the owner wants of the thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Command {
    Run,
    Pause,
    Stop,
}

struct Control {
    event: EventFd,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    command: Command,
    /// The thread stands still, or has ended.
    idle: bool,
}

impl Control {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn command(&self, command: Command) {
        self.lock().command = command;
        self.changed.notify_all();
        // Can't fail: the counter can't be full.
        let _ = self.event.write(1);
    }

    /// On the thread: stands still while paused. False to stop.
    fn obey(&self, service: &mut impl Service) -> bool {
        let _ = self.event.read();
        let mut settled = false;
        let mut state = self.lock();
        while state.command != Command::Run {
            if !settled {
                drop(state);
                service.settle();
                settled = true;
                state = self.lock();
            } else if state.command == Command::Stop {
                return false;
            } else {
                state.idle = true;
                self.changed.notify_all();
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
        state.idle = false;
        true
    }
}

/// Handle to the thread.
pub struct Worker<S> {
    control: Arc<Control>,
    thread: JoinHandle<Option<S>>,
}

impl<S: Service> Worker<S> {
    /// Starts a thread named `name`. An error comes with the service.
    pub fn start(name: &str, service: S) -> Result<Self, (io::Error, S)> {
        let (sender, receiver) = mpsc::sync_channel(1);
        let worker = match Self::spawn(name, receiver) {
            Ok(worker) => worker,
            Err(error) => return Err((error, service)),
        };
        // Can't fail: the thread waits for it.
        sender.send(service).map_err(|SendError(service)| (io::ErrorKind::BrokenPipe.into(), service))?;
        Ok(worker)
    }

    /// A thread that waits for its service.
    fn spawn(name: &str, service: Receiver<S>) -> io::Result<Self> {
        let control = Arc::new(Control {
            event: EventFd::new(EFD_NONBLOCK)?,
            state: Mutex::new(State { command: Command::Run, idle: false }),
            changed: Condvar::new(),
        });
        let watch = Watch(Epoll::new()?);
        watch.add(&control.event, EventSet::IN, CONTROL_TOKEN)?;
        let on_thread = Arc::clone(&control);
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .stack_size(STACK_BYTES)
            .spawn(move || service.recv().ok().map(|service| run(service, &watch, &on_thread)))?;
        Ok(Self { control, thread })
    }

    /// Waits until the service stands still.
    pub fn pause(&self) {
        self.control.command(Command::Pause);
        let mut state = self.control.lock();
        while state.command == Command::Pause && !state.idle {
            state = self.control.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Lets the service go on.
    pub fn resume(&self) {
        self.control.command(Command::Run);
    }

    /// Ends the thread and returns the service; `None` if it panicked.
    pub fn stop(self) -> Option<S> {
        self.control.command(Command::Stop);
        self.thread.join().ok().flatten()
    }
}

/// What can stand still.
pub trait Quiesce {
    /// Waits until guest memory isn't touched any more.
    fn pause(&self);

    /// Undoes [`Quiesce::pause`].
    fn resume(&self);
}

/// The workers of a device: none until its driver is ready.
pub struct Workers<S> {
    running: Vec<Worker<S>>,
    /// Services that could not be started.
    left: Vec<S>,
}

impl<S> Default for Workers<S> {
    fn default() -> Self {
        Self { running: Vec::new(), left: Vec::new() }
    }
}

impl<S: Service> Workers<S> {
    /// Starts a thread for each service, all or none. They are named `name`. [`Workers::stop`] returns them also after an error.
    pub fn start(&mut self, name: &str, services: impl IntoIterator<Item = S>) -> io::Result<()> {
        let mut services = services.into_iter();
        while let Some(service) = services.next() {
            match Worker::start(name, service) {
                Ok(worker) => self.running.push(worker),
                Err((error, service)) => {
                    self.left = self.stop();
                    self.left.push(service);
                    self.left.extend(services);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Ends the threads and returns the services of those that did not panic.
    pub fn stop(&mut self) -> Vec<S> {
        let mut services = mem::take(&mut self.left);
        services.extend(mem::take(&mut self.running).into_iter().filter_map(Worker::stop));
        services
    }
}

impl<S: Service> Quiesce for Workers<S> {
    fn pause(&self) {
        self.running.iter().for_each(Worker::pause);
    }

    fn resume(&self) {
        self.running.iter().for_each(Worker::resume);
    }
}

/// Marks the thread as idle however it ends, so that a pause never waits for a dead thread.
struct Ending<'a>(&'a Control);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.lock().idle = true;
        self.0.changed.notify_all();
    }
}

fn run<S: Service>(mut service: S, watch: &Watch, control: &Control) -> S {
    let _ending = Ending(control);
    if let Err(error) = service.start(watch) {
        service.fail(&error);
        return service;
    }
    service.after_events(watch);
    let mut events = vec![EpollEvent::default(); EVENTS_AT_ONCE];
    loop {
        let count = match watch.0.wait(wait_ms(service.deadline()), &mut events) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) => {
                service.fail(&error);
                return service;
            }
        };
        let ready = events.get(..count).unwrap_or_default();
        // Commands come first: a pause shouldn't wait for a long batch.
        if ready.iter().any(|event| event.data() == CONTROL_TOKEN) && !control.obey(&mut service) {
            return service;
        }
        for event in ready.iter().filter(|event| event.data() != CONTROL_TOKEN) {
            service.handle(watch, event.data(), event.event_set());
        }
        if service.deadline().is_some_and(|deadline| deadline <= Instant::now()) {
            service.timeout(watch);
        }
        service.after_events(watch);
    }
}

/// Milliseconds until the deadline, rounded up; -1 for ever.
fn wait_ms(deadline: Option<Instant>) -> i32 {
    let Some(deadline) = deadline else { return -1 };
    let left = deadline.saturating_duration_since(Instant::now()) + Duration::from_micros(999);
    i32::try_from(left.as_millis()).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    struct Unstartable(Option<io::ErrorKind>);

    impl Service for Unstartable {
        fn start(&mut self, watch: &Watch) -> io::Result<()> {
            // A descriptor can't be added twice.
            let event = EventFd::new(EFD_NONBLOCK)?;
            watch.add(&event, EventSet::IN, 0)?;
            watch.add(&event, EventSet::IN, 0)
        }

        fn fail(&mut self, error: &io::Error) {
            self.0 = Some(error.kind());
        }

        fn handle(&mut self, _watch: &Watch, _token: u64, _events: EventSet) {}
    }

    #[test]
    fn a_service_that_does_not_start_hears_of_it() {
        let worker = Worker::start("test", Unstartable(None)).ok().unwrap();
        worker.pause();
        assert_eq!(worker.stop().unwrap().0, Some(io::ErrorKind::AlreadyExists));
    }
}
