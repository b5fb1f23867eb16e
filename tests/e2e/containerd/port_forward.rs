//! `kubectl port-forward`: containerd dials the loopback address of the pod's network namespace on the host, and what listens is
//! in the guest. A client has one web socket; each of its messages begins with the number of a channel.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use super::cri::Cri;
use super::engine::Engine;
use super::message::{message, number, text};

/// Channels of the first port.
const DATA: u8 = 0;
const ERROR: u8 = 1;

const SERVER: &str = "nc -ll -p 8080 -e cat";

#[test]
fn bytes_pass_between_a_port_that_was_forwarded_and_a_server_in_the_guest() {
    let cri = Cri::start(Engine::Bookworm);
    let pod = cri.pod("pod-ports", None, &[]).unwrap();
    let server = cri.run(&pod, "server", SERVER, 64 << 20);
    cri.exec(&server, "until echo | nc 127.0.0.1 8080; do sleep 0.1; done; echo up");
    let forward = |port: u64| {
        let answer = cri.ask("PortForward", &message(&[text(1, &pod.id), number(2, port)]));
        WebSocket::open(&answer.text(1))
    };

    let sent = crate::harness::noise(100_000);
    let mut connections = [forward(8080), forward(8080)];
    for connection in &mut connections {
        assert_eq!(connection.receive(), (DATA, 8080_u16.to_le_bytes().to_vec()));
        assert_eq!(connection.receive(), (ERROR, 8080_u16.to_le_bytes().to_vec()));
    }
    for connection in &mut connections {
        let mut received = Vec::new();
        for part in sent.chunks(10_000) {
            connection.send(DATA, part);
        }
        while received.len() < sent.len() {
            let (channel, bytes) = connection.receive();
            assert_eq!(channel, DATA, "{}", String::from_utf8_lossy(&bytes));
            received.extend(bytes);
        }
        assert!(received == sent, "the bytes differ");
    }

    // Nobody listens there; the server goes on.
    let mut refused = forward(8081);
    let ended = std::iter::from_fn(|| refused.try_receive()).take(10).find(|(_, bytes)| bytes.len() > 2);
    assert!(ended.is_none_or(|(channel, _)| channel == ERROR), "bytes from nowhere");
    connections[0].send(DATA, b"still there");
    assert_eq!(connections[0].receive(), (DATA, b"still there".to_vec()));
    drop(connections);
    cri.remove(&pod);
}

struct WebSocket(TcpStream);

impl WebSocket {
    fn open(url: &str) -> Self {
        let (host, path) = url.strip_prefix("http://").unwrap().split_once('/').unwrap();
        let mut stream = TcpStream::connect(host).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
        let request = format!(
            "GET /{path} HTTP/1.1\r\nHost: {host}\r\nOrigin: http://{host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
             Sec-WebSocket-Protocol: v4.channel.k8s.io\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            head.extend(byte);
        }
        let head = String::from_utf8(head).unwrap();
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        Self(stream)
    }

    /// Sends a message (RFC 6455, 5.2) with a mask of zeros.
    fn send(&mut self, channel: u8, bytes: &[u8]) {
        let length = u16::try_from(bytes.len() + 1).unwrap();
        let mut frame = vec![0x82, 0x80 | 126];
        frame.extend(length.to_be_bytes());
        frame.extend([0; 4]);
        frame.push(channel);
        frame.extend(bytes);
        self.0.write_all(&frame).unwrap();
    }

    fn receive(&mut self) -> (u8, Vec<u8>) {
        self.try_receive().expect("the connection goes on")
    }

    /// The next message; none at the end.
    fn try_receive(&mut self) -> Option<(u8, Vec<u8>)> {
        let mut head = [0; 2];
        self.0.read_exact(&mut head).ok()?;
        let length = match head[1] {
            126 => {
                let mut length = [0; 2];
                self.0.read_exact(&mut length).ok()?;
                u16::from_be_bytes(length).into()
            }
            short => usize::from(short),
        };
        let mut payload = vec![0; length];
        self.0.read_exact(&mut payload).ok()?;
        let is_message = matches!(head[0] & 0xf, 1 | 2);
        (is_message && !payload.is_empty()).then(|| (payload[0], payload.split_off(1)))
    }
}
