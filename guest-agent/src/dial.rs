//! Connections to the host, each opened with a token that the host issued for it.

use std::io;
use std::time::Duration;

use hull_protocol::{HOST_CID, Token};
use tokio::io::AsyncWriteExt;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_vsock::{VsockAddr, VsockStream};

/// Longest wait for the host to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Connections that are being opened at the same time. Of those that have not proved themselves yet the host keeps the newest
/// few (`hull_protocol::MAX_UNPROVEN`), so that more at once would push one another out.
static OPENING: Semaphore = Semaphore::const_new(hull_protocol::MAX_UNPROVEN / 8);

/// Connects to a port of the host and sends the token.
pub async fn dial(port: u32, token: Token) -> io::Result<VsockStream> {
    let _permit = OPENING.acquire().await.map_err(io::Error::other)?;
    let open = async {
        let mut stream = VsockStream::connect(VsockAddr::new(HOST_CID, port)).await?;
        stream.write_all(token.as_bytes()).await?;
        Ok(stream)
    };
    timeout(CONNECT_TIMEOUT, open).await?
}
