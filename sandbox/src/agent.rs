//! Calls to the guest's agent: each with a limit in time, each error in one bounded line.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hull_protocol::agent::{HelloRequest, HelloResponse};
use hull_protocol::agent_ttrpc::AgentClient;
use hull_protocol::{AGENT_PORT, PROTOCOL_VERSION};
use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;
use ttrpc::asynchronous::transport::Socket;

use crate::random;
use crate::text::one_line;

/// Limit of a call that only looks something up or passes something on.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// Limit of a call that makes a container or a process.
pub const CREATE_TIMEOUT: Duration = Duration::from_secs(120);

const MAX_MESSAGE_BYTES: usize = 1000;
/// What ttrpc says of a deadline that passes on this side.
const DEADLINE_ELAPSED: &str = "Request deadline elapsed";
/// And how it begins what it says of a call on a connection that is gone already.
const CHANNEL_CLOSED: &str = "reserve channel capacity failed";
const MAX_HANDSHAKE_BYTES: usize = 32;
const ENTROPY_BYTES: usize = 64;

/// A call to the agent failed.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
#[error("{message}")]
pub struct AgentError {
    /// What kind of failure.
    pub kind: AgentErrorKind,
    /// One line for people.
    pub message: String,
}

/// Kinds of failures that callers tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AgentErrorKind {
    /// No such command, container or process.
    NotFound,
    /// The command can't be executed.
    PermissionDenied,
    /// The request is refused as it is; also for a user or group that does not exist.
    InvalidArgument,
    /// The identifier is taken.
    AlreadyExists,
    /// The container or process is in another state.
    FailedPrecondition,
    /// The agent does not know the call.
    Unimplemented,
    /// No answer in time.
    TimedOut,
    /// The connection is gone.
    Disconnected,
    /// Anything else.
    Other,
}

impl AgentError {
    pub(crate) fn new(kind: AgentErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    /// What ttrpc reports of the call `what`.
    pub(crate) fn from_ttrpc(what: &str, limit: Duration, error: ttrpc::Error) -> Self {
        use ttrpc::Code;
        let timed_out = || {
            let seconds = limit.as_secs();
            let text = format!("{what}: the guest's agent did not answer within {seconds} seconds");
            Self::new(AgentErrorKind::TimedOut, text)
        };
        let ttrpc::Error::RpcStatus(status) = error else {
            let text = one_line(&error.to_string(), MAX_MESSAGE_BYTES);
            return match error {
                ttrpc::Error::Others(reason) if reason == DEADLINE_ELAPSED => timed_out(),
                ttrpc::Error::Others(reason) if !reason.starts_with(CHANNEL_CLOSED) => {
                    Self::new(AgentErrorKind::Other, format!("{what}: {text}"))
                }
                _ => Self::new(
                    AgentErrorKind::Disconnected,
                    format!("{what}: the connection to the guest's agent is gone ({text})"),
                ),
            };
        };
        let kind = match status.code() {
            Code::NOT_FOUND => AgentErrorKind::NotFound,
            Code::PERMISSION_DENIED => AgentErrorKind::PermissionDenied,
            Code::INVALID_ARGUMENT => AgentErrorKind::InvalidArgument,
            Code::ALREADY_EXISTS => AgentErrorKind::AlreadyExists,
            Code::FAILED_PRECONDITION => AgentErrorKind::FailedPrecondition,
            Code::UNIMPLEMENTED => AgentErrorKind::Unimplemented,
            // The agent's own words say what did not come to its end in the guest.
            Code::DEADLINE_EXCEEDED if status.message().is_empty() || status.message() == "timeout" => {
                return timed_out();
            }
            Code::DEADLINE_EXCEEDED => AgentErrorKind::TimedOut,
            _ => AgentErrorKind::Other,
        };
        Self::new(kind, one_line(status.message(), MAX_MESSAGE_BYTES))
    }
}

/// Connects to the agent through the monitor's vsock socket and greets it.
pub(crate) async fn connect(uds: &Path) -> Result<(AgentClient, HelloResponse), AgentError> {
    let stream = match timeout(CALL_TIMEOUT, dial(uds)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            let text = format!("The guest's agent can't be reached ({error})");
            return Err(AgentError::new(AgentErrorKind::Disconnected, text));
        }
        Err(_) => {
            let text = "The guest's agent did not take the connection";
            return Err(AgentError::new(AgentErrorKind::TimedOut, text));
        }
    };
    let client = AgentClient::new(ttrpc::asynchronous::Client::new(Socket::new(stream)));
    let hello = greet(&client).await?;
    Ok((client, hello))
}

/// The text handshake of the vsock socket.
async fn dial(uds: &Path) -> std::io::Result<UnixStream> {
    let mut stream = UnixStream::connect(uds).await?;
    stream.write_all(format!("CONNECT {AGENT_PORT}\n").as_bytes()).await?;
    let mut answer = Vec::with_capacity(MAX_HANDSHAKE_BYTES);
    // Byte by byte: what follows the line belongs to ttrpc.
    while answer.last() != Some(&b'\n') && answer.len() < MAX_HANDSHAKE_BYTES {
        answer.push(stream.read_u8().await?);
    }
    if !answer.starts_with(b"OK ") {
        return Err(std::io::Error::other("the monitor refused the connection"));
    }
    Ok(stream)
}

async fn greet(client: &AgentClient) -> Result<HelloResponse, AgentError> {
    let mut entropy = vec![0; ENTROPY_BYTES];
    random::fill(&mut entropy).map_err(|error| AgentError::new(AgentErrorKind::Other, error.to_string()))?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let request = HelloRequest {
        protocol_version: PROTOCOL_VERSION,
        wall_clock_ns: u64::try_from(now.as_nanos()).unwrap_or(0),
        entropy,
        ..Default::default()
    };
    let hello = client
        .hello(ttrpc::context::with_duration(CALL_TIMEOUT), &request)
        .await
        .map_err(|error| AgentError::from_ttrpc("Hello", CALL_TIMEOUT, error))?;
    if hello.protocol_version != PROTOCOL_VERSION {
        let text = format!(
            "The guest's agent speaks protocol {}, hull speaks {PROTOCOL_VERSION}: they are not from one build",
            hello.protocol_version
        );
        return Err(AgentError::new(AgentErrorKind::InvalidArgument, text));
    }
    Ok(hello)
}
