//! Connections from the guest that open with a token.
//!
//! Anything in the guest can dial the host, a container too. A connection that does not begin with a token that is waited
//! for is closed, and each token serves once. A crowd of silent connections can't keep the agent out: beyond
//! [`MAX_UNPROVEN`] the oldest gives way.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hull_protocol::{MAX_UNPROVEN, Token};
use tokio::io::AsyncReadExt;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::oneshot;
use tokio::task::{AbortHandle, JoinHandle};
use tokio::time::{Instant, timeout};

use crate::error::SandboxError;
use crate::random;

/// How long a connection may take to send its token: long, since a guest on a busy host may not run for a while, and the bound on
/// their number is what keeps a crowd small.
const TOKEN_TIMEOUT: Duration = Duration::from_secs(60);
/// Tokens that are waited for at the same time.
const MAX_EXPECTED: usize = 4096;
/// Time between two lines in the log about what the guest does as often as it likes.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

type Expected = Arc<Mutex<Vec<(Token, oneshot::Sender<UnixStream>)>>>;

/// A listening socket behind which connections are sorted by their token.
pub(crate) struct TokenGate {
    expected: Expected,
    acceptor: JoinHandle<()>,
    path: PathBuf,
}

impl TokenGate {
    /// Listens at `path`.
    pub(crate) fn listen(path: &Path) -> Result<Self, SandboxError> {
        let listener =
            UnixListener::bind(path).map_err(|source| SandboxError::Socket { path: path.to_owned(), source })?;
        let expected = Expected::default();
        Ok(Self { acceptor: tokio::spawn(accept(listener, Arc::clone(&expected))), expected, path: path.to_owned() })
    }

    /// Issues a token and waits for its connection.
    pub(crate) fn expect(&self) -> Result<Pending, SandboxError> {
        let mut bytes = [0; Token::LENGTH];
        random::fill(&mut bytes)?;
        let token = Token::from_random(bytes);
        let (sender, receiver) = oneshot::channel();
        let mut expected = self.expected.lock().unwrap_or_else(PoisonError::into_inner);
        if expected.len() >= MAX_EXPECTED {
            return Err(SandboxError::Socket {
                path: self.path.clone(),
                source: io::Error::other("too many streams are waited for"),
            });
        }
        expected.push((token, sender));
        Ok(Pending { token, receiver, expected: Arc::clone(&self.expected) })
    }
}

impl Drop for TokenGate {
    fn drop(&mut self) {
        self.acceptor.abort();
    }
}

/// A connection that is waited for. Dropping withdraws the token.
pub(crate) struct Pending {
    token: Token,
    receiver: oneshot::Receiver<UnixStream>,
    expected: Expected,
}

impl Pending {
    pub(crate) fn token(&self) -> Token {
        self.token
    }

    /// Never resolves if nobody comes: the caller has the limit. `None` if the gate is gone.
    pub(crate) async fn connection(&mut self) -> Option<UnixStream> {
        (&mut self.receiver).await.ok()
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        let mut expected = self.expected.lock().unwrap_or_else(PoisonError::into_inner);
        expected.retain(|(token, _)| *token != self.token);
    }
}

