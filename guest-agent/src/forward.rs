//! TCP connections to ports of the guest, each joined with a stream to the host.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use hull_protocol::{STREAM_PORT, Token, agent};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::dial::dial;
use crate::failure::{Context, Failure};

/// Longest wait for the port.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Connects to a port of the loopback address and joins it with a stream until both sides have closed.
pub async fn port(request: &agent::ForwardPortRequest) -> Result<(), Failure> {
    let port = u16::try_from(request.port).map_err(|_| Failure::invalid(format!("no port {}", request.port)))?;
    let token = Token::try_from(request.stream.as_slice()).map_err(|error| Failure::invalid(error.to_string()))?;
    let mut inside = match timeout(CONNECT_TIMEOUT, connect(port)).await.context("connect")? {
        Ok(connection) => connection,
        Err(error) => return Err(Failure::precondition(format!("port {port}: {error}"))),
    };
    let mut outside = dial(STREAM_PORT, token).await.context("open the stream")?;
    tokio::spawn(async move {
        // However it ends, both are closed then.
        let _ = tokio::io::copy_bidirectional(&mut inside, &mut outside).await;
    });
    Ok(())
}

async fn connect(port: u16) -> io::Result<TcpStream> {
    let addresses = [SocketAddr::from((Ipv4Addr::LOCALHOST, port)), SocketAddr::from((Ipv6Addr::LOCALHOST, port))];
    TcpStream::connect(addresses.as_slice()).await
}
