//! How an event gets to containerd: over its ttrpc socket, or by a program where there is none.

use std::io;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use containerd_shim_protos::api::ForwardRequest;
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::shim_async::{Client, EventsClient};
use protobuf::{Message as _, MessageField};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;
use tokio::time::timeout;

use super::Event;
use crate::args::Args;

/// containerd's ttrpc socket. CRI-O, for one, has none.
const ADDRESS_VARIABLE: &str = "TTRPC_ADDRESS";
/// How long containerd may take for one event.
const TIMEOUT: Duration = Duration::from_secs(5);
/// How often the program may fail for one event.
const PROGRAM_ATTEMPTS: u32 = 3;

/// An event was not handed over.
#[derive(Debug)]
pub enum Failed {
    /// Another attempt may do it.
    ForNow(String),
    /// It was refused.
    ForGood(String),
}

/// A way to containerd.
pub struct Transport {
    namespace: String,
    way: Way,
}

enum Way {
    Socket { address: String, client: Option<Client> },
    Program { program: PathBuf, containerd: String, failures: u32 },
    Nowhere,
}

impl Transport {
    /// The way that containerd named when it started this process.
    pub fn new(args: &Args) -> Self {
        match std::env::var(ADDRESS_VARIABLE) {
            Ok(address) if !address.is_empty() => Self::socket(&args.namespace, &address),
            _ if !args.publish_binary.as_os_str().is_empty() => Self::program(args),
            _ => Self { namespace: args.namespace.clone(), way: Way::Nowhere },
        }
    }

    /// containerd's ttrpc socket.
    pub fn socket(namespace: &str, address: &str) -> Self {
        Self { namespace: namespace.into(), way: Way::Socket { address: address.into(), client: None } }
    }

    /// The program that containerd named.
    pub fn program(args: &Args) -> Self {
        let (program, containerd) = (args.publish_binary.clone(), args.address.clone());
        Self { namespace: args.namespace.clone(), way: Way::Program { program, containerd, failures: 0 } }
    }

    /// Hands over one event.
    pub async fn publish(&mut self, event: &Event) -> Result<(), Failed> {
        match &mut self.way {
            Way::Nowhere => Ok(()),
            Way::Socket { address, client } => {
                let result = forward(&self.namespace, address, client, event).await;
                if matches!(result, Err(Failed::ForNow(_))) {
                    // The next attempt dials again: containerd may be another one by then.
                    *client = None;
                }
                result
            }
            Way::Program { program, containerd, failures } => {
                let run = run(program, containerd, &self.namespace, event);
                match timeout(TIMEOUT, run).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
                    Ok(()) => {
                        *failures = 0;
                        Ok(())
                    }
                    Err(error) => {
                        *failures += 1;
                        let reason = format!("{}: {error}", program.display());
                        if *failures < PROGRAM_ATTEMPTS {
                            return Err(Failed::ForNow(reason));
                        }
                        *failures = 0;
                        Err(Failed::ForGood(reason))
                    }
                }
            }
        }
    }
}

async fn forward(namespace: &str, address: &str, slot: &mut Option<Client>, event: &Event) -> Result<(), Failed> {
    let for_now = |error: ttrpc::Error| Failed::ForNow(error.to_string());
    let client = match slot {
        Some(client) => client,
        None => slot.insert(Client::connect(&with_scheme(address)).await.map_err(for_now)?),
    };
    let envelope = Envelope {
        timestamp: MessageField::some(event.at().clone()),
        namespace: namespace.into(),
        topic: event.topic().into(),
        event: MessageField::some(event.message().clone()),
        ..Default::default()
    };
    let request = ForwardRequest { envelope: MessageField::some(envelope), ..Default::default() };
    let context = ttrpc::context::with_duration(TIMEOUT);
    match EventsClient::new(client.clone()).forward(context, &request).await {
        Ok(_) => Ok(()),
        Err(ttrpc::Error::RpcStatus(status)) => Err(Failed::ForGood(status.message)),
        Err(error) => Err(for_now(error)),
    }
}

/// containerd names a path; the client wants to know its kind.
fn with_scheme(address: &str) -> String {
    match address.contains("://") {
        true => address.into(),
        false => format!("unix://{address}"),
    }
}

/// `containerd publish`, with the event on standard input.
async fn run(program: &PathBuf, containerd: &str, namespace: &str, event: &Event) -> io::Result<()> {
    let mut child = Command::new(program)
        .args(["--address", containerd, "publish", "--topic", event.topic(), "--namespace", namespace])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(&event.message().write_to_bytes()?).await?;
    }
    let status = child.wait().await?;
    match status.success() {
        true => Ok(()),
        false => Err(io::Error::other(status.to_string())),
    }
}
