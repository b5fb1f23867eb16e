//! A guest's socket driver for tests, which does nothing by itself but keep its receive queue full.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "tests"
)]

use std::collections::{HashMap, VecDeque};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::packet::{HEADER_BYTES, Header, op};
use super::{Control, Vsock};
use crate::config::RateLimiter;
use crate::virtio::testing::{Driver, Machine, Part};

pub const CID: u64 = 3;
const BUFFER: u32 = 4096;
pub const GUEST_BUF_ALLOC: u32 = 256 << 10;

/// A guest's socket driver: keeps the receive queue full and answers nothing by itself.
pub struct Guest {
    pub machine: Arc<Machine>,
    pub driver: Driver,
    pub control: Arc<Control>,
    pub directory: TempDir,
    buffers: HashMap<u16, u64>,
    pub arrived: VecDeque<(Header, Vec<u8>)>,
    send_buffers: Vec<u64>,
    in_flight: usize,
    pub sent: usize,
}

impl Guest {
    pub fn new() -> Self {
        Self::with_limits(None, None)
    }

    pub fn with_limits(rx: Option<RateLimiter>, tx: Option<RateLimiter>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let machine = Machine::new();
        let device = Vsock::new(CID as u32, &directory.path().join("v"), rx.as_ref(), tx.as_ref()).unwrap();
        let control = Arc::clone(device.control());
        let driver = machine.plug(Box::new(device));
        let mut this = Self {
            send_buffers: (0..64).map(|_| machine.allocate(128 << 10)).collect(),
            machine,
            driver,
            control,
            directory,
            buffers: HashMap::new(),
            arrived: VecDeque::new(),
            in_flight: 0,
            sent: 0,
        };
        this.start();
        this
    }

    pub fn start(&mut self) {
        self.driver.start();
        self.buffers.clear();
        for _ in 0..128 {
            let buffer = self.machine.allocate(u64::from(BUFFER));
            self.offer(buffer);
        }
        self.driver.queues[0].kick();
    }

    fn offer(&mut self, buffer: u64) {
        let part = Part { address: buffer, len: BUFFER, writable: true };
        let head = self.driver.queues[0].add(&[part]);
        self.buffers.insert(head, buffer);
    }

    pub fn poll(&mut self) {
        while let Some((head, written)) = self.driver.queues[0].poll_used() {
            let buffer = self.buffers.remove(&head).unwrap();
            let bytes = self.machine.read(buffer, written as usize);
            let header = Header::from_bytes(bytes[..HEADER_BYTES].try_into().unwrap());
            assert_eq!(header.len as usize, bytes.len() - HEADER_BYTES);
            assert_eq!(header.dst_cid, CID);
            self.arrived.push_back((header, bytes[HEADER_BYTES..].to_vec()));
            self.offer(buffer);
            self.driver.queues[0].kick();
        }
    }

    /// The next packet.
    pub fn receive(&mut self) -> (Header, Vec<u8>) {
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            if let Some(packet) = self.arrived.pop_front() {
                return packet;
            }
            self.poll();
            assert!(Instant::now() < end, "no packet arrives");
            std::thread::yield_now();
        }
    }

    pub fn expect(&mut self, operation: u16) -> Header {
        let (header, _) = self.receive();
        assert_eq!(header.op, operation, "{header:?}");
        header
    }

    /// The next packet that is not about credit.
    pub fn receive_other(&mut self) -> (Header, Vec<u8>) {
        loop {
            let packet = self.receive();
            if packet.0.op != op::CREDIT_UPDATE {
                return packet;
            }
        }
    }

    pub fn send_raw(&mut self, header: Header, data: &[u8]) {
        while self.in_flight >= self.send_buffers.len() {
            self.driver.queues[1].wait_used();
            self.in_flight -= 1;
        }
        let buffer = self.send_buffers[self.sent % self.send_buffers.len()];
        self.sent += 1;
        self.in_flight += 1;
        self.machine.write(buffer, &header.to_bytes());
        self.machine.write(buffer + HEADER_BYTES as u64, data);
        let len = (HEADER_BYTES + data.len()) as u32;
        let split = 20;
        self.driver.queues[1].add(&[
            Part { address: buffer, len: split, writable: false },
            Part { address: buffer + u64::from(split), len: len - split, writable: false },
        ]);
        self.driver.queues[1].kick();
    }

    pub fn send(&mut self, stream: &Stream, operation: u16, flags: u32, data: &[u8]) {
        let header = Header {
            src_cid: CID,
            dst_cid: 2,
            src_port: stream.guest,
            dst_port: stream.host,
            len: data.len() as u32,
            kind: 1,
            op: operation,
            flags,
            buf_alloc: GUEST_BUF_ALLOC,
            fwd_cnt: stream.forwarded,
        };
        self.send_raw(header, data);
    }

    /// A connection from the guest to a port of the host.
    pub fn dial(&mut self, guest: u32, host: u32) -> Stream {
        let mut stream = Stream { guest, host, forwarded: 0, sent: 0, host_forwarded: 0, host_alloc: 0 };
        self.send(&stream, op::REQUEST, 0, &[]);
        let response = self.expect(op::RESPONSE);
        assert_eq!((response.src_port, response.dst_port), (host, guest));
        stream.learn(&response);
        stream
    }

    pub fn listen(&self, port: u32) -> UnixListener {
        UnixListener::bind(self.directory.path().join(format!("v_{port}"))).unwrap()
    }

    /// A host process asks for a port of the guest, which accepts.
    pub fn call(&mut self, port: u32) -> (Stream, BufReader<UnixStream>) {
        let socket = self.ask(port);
        let request = self.expect(op::REQUEST);
        assert_eq!((request.src_cid, request.dst_port), (2, port));
        let mut stream =
            Stream { guest: port, host: request.src_port, forwarded: 0, sent: 0, host_forwarded: 0, host_alloc: 0 };
        stream.learn(&request);
        self.send(&stream, op::RESPONSE, 0, &[]);
        let mut socket = BufReader::new(socket);
        let mut line = String::new();
        socket.read_line(&mut line).unwrap();
        assert_eq!(line, format!("OK {}\n", stream.host));
        (stream, socket)
    }

    pub fn ask(&self, port: u32) -> UnixStream {
        let mut socket = UnixStream::connect(self.directory.path().join("v")).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        socket.write_all(format!("CONNECT {port}\n").as_bytes()).unwrap();
        socket
    }
}

/// A stream as the guest knows it.
pub struct Stream {
    pub guest: u32,
    pub host: u32,
    pub forwarded: u32,
    pub sent: u32,
    pub host_forwarded: u32,
    pub host_alloc: u32,
}

impl Stream {
    pub fn learn(&mut self, header: &Header) {
        self.host_forwarded = header.fwd_cnt;
        self.host_alloc = header.buf_alloc;
    }

    pub fn credit(&self) -> u32 {
        self.host_alloc - (self.sent - self.host_forwarded)
    }
}

pub fn pattern(from: usize, len: usize) -> Vec<u8> {
    (from..from + len).map(|i| (i * 31 / 7) as u8).collect()
}
