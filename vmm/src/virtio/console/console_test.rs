//! The console with named ports: control messages, processes that come and go, hostile drivers.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "tests stop at the first surprise"
)]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tempfile::TempDir;

use super::messages::{FEATURE_MULTIPORT, Message, event};
use super::{Console, ConsoleConfig, ConsoleError, ConsoleSink, Control};
use crate::virtio::testing::{Driver, Machine, Part, wait_for};

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl ConsoleSink for Log {
    fn write(&mut self, bytes: &[u8]) {
        self.0.lock().unwrap().extend(bytes);
    }
}

const TO_DRIVER: usize = 2;
const FROM_DRIVER: usize = 3;
/// Queues of the port "a".
const RECEIVE: usize = 4;
const TRANSMIT: usize = 5;
const BUFFER: u32 = 4096;

/// A driver of a console with the ports "a" and "b".
struct Bench {
    driver: Driver,
    machine: Arc<Machine>,
    control: Arc<Control>,
    directory: TempDir,
    log: Log,
    buffers: Vec<(u16, u64)>,
}

impl Bench {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let log = Log::default();
        let [a, b, first] = ["a", "b", "first"].map(|name| directory.path().join(name));
        let ports = vec![("a", a.as_path()), ("b", b.as_path())];
        let config = ConsoleConfig { sink: Box::new(log.clone()), socket: Some(&first), size: (80, 24), ports };
        let console = Console::new(config).unwrap();
        let control = Arc::clone(console.control());
        let machine = Machine::new();
        let mut driver = machine.plug(Box::new(console));
        driver.start();
        let mut this = Self { driver, machine, control, directory, log, buffers: Vec::new() };
        this.fill();
        this
    }

    /// Gives buffers for control messages.
    fn fill(&mut self) {
        self.buffers.clear();
        for _ in 0..16 {
            self.offer();
        }
        self.driver.queues[TO_DRIVER].kick();
    }

    fn offer(&mut self) {
        let address = self.machine.allocate(u64::from(BUFFER));
        let head = self.driver.queues[TO_DRIVER].add(&[Part { address, len: BUFFER, writable: true }]);
        self.buffers.push((head, address));
    }

    fn tell(&mut self, port: u32, event: u16, value: u16) {
        self.driver.queues[FROM_DRIVER].request(&Message { port, event, value }.to_bytes(), 0);
    }

    /// The next message and what follows it.
    fn hear(&mut self) -> (Message, Vec<u8>) {
        let (head, written) = self.driver.queues[TO_DRIVER].wait_used();
        let at = self.buffers.iter().position(|(other, _)| *other == head).unwrap();
        let (_, address) = self.buffers.remove(at);
        let bytes = self.machine.read(address, written as usize);
        self.offer();
        self.driver.queues[TO_DRIVER].kick();
        (Message::from_bytes(bytes[..8].try_into().unwrap()), bytes[8..].to_vec())
    }

    #[track_caller]
    fn expect(&mut self, port: u32, event: u16, value: u16, rest: &[u8]) {
        assert_eq!(self.hear(), (Message { port, event, value }, rest.to_vec()));
    }

    /// Says hello as Linux does, and opens port "a".
    fn greet(&mut self) {
        self.tell(0, event::DEVICE_READY, 1);
        for port in 0..3 {
            self.expect(port, event::PORT_ADD, 1, b"");
        }
        self.tell(0, event::PORT_READY, 1);
        self.expect(0, event::CONSOLE_PORT, 1, b"");
        self.expect(0, event::RESIZE, 1, &[80, 0, 24, 0]);
        self.expect(0, event::PORT_OPEN, 1, b"");
        self.tell(1, event::PORT_READY, 1);
        self.expect(1, event::PORT_NAME, 1, b"a");
        self.tell(1, event::PORT_OPEN, 1);
    }

    fn connect(&self, name: &str) -> UnixStream {
        let stream = UnixStream::connect(self.directory.path().join(name)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    }

    /// Connects to port "a"; the guest hears of it.
    fn talk(&mut self) -> UnixStream {
        let stream = self.connect("a");
        self.expect(1, event::PORT_OPEN, 1, b"");
        stream
    }

    /// Gives a buffer to port "a"; the address of it.
    fn want_input(&mut self) -> u64 {
        let address = self.machine.allocate(u64::from(BUFFER));
        self.driver.queues[RECEIVE].add(&[Part { address, len: BUFFER, writable: true }]);
        self.driver.queues[RECEIVE].kick();
        address
    }

    fn errors(&self) -> u64 {
        self.machine.root.counters(self.driver.slot).unwrap().errors.get()
    }
}

#[test]
fn a_buffer_that_comes_late_is_asked_for() {
    let mut bench = Bench::new();
    bench.buffers.clear();
    bench.driver.start_with(bench.driver.device_features());
    bench.offer();
    bench.tell(0, event::DEVICE_READY, 1);
    bench.driver.queues[TO_DRIVER].wait_used();
    let queue = &bench.driver.queues[TO_DRIVER];
    let avail_event = queue.used + 4 + 8 * u64::from(queue.size);
    wait_for("the device to want the second buffer", || bench.machine.read(avail_event, 2) == [1, 0]);
}

