//! Name queries of containers, for Docker's resolver: it listens in the sandbox's network namespace at 127.0.0.11, an address that
//! is the guest's own inside of it. The agent takes the queries there, and each is asked again in the namespace.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::{Arc, Weak};
use std::time::Duration;

use hull_protocol::agent::{Empty, NameAnswer, NameQuery};
use hull_protocol::{MAX_NAME_MESSAGE_BYTES, RESOLVER};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use super::namespace::Namespace;
use super::{HostNetwork, NetworkError};
use crate::agent::CALL_TIMEOUT;
use crate::sandbox::Shared;

/// Queries that are asked at a time; more wait.
const MAX_QUERIES: usize = 64;
/// How long the resolver may take. Docker's own limit for those that it asks in turn is shorter.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Between two attempts to get a query from an agent that has failed to give one.
const PAUSE: Duration = Duration::from_secs(1);

/// How a query travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Transport {
    Udp,
    Tcp,
}

impl HostNetwork {
    /// A resolver listens in it for containers.
    pub(super) async fn has_resolver(&self) -> Result<bool, NetworkError> {
        let port = || Ok(resolver_port(Transport::Udp).map_err(|source| NetworkError::Resolver { source })?.is_some());
        self.0.enter(port).await
    }
}

/// Passes queries on until the VM ends or nobody has it any more.
pub(super) async fn serve(shared: Weak<Shared>) {
    let Some((end, agent)) = shared.upgrade().map(|shared| (shared.monitor.watch(), shared.agent.clone())) else {
        return;
    };
    let (free, nothing) = (Arc::new(Semaphore::new(MAX_QUERIES)), Empty::new());
    tokio::pin!(end);
    loop {
        let Ok(permit) = Arc::clone(&free).acquire_owned().await else { return };
        let query = tokio::select! {
            _ = &mut end => return,
            // Not with the sandbox in hand: a query that never comes must not keep it.
            query = agent.next_name_query(ttrpc::context::Context::default(), &nothing) => query,
        };
        let Some(shared) = shared.upgrade() else { return };
        match query {
            Ok(query) => {
                tokio::spawn(async move {
                    if let Err(error) = pass_on(&shared, query).await {
                        tracing::debug!(%error, "a name query has no answer");
                    }
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "the guest's name queries can't be had");
                drop(shared);
                sleep(PAUSE).await;
            }
        }
    }
}

async fn pass_on(shared: &Shared, query: NameQuery) -> io::Result<()> {
    let Some(attached) = &shared.network else { return Ok(()) };
    let transport = if query.tcp { Transport::Tcp } else { Transport::Udp };
    let message = timeout(ANSWER_TIMEOUT, ask(attached.namespace(), transport, &query.message)).await??;
    let answer = NameAnswer { id: query.id, message, ..Default::default() };
    let call = shared.agent.answer_name_query(ttrpc::context::with_duration(CALL_TIMEOUT), &answer);
    shared.call("AnswerNameQuery", CALL_TIMEOUT, call).await.map(drop).map_err(io::Error::other)
}

/// Asks the resolver of the namespace.
async fn ask(namespace: &Namespace, transport: Transport, message: &[u8]) -> io::Result<Vec<u8>> {
    if message.len() > MAX_NAME_MESSAGE_BYTES {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    match transport {
        Transport::Udp => {
            let socket = inside(namespace, || {
                let socket = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
                socket.connect(resolver(Transport::Udp)?)?;
                socket.set_nonblocking(true)?;
                Ok(socket)
            });
            let socket = UdpSocket::from_std(socket.await?)?;
            socket.send(message).await?;
            let mut answer = vec![0; MAX_NAME_MESSAGE_BYTES];
            let length = socket.recv(&mut answer).await?;
            answer.truncate(length);
            Ok(answer)
        }
        Transport::Tcp => {
            let stream = inside(namespace, || {
                let stream = std::net::TcpStream::connect(resolver(Transport::Tcp)?)?;
                stream.set_nonblocking(true)?;
                Ok(stream)
            });
            let mut stream = TcpStream::from_std(stream.await?)?;
            let length = u16::try_from(message.len()).map_err(io::Error::other)?;
            stream.write_all(&[&length.to_be_bytes(), message].concat()).await?;
            let mut answer = vec![0; stream.read_u16().await?.into()];
            stream.read_exact(&mut answer).await?;
            Ok(answer)
        }
    }
}

async fn inside<T: Send + 'static>(
    namespace: &Namespace,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    namespace.enter(move || work().map_err(|source| NetworkError::Resolver { source })).await.map_err(io::Error::other)
}

fn resolver(transport: Transport) -> io::Result<SocketAddrV4> {
    let port = resolver_port(transport)?.ok_or(io::ErrorKind::ConnectionRefused)?;
    Ok(SocketAddrV4::new(RESOLVER, port))
}

/// The port at which the resolver really listens: Docker redirects port 53 to it. Called in the namespace.
fn resolver_port(transport: Transport) -> io::Result<Option<u16>> {
    let table = match transport {
        Transport::Udp => "/proc/thread-self/net/udp",
        Transport::Tcp => "/proc/thread-self/net/tcp",
    };
    Ok(port_in(&fs::read_to_string(table)?, transport))
}

/// Looks for it in the kernel's table of sockets.
fn port_in(table: &str, transport: Transport) -> Option<u16> {
    // TCP_LISTEN, and TCP_CLOSE, which a UDP socket is without a peer (include/net/tcp_states.h).
    let state = match transport {
        Transport::Udp => "07",
        Transport::Tcp => "0A",
    };
    // The table has addresses as the processor does.
    let address = format!("{:08X}", u32::from_ne_bytes(RESOLVER.octets()));
    table.lines().skip(1).find_map(|line| {
        let mut words = line.split_whitespace().skip(1);
        let (local, _remote, found) = (words.next()?, words.next()?, words.next()?);
        let port = local.strip_prefix(&address)?.strip_prefix(':')?;
        (found == state).then(|| u16::from_str_radix(port, 16).ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const UDP: &str = "   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops
  311: 0100007F:0035 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 1 2 0000000000000000 0
  312: 0B00007F:9F1E 0100007F:1234 01 00000000:00000000 00:00000000 00000000     0        0 2 2 0000000000000000 0
  313: 0B00007F:B14E 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 3 2 0000000000000000 0
";

    #[test]
    fn the_resolver_is_the_one_that_listens_at_its_address() {
        assert_eq!(port_in(UDP, Transport::Udp), Some(0xb14e));
        assert_eq!(port_in(UDP, Transport::Tcp), None);
        assert_eq!(port_in(&UDP.replace("0B00007F", "0C00007F"), Transport::Udp), None);
        for broken in ["", "\n\n", "header\n 1:", "header\n 1: 0B00007F:B14E", "header\n 1: 0B00007F:XYZZ 0:0 07"] {
            assert_eq!(port_in(broken, Transport::Udp), None, "{broken:?}");
        }
    }
}
