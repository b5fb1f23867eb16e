//! Name queries for a resolver on the host's side of the network: Docker's, which its containers know as 127.0.0.11. In the guest
//! that address is the guest's own, so the agent takes what is sent there and hands it to the host.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddrV4;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hull_protocol::agent::{NameAnswer, NameQuery};
use hull_protocol::{MAX_NAME_MESSAGE_BYTES, RESOLVER};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, setsockopt, socket, sockopt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{Mutex as AsyncMutex, OnceCell, Semaphore, mpsc, oneshot};
use tokio::time::timeout;

use crate::failure::{Context, Failure};

const PORT: u16 = 53;
/// Queries that the host has not answered yet. More are dropped, as a busy network would.
const MAX_PENDING: usize = 256;
/// Connections at a time; more wait.
const MAX_CONNECTIONS: usize = 64;
/// How long the host may take to answer. Clients ask again before that.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a connection may be silent.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// Queries on their way to the host, and those that wait for its answer. Nothing is bound before the host asks for the first.
#[derive(Clone, Default)]
pub struct Names(Arc<State>);

#[derive(Default)]
struct State {
    queries: OnceCell<AsyncMutex<mpsc::Receiver<NameQuery>>>,
    pending: Mutex<HashMap<u64, oneshot::Sender<Vec<u8>>>>,
    next: AtomicU64,
}

impl Names {
    /// Waits for the next query.
    pub async fn next(&self) -> Result<NameQuery, Failure> {
        let queries = self.0.queries.get_or_try_init(|| self.listen()).await?;
        // Nobody else holds it for longer: the host asks once at a time.
        let mut queries = queries.lock().await;
        queries.recv().await.ok_or_else(|| Failure::internal("no more queries"))
    }

    /// The host's answer to a query. One that comes too late is dropped.
    pub fn answer(&self, answer: NameAnswer) {
        if let Some(waiting) = self.pending().remove(&answer.id) {
            let _ = waiting.send(answer.message);
        }
    }

    fn pending(&self) -> MutexGuard<'_, HashMap<u64, oneshot::Sender<Vec<u8>>>> {
        self.0.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn listen(&self) -> Result<AsyncMutex<mpsc::Receiver<NameQuery>>, Failure> {
        let udp = udp_socket().context(format!("listen at {RESOLVER}"))?;
        let tcp = TcpListener::bind((RESOLVER, PORT)).await.context(format!("listen at {RESOLVER}"))?;
        let (sender, receiver) = mpsc::channel(MAX_PENDING);
        tokio::spawn(self.clone().serve_datagrams(Arc::new(udp), sender.clone()));
        tokio::spawn(self.clone().serve_connections(tcp, sender));
        Ok(AsyncMutex::new(receiver))
    }

    /// Asks the host. `None` if it doesn't answer, or there are too many queries.
    async fn ask(&self, message: Vec<u8>, tcp: bool, sender: &mpsc::Sender<NameQuery>) -> Option<Vec<u8>> {
        let id = self.0.next.fetch_add(1, Ordering::Relaxed);
        let (waiting, answer) = oneshot::channel();
        {
            let mut pending = self.pending();
            if pending.len() >= MAX_PENDING {
                return None;
            }
            pending.insert(id, waiting);
        }
        let query = NameQuery { id, message, tcp, ..Default::default() };
        let answer = match sender.try_send(query) {
            Ok(()) => timeout(ANSWER_TIMEOUT, answer).await.ok().and_then(Result::ok),
            Err(_) => None,
        };
        self.pending().remove(&id);
        answer
    }

    async fn serve_datagrams(self, socket: Arc<UdpSocket>, sender: mpsc::Sender<NameQuery>) {
        let mut buffer = vec![0; MAX_NAME_MESSAGE_BYTES];
        loop {
            // The error is one of an earlier answer whose client is gone.
            let Ok((length, client)) = socket.recv_from(&mut buffer).await else { continue };
            let Some(message) = buffer.get(..length).map(<[u8]>::to_vec) else { continue };
            if self.pending().len() >= MAX_PENDING {
                continue;
            }
            let (names, socket, sender) = (self.clone(), Arc::clone(&socket), sender.clone());
            tokio::spawn(async move {
                if let Some(answer) = names.ask(message, false, &sender).await {
                    // Who has gone doesn't miss it.
                    let _ = socket.send_to(&answer, client).await;
                }
            });
        }
    }

    async fn serve_connections(self, listener: TcpListener, sender: mpsc::Sender<NameQuery>) {
        let free = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        while let Ok(permit) = Arc::clone(&free).acquire_owned().await {
            let Ok((connection, _)) = listener.accept().await else {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            let (names, sender) = (self.clone(), sender.clone());
            tokio::spawn(async move {
                // A client that breaks off has what it wanted.
                let _ = names.serve_connection(connection, &sender).await;
                drop(permit);
            });
        }
    }

    /// Queries and answers with their lengths before them (RFC 1035, section 4.2.2).
    async fn serve_connection(&self, mut connection: TcpStream, sender: &mpsc::Sender<NameQuery>) -> io::Result<()> {
        loop {
            let length = timeout(IDLE_TIMEOUT, connection.read_u16()).await??;
            let mut message = vec![0; length.into()];
            timeout(IDLE_TIMEOUT, connection.read_exact(&mut message)).await??;
            let answer = self.ask(message, true, sender).await.ok_or(io::ErrorKind::TimedOut)?;
            let length = u16::try_from(answer.len()).map_err(io::Error::other)?;
            let answer = [&length.to_be_bytes(), answer.as_slice()].concat();
            timeout(IDLE_TIMEOUT, connection.write_all(&answer)).await??;
        }
    }
}

/// Shares its port with a container's own name server that listens at all addresses, if that allows it, too.
fn udp_socket() -> io::Result<UdpSocket> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Inet, SockType::Datagram, flags, None)?;
    setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    bind(socket.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(RESOLVER, PORT)))?;
    UdpSocket::from_std(std::net::UdpSocket::from(socket))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_query_gets_its_own_answer_and_there_are_not_too_many_of_them() {
        let names = Names::default();
        let (sender, mut queries) = mpsc::channel(2 * MAX_PENDING);
        let asked: Vec<_> = (0..MAX_PENDING)
            .map(|number| {
                let (names, sender) = (names.clone(), sender.clone());
                tokio::spawn(async move { names.ask(number.to_be_bytes().to_vec(), false, &sender).await })
            })
            .collect();
        let mut taken = Vec::new();
        while taken.len() < MAX_PENDING {
            taken.push(queries.recv().await.expect("a query"));
        }
        assert_eq!(names.ask(vec![1], true, &sender).await, None, "one more");
        names.answer(NameAnswer { id: u64::MAX, ..Default::default() });
        for query in taken.into_iter().rev() {
            let message = [query.message.as_slice(), b"!"].concat();
            names.answer(NameAnswer { id: query.id, message, ..Default::default() });
        }
        for (number, asked) in asked.into_iter().enumerate() {
            let expected = [number.to_be_bytes().as_slice(), b"!"].concat();
            assert_eq!(asked.await.expect("it ends"), Some(expected));
        }
        assert!(names.pending().is_empty());
    }
}