#[test]
fn a_driver_is_told_of_all_ports_and_both_sides_talk() {
    let mut bench = Bench::new();
    bench.greet();
    let mut process = bench.talk();
    bench.driver.queues[TRANSMIT].request(b"from the guest", 0);
    let mut text = [0; 14];
    process.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"from the guest");
    let address = bench.want_input();
    process.write_all(b"from the host").unwrap();
    let (_, written) = bench.driver.queues[RECEIVE].wait_used();
    assert_eq!(bench.machine.read(address, written as usize), b"from the host");
    assert!(bench.log.0.lock().unwrap().is_empty(), "ports are not in the log");
}

#[test]
fn the_first_port_goes_to_the_log_and_to_a_process_that_may_be_slow() {
    let mut bench = Bench::new();
    bench.greet();
    let mut process = bench.connect("first");
    bench.driver.queues[1].request(b"one", 0);
    let mut text = [0; 3];
    process.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"one");
    for _ in 0..1000 {
        let address = 0x10_0000;
        bench.driver.queues[1].add(&[Part { address, len: 4096, writable: false }]);
        bench.driver.queues[1].kick();
        bench.driver.queues[1].wait_used();
    }
    assert_eq!(bench.log.0.lock().unwrap().len(), 3 + 1000 * 4096, "the log is complete, and nothing waited");
}

#[test]
fn output_waits_for_a_slow_process_and_arrives_whole() {
    let mut bench = Bench::new();
    bench.greet();
    let mut process = bench.talk();
    let chunk: Vec<u8> = (0..65536u32).map(|i| (i * 7 / 3) as u8).collect();
    let address = bench.machine.allocate(65536);
    bench.machine.write(address, &chunk);
    for _ in 0..30 {
        bench.driver.queues[TRANSMIT].add(&[Part { address, len: 65536, writable: false }]);
    }
    bench.driver.queues[TRANSMIT].kick();
    // Another port doesn't wait.
    bench.driver.queues[1].request(b"log", 0);
    let mut data = vec![0; 65536];
    for _ in 0..30 {
        process.read_exact(&mut data).unwrap();
        assert!(data == chunk);
    }
    for _ in 0..30 {
        bench.driver.queues[TRANSMIT].wait_used();
    }
}

#[test]
fn output_without_a_process_is_dropped_and_a_process_that_leaves_frees_its_place() {
    let mut bench = Bench::new();
    bench.greet();
    bench.driver.queues[TRANSMIT].request(b"nobody", 0);
    let first = bench.talk();
    let mut second = bench.connect("a");
    for _ in 0..30 {
        bench.driver.queues[TRANSMIT].add(&[Part { address: 0x10_0000, len: 65536, writable: false }]);
    }
    bench.driver.queues[TRANSMIT].kick();
    drop(first);
    bench.expect(1, event::PORT_OPEN, 1, b"");
    for _ in 0..30 {
        bench.driver.queues[TRANSMIT].wait_used();
    }
    bench.driver.queues[TRANSMIT].request(b"fresh", 0);
    let mut text = [0; 5];
    second.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"fresh", "what waited for another process is not for this one");
    bench.want_input();
    second.write_all(b"x").unwrap();
    bench.driver.queues[RECEIVE].wait_used();
    drop(second);
    bench.expect(1, event::PORT_OPEN, 0, b"");
}

#[test]
fn a_process_that_waited_is_not_taken_for_the_one_that_left() {
    let mut bench = Bench::new();
    bench.greet();
    let first = bench.talk();
    let mut second = bench.connect("a");
    // Output that finds the first process gone, and the event that says so, are in one batch.
    bench.machine.root.pause_devices();
    bench.driver.queues[TRANSMIT].add(&[Part { address: 0x10_0000, len: 64, writable: false }]);
    bench.driver.queues[TRANSMIT].kick();
    drop(first);
    bench.machine.root.resume_devices();
    bench.expect(1, event::PORT_OPEN, 1, b"");
    bench.driver.queues[TRANSMIT].wait_used();
    bench.driver.queues[TRANSMIT].request(b"fresh", 0);
    let mut text = [0; 5];
    second.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"fresh");
}

#[test]
fn a_process_that_comes_next_does_not_get_the_end_of_what_another_left_unread() {
    let mut bench = Bench::new();
    bench.greet();
    let mut first = bench.talk();
    let mut second = bench.connect("a");
    for _ in 0..30 {
        bench.driver.queues[TRANSMIT].add(&[Part { address: 0x10_0000, len: 65536, writable: false }]);
    }
    bench.driver.queues[TRANSMIT].kick();
    // Part of it has arrived, the rest waits.
    first.read_exact(&mut [0; 1000]).unwrap();
    // The event of a buffer for input comes first, so that reading finds out that the process has left.
    bench.machine.root.pause_devices();
    bench.want_input();
    drop(first);
    bench.machine.root.resume_devices();
    bench.expect(1, event::PORT_OPEN, 1, b"");
    for _ in 0..30 {
        bench.driver.queues[TRANSMIT].wait_used();
    }
    bench.driver.queues[TRANSMIT].request(b"fresh", 0);
    let mut text = [0; 5];
    second.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"fresh");
}

