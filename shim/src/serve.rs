//! The daemon: serves the task API until its last container is gone and containerd says so.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use hull_sandbox::raise_file_limit;
use nix::sys::stat::{SFlag, fstat};
use nix::unistd::{dup2_stdin, dup2_stdout, setsid};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout;
use ttrpc::asynchronous::Server;

use crate::args::Args;
use crate::bootstrap::{Address, READY};
use crate::bundle::Bundle;
use crate::error::one_line;
use crate::events::Publisher;
use crate::task::{Shim, TaskService};
use crate::{log, task};

/// How long this process may be without a task. containerd asks for the first at once, and after the last says that it is done,
/// unless it died meanwhile: then it may know nothing of this process any more.
const IDLE: Duration = Duration::from_secs(60);
/// How long answers that are under way may take to reach containerd.
const FAREWELL: Duration = Duration::from_secs(2);

/// Most open files. A process with its three standard streams takes six; nothing in the shim is sized by it.
const MAX_FILES: u64 = 1 << 16;

/// Runs the daemon to its end.
pub fn serve(args: Args) -> anyhow::Result<()> {
    let (listener, mut starter) = take_over()?;
    raise_file_limit(MAX_FILES);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let bundle = Bundle::open(&args.bundle).map_err(anyhow::Error::from);
    let (runtime, bundle) = match (runtime.context("starting the event loop"), bundle) {
        (Ok(runtime), Ok(bundle)) => (runtime, bundle),
        (Err(error), _) | (_, Err(error)) => {
            let _ = writeln!(starter, "{}", one_line(error.as_ref()));
            return Err(error);
        }
    };
    log::start(&bundle, args.debug);
    let address = Address::parse(&args.socket);
    let served = runtime.block_on(run(args, listener, starter));
    if let Some(address) = address {
        address.remove();
    }
    // From here on another process can serve the same container.
    let served = served.map(|shim| runtime.block_on(shim.loggers.ended()));
    // What still blocks a thread is output for somebody who doesn't read.
    runtime.shutdown_background();
    served
}

/// The socket that `start` made, and the pipe on which it waits. From now on this process has no standard streams, and its
/// own session.
fn take_over() -> anyhow::Result<(UnixListener, File)> {
    let stdin = io::stdin();
    let is_socket = fstat(&stdin).is_ok_and(|stat| SFlag::from_bits_truncate(stat.st_mode).contains(SFlag::S_IFSOCK));
    if !is_socket {
        bail!("An action is needed: containerd starts this program with `start`");
    }
    let duplicate = |fd: &dyn AsFd| fd.as_fd().try_clone_to_owned();
    let listener = UnixListener::from(duplicate(&stdin)?);
    let starter = File::from(duplicate(&io::stdout())?);
    let null = OwnedFd::from(File::options().read(true).write(true).open("/dev/null").context("/dev/null")?);
    dup2_stdin(&null).and_then(|()| dup2_stdout(&null)).context("closing the standard streams")?;
    setsid().context("making a session")?;
    listener.set_nonblocking(true)?;
    Ok((listener, starter))
}

async fn run(args: Args, listener: UnixListener, mut starter: File) -> anyhow::Result<Arc<Shim>> {
    let listener = tokio::net::UnixListener::from_std(listener).context("serving")?;
    let mut terminate = signal(SignalKind::terminate()).context("catching signals")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("catching signals")?;
    let events = Publisher::start(&args);
    let shim = Arc::new(Shim::new(args, events.queue()));
    let mut server = Server::new().add_listener(listener.into());
    for services in task::services(&TaskService::new(Arc::clone(&shim))) {
        server = server.register_service(services);
    }
    server.start().await.context("serving")?;
    writeln!(starter, "{READY}").context("reporting to the starter")?;
    drop(starter);
    tracing::debug!(pid = std::process::id(), "the shim serves");
    let idle = shim.idle(IDLE);
    tokio::pin!(idle);
    loop {
        tokio::select! {
            () = &mut idle => break,
            () = shim.finished() => break,
            _ = terminate.recv() => shim.terminate().await,
            _ = interrupt.recv() => shim.terminate().await,
        }
    }
    events.finish().await;
    // The answer to Shutdown is among what may be under way.
    let _ = timeout(FAREWELL, server.shutdown()).await;
    tracing::debug!("the shim ends");
    Ok(Arc::clone(&shim))
}
