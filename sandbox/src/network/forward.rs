//! Connections that processes of the host make inside a sandbox's network namespace to 127.0.0.1: containerd does that for
//! `kubectl port-forward`. What listens there is in the guest, so each is passed to the guest's own loopback address.

use std::io;
use std::net::{Ipv4Addr, TcpListener as StdListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Weak};
use std::time::Duration;

use hull_protocol::agent::ForwardPortRequest;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use super::sk_lookup::take_loopback_connections;
use crate::agent::CALL_TIMEOUT;
use crate::sandbox::Shared;

/// Most connections at a time; more wait.
const MAX_CONNECTIONS: usize = 256;

/// Gets the namespace's connections to 127.0.0.1. They are the namespace's own again when it is dropped.
pub struct Forwarder {
    pub(super) listener: StdListener,
    /// Holds the program that finds the listener.
    link: OwnedFd,
}

impl Forwarder {
    /// Called in the namespace, which `namespace` is open at.
    pub fn start(namespace: BorrowedFd<'_>) -> io::Result<Self> {
        let listener = StdListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        let link = take_loopback_connections(namespace, listener.as_fd())?;
        Ok(Self { listener, link })
    }

    /// Passes connections on until the VM ends or nobody has it any more.
    pub(crate) async fn serve(self, shared: Weak<Shared>) -> io::Result<()> {
        let Self { listener, link: _link } = self;
        let listener = TcpListener::from_std(listener)?;
        let Some(end) = shared.upgrade().map(|shared| shared.monitor.watch()) else { return Ok(()) };
        let free = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        tokio::pin!(end);
        loop {
            let accepted = async {
                let permit = Arc::clone(&free).acquire_owned().await.map_err(io::Error::other)?;
                Ok::<_, io::Error>((permit, listener.accept().await?.0))
            };
            let accepted = tokio::select! {
                _ = &mut end => return Ok(()),
                accepted = accepted => accepted,
            };
            let Some(shared) = shared.upgrade() else { return Ok(()) };
            match accepted {
                Ok((permit, connection)) => {
                    tokio::spawn(async move {
                        if let Err(error) = pass_on(shared, connection).await {
                            tracing::info!(%error, "a connection was not forwarded");
                        }
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection to be forwarded was lost");
                    sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }
}

/// The port that was dialled is the connection's own; the guest's answer decides whether anybody listens.
async fn pass_on(shared: Arc<Shared>, mut connection: TcpStream) -> io::Result<()> {
    let port = connection.local_addr()?.port();
    let mut pending = shared.streams.expect().map_err(io::Error::other)?;
    let stream = pending.token().as_bytes().to_vec();
    let request = ForwardPortRequest { port: port.into(), stream, ..Default::default() };
    let forward = shared.agent.forward_port(ttrpc::context::with_duration(CALL_TIMEOUT), &request);
    shared.call("ForwardPort", CALL_TIMEOUT, forward).await.map_err(io::Error::other)?;
    let end = shared.monitor.watch();
    // So that a connection does not keep the sandbox.
    drop(shared);
    let mut guest = timeout(CALL_TIMEOUT, pending.connection()).await?.ok_or(io::ErrorKind::BrokenPipe)?;
    tokio::select! {
        _ = end => {}
        _ = tokio::io::copy_bidirectional(&mut connection, &mut guest) => {}
    }
    Ok(())
}