#[test]
fn input_waits_until_the_guest_has_opened_the_port() {
    let mut bench = Bench::new();
    bench.greet();
    bench.tell(1, event::PORT_OPEN, 0);
    let address = bench.want_input();
    let mut process = bench.talk();
    process.write_all(b"early").unwrap();
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(bench.driver.queues[RECEIVE].poll_used(), None);
    bench.tell(1, event::PORT_OPEN, 1);
    let (_, written) = bench.driver.queues[RECEIVE].wait_used();
    assert_eq!(bench.machine.read(address, written as usize), b"early");
    // What was sent before leaving still arrives.
    process.write_all(b"last").unwrap();
    drop(process);
    let address = bench.want_input();
    let (_, written) = bench.driver.queues[RECEIVE].wait_used();
    assert_eq!(bench.machine.read(address, written as usize), b"last");
    bench.expect(1, event::PORT_OPEN, 0, b"");
}

#[test]
fn a_new_size_is_shown_and_told() {
    let mut bench = Bench::new();
    bench.greet();
    bench.control.set_size((132, 43));
    bench.machine.root.config_changed(bench.driver.slot);
    bench.expect(0, event::RESIZE, 1, &[132, 0, 43, 0]);
    assert_eq!(bench.machine.device_read::<8>(bench.driver.device), [132, 0, 43, 0, 3, 0, 0, 0]);
    assert_eq!(bench.control.size(), (132, 43));
}

#[test]
fn messages_that_mean_nothing_are_counted_and_repeated_ones_make_nothing_grow() {
    let mut bench = Bench::new();
    bench.greet();
    let nonsense = [
        (3, event::PORT_READY, 1),
        (u32::MAX, event::PORT_OPEN, 1),
        (1, event::RESIZE, 1),
        (1, 77, 1),
        (1, event::PORT_READY, 0),
        (0, event::DEVICE_READY, 0),
    ];
    for (port, event, value) in nonsense {
        bench.tell(port, event, value);
    }
    bench.driver.queues[FROM_DRIVER].request(b"short", 0);
    assert_eq!(bench.errors(), nonsense.len() as u64 + 1);
    for _ in 0..1000 {
        let address = bench.machine.allocate(8);
        bench.machine.write(address, &Message { port: 0, event: event::DEVICE_READY, value: 1 }.to_bytes());
        bench.driver.queues[FROM_DRIVER].add(&[Part { address, len: 8, writable: false }]);
        bench.driver.queues[FROM_DRIVER].kick();
        bench.driver.queues[FROM_DRIVER].wait_used();
    }
    // A buffer that is too small for a message is given back empty.
    let head = bench.driver.queues[TO_DRIVER].add(&[Part { address: 0x1000, len: 1, writable: true }]);
    bench.driver.queues[TO_DRIVER].kick();
    wait_for("the small buffer", || bench.driver.queues[TO_DRIVER].poll_used().is_some_and(|(used, _)| used == head));
}

#[test]
fn a_reset_hangs_up_and_everything_works_again() {
    let mut bench = Bench::new();
    bench.greet();
    for _ in 0..3 {
        let mut process = bench.talk();
        bench.driver.start();
        assert_eq!(process.read(&mut [0]).unwrap(), 0);
        bench.fill();
        bench.greet();
    }
}

#[test]
fn a_driver_without_multiport_has_the_first_port_in_both_directions() {
    let mut bench = Bench::new();
    let features = bench.driver.device_features() & !FEATURE_MULTIPORT & !(1 << 29);
    bench.driver.start_with(features);
    let mut process = bench.connect("first");
    let address = bench.machine.allocate(16);
    bench.driver.queues[0].add(&[Part { address, len: 16, writable: true }]);
    process.write_all(b"typed").unwrap();
    let (_, written) = bench.driver.queues[0].wait_used();
    assert_eq!(bench.machine.read(address, written as usize), b"typed");
    bench.driver.queues[1].request(b"log", 0);
    assert_eq!(*bench.log.0.lock().unwrap(), b"log");
}

#[test]
fn a_taken_path_is_an_error_and_the_sockets_go_with_the_device() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a");
    let config = || ConsoleConfig { ports: vec![("a", &path)], ..ConsoleConfig::log(Box::new(Log::default())) };
    let console = Console::new(config()).unwrap();
    assert!(matches!(Console::new(config()), Err(ConsoleError::Listen { .. })));
    drop(console);
    assert!(!path.exists());
}