async fn accept(listener: UnixListener, expected: Expected) {
    let mut unproven = Unproven::default();
    let refused = Arc::new(Mutex::new(Refused::default()));
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let prove = prove(stream, Arc::clone(&expected), Arc::clone(&refused));
                unproven.admit(tokio::spawn(prove).abort_handle());
                // So that this one can prove itself before a crowd behind it makes it give way.
                tokio::task::yield_now().await;
            }
            Err(error) => {
                // Out of descriptors, for example: others may end meanwhile.
                tracing::warn!(%error, "a connection from the guest was lost");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// Connections without a token so far; the oldest first.
#[derive(Default)]
struct Unproven(VecDeque<AbortHandle>);

impl Unproven {
    fn admit(&mut self, connection: AbortHandle) {
        self.0.retain(|other| !other.is_finished());
        if self.0.len() >= MAX_UNPROVEN
            && let Some(oldest) = self.0.pop_front()
        {
            oldest.abort();
        }
        self.0.push_back(connection);
    }
}

impl Drop for Unproven {
    fn drop(&mut self) {
        self.0.iter().for_each(AbortHandle::abort);
    }
}

/// Connections whose token nobody waited for. The guest makes as many of them as it likes, and lines in the log it does not.
#[derive(Default)]
struct Refused {
    untold: u64,
    told: Option<Instant>,
}

impl Refused {
    /// One more. How many there were since the log had a line of them, if it is to have the next one.
    fn note(&mut self, now: Instant) -> Option<u64> {
        self.untold += 1;
        if self.told.is_some_and(|told| now < told + LOG_INTERVAL) {
            return None;
        }
        self.told = Some(now);
        Some(std::mem::take(&mut self.untold))
    }
}

async fn prove(mut stream: UnixStream, expected: Expected, refused: Arc<Mutex<Refused>>) {
    let mut bytes = [0; Token::LENGTH];
    if !matches!(timeout(TOKEN_TIMEOUT, stream.read_exact(&mut bytes)).await, Ok(Ok(_))) {
        return;
    }
    match take(&expected, &bytes) {
        Some(receiver) => drop(receiver.send(stream)),
        None => {
            let count = refused.lock().unwrap_or_else(PoisonError::into_inner).note(Instant::now());
            if let Some(count) = count {
                tracing::warn!(count, "connections from the guest had no valid token");
            }
        }
    }
}

/// Looks at every expected token, each in constant time, so that the time tells nothing about them.
fn take(expected: &Expected, bytes: &[u8; Token::LENGTH]) -> Option<oneshot::Sender<UnixStream>> {
    let mut expected = expected.lock().unwrap_or_else(PoisonError::into_inner);
    let mut found = None;
    for (index, (token, _)) in expected.iter().enumerate() {
        if equal(token.as_bytes(), bytes) {
            found = Some(index);
        }
    }
    found.map(|index| expected.swap_remove(index).1)
}

fn equal(a: &[u8; Token::LENGTH], b: &[u8; Token::LENGTH]) -> bool {
    let difference = a.iter().zip(b).fold(0, |all, (a, b)| all | (a ^ b));
    std::hint::black_box(difference) == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;

    const SOON: Duration = Duration::from_millis(200);

    fn gate() -> (tempfile::TempDir, PathBuf, TokenGate) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let gate = TokenGate::listen(&path).unwrap();
        (dir, path, gate)
    }

    async fn dial(path: &Path, bytes: &[u8]) -> UnixStream {
        let mut stream = UnixStream::connect(path).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        stream
    }

    #[tokio::test]
    async fn the_right_token_opens_once() {
        let (_dir, path, gate) = gate();
        let mut pending = gate.expect().unwrap();
        let token = *pending.token().as_bytes();
        let mut guest = dial(&path, &token).await;
        guest.write_all(b"hello").await.unwrap();
        let mut host = pending.connection().await.unwrap();
        let mut bytes = [0; 5];
        host.read_exact(&mut bytes).await.unwrap();
        assert_eq!(&bytes, b"hello");
        let mut again = dial(&path, &token).await;
        assert_eq!(again.read(&mut bytes).await.unwrap(), 0, "closed");
    }

    #[tokio::test]
    async fn a_wrong_or_withdrawn_token_is_closed_and_a_short_one_opens_nothing() {
        let (_dir, path, gate) = gate();
        let mut pending = gate.expect().unwrap();
        let withdrawn = *gate.expect().unwrap().token().as_bytes();
        for bytes in [[7; 16], withdrawn] {
            let mut guest = dial(&path, &bytes).await;
            assert_eq!(guest.read(&mut [0; 1]).await.unwrap(), 0);
        }
        let _short = dial(&path, b"abc").await;
        assert!(timeout(SOON, pending.connection()).await.is_err());
    }

    #[test]
    fn a_guest_with_wrong_tokens_does_not_fill_the_log() {
        let mut refused = Refused::default();
        let start = Instant::now();
        assert_eq!(refused.note(start), Some(1), "the first one is told at once");
        assert!((1..1000).all(|time| refused.note(start + LOG_INTERVAL * time / 1000).is_none()));
        assert_eq!(refused.note(start + LOG_INTERVAL), Some(1000), "none is forgotten");
        assert_eq!(refused.note(start + LOG_INTERVAL), None);
    }

    #[tokio::test]
    async fn a_crowd_of_silent_connections_does_not_keep_the_agent_out() {
        let (_dir, path, gate) = gate();
        let mut pending = gate.expect().unwrap();
        let mut crowd = Vec::new();
        for _ in 0..3 * MAX_UNPROVEN {
            crowd.push(dial(&path, b"x").await);
        }
        let _guest = dial(&path, pending.token().as_bytes()).await;
        assert!(timeout(TOKEN_TIMEOUT / 2, pending.connection()).await.unwrap().is_some());
        // The first of the crowd had to go.
        assert_eq!(crowd[0].read(&mut [0; 1]).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_crowd_that_dials_at_once_does_not_push_the_agent_out() {
        let (_dir, path, gate) = gate();
        let mut pending = gate.expect().unwrap();
        // Without awaiting: all of them wait to be accepted when the gate looks for the first time.
        let mut guest = std::os::unix::net::UnixStream::connect(&path).unwrap();
        io::Write::write_all(&mut guest, pending.token().as_bytes()).unwrap();
        let _crowd: Vec<_> =
            (0..3 * MAX_UNPROVEN).map(|_| std::os::unix::net::UnixStream::connect(&path).unwrap()).collect();
        assert!(timeout(TOKEN_TIMEOUT / 2, pending.connection()).await.unwrap().is_some());
    }
}
