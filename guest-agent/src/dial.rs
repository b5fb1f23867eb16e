//! Connections to the host, each opened with a token that the host issued for it.

use std::io;
use std::time::Duration;

use hull_protocol::{HOST_CID, Token};
use tokio::io::AsyncWriteExt;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_vsock::{VsockAddr, VsockStream};

/// Longest wait for the host to accept a connection. It may be so busy that this takes its time.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(60);

/// Connections that are being opened at the same time. Of those that have not proved themselves yet the host keeps the newest
/// few (`hull_protocol::MAX_UNPROVEN`), so that more at once would push one another out.
static OPENING: Semaphore = Semaphore::const_new(hull_protocol::MAX_UNPROVEN / 8);

/// Connects to a port of the host and sends the token.
pub async fn dial(port: u32, token: Token) -> io::Result<VsockStream> {
    let _permit = OPENING.acquire().await.map_err(io::Error::other)?;
    let open = async {
        let mut stream = connect(port).await?;
        stream.write_all(token.as_bytes()).await?;
        Ok(stream)
    };
    timeout(CONNECT_TIMEOUT, open).await?
}

async fn connect(port: u32) -> io::Result<VsockStream> {
    loop {
        match VsockStream::connect(VsockAddr::new(HOST_CID, port)).await {
            // The kernel gives a host two seconds to answer.
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {}
            result => return result,
        }
    }
}
