//! PID 1: from the kernel's hand-over to serving the host.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use hull_protocol::{AGENT_PORT, HOST_CID, READY_PORT, Token, agent_ttrpc};
use tokio_vsock::{VMADDR_CID_ANY, VsockAddr, VsockListener, VsockStream};
use ttrpc::asynchronous::Server;
use ttrpc::asynchronous::transport::Listener;

use crate::dial::dial;
use crate::init::watchdog::Watchdog;
use crate::init::{command_line, mounts, power, system};
use crate::reaper::Reaper;
use crate::service::Service;
use crate::{cgroup, sys};

/// Runs the agent. Returns only on a failure, and then the kernel panics because PID 1 ends.
pub fn main(started_ns: u64) -> u8 {
    power::panic_means_kernel_panic();
    let mounted = mounts::set_up();
    mounts::use_console();
    if let Err(error) = mounted.and_then(|()| serve(started_ns)) {
        eprintln!("hull-agent: {error:#}");
    }
    1
}

fn serve(started_ns: u64) -> Result<()> {
    system::set_up();
    cgroup::set_up().context("set up cgroups")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
    runtime.block_on(async {
        let listener = VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, AGENT_PORT))
            .with_context(|| format!("listen on vsock port {AGENT_PORT}"))?;
        let watchdog = Watchdog::start().map(Arc::new);
        if let Some(watchdog) = watchdog.clone() {
            tokio::spawn(async move { watchdog.keep_alive().await });
        }
        let service = Service::new(Reaper::start()?, started_ns, watchdog);
        let mut server = Server::new()
            .add_listener(Listener::new(from_host_only(listener)))
            .register_service(agent_ttrpc::create_agent(Arc::new(service.clone())));
        server.start().await.context("start the service")?;
        // Before the message, so that whoever asks after it gets an answer.
        service.ready(sys::boot_time_ns());
        tell_ready().await?;
        std::future::pending().await
    })
}

/// Connections of the host. A container that dials its own machine comes with another context identifier.
fn from_host_only(listener: VsockListener) -> impl futures::Stream<Item = std::io::Result<VsockStream>> {
    futures::stream::unfold(listener, |listener| async move {
        loop {
            match listener.accept().await {
                Ok((stream, peer)) if peer.cid() == HOST_CID => {
                    return Some((Ok(stream), listener));
                }
                Ok(_) => {}
                Err(error) => {
                    // Out of descriptors, most likely: don't spin.
                    eprintln!("hull-agent: accept: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    })
}

/// Tells the host once that the agent listens.
async fn tell_ready() -> Result<()> {
    let command_line = std::fs::read_to_string("/proc/cmdline").context("read /proc/cmdline")?;
    let Some(token) = command_line::boot_token(&command_line) else {
        eprintln!("hull-agent: no boot token on the kernel command line; nobody is told");
        return Ok(());
    };
    send_ready(token).await.with_context(|| format!("send the ready message to host port {READY_PORT}"))
}

async fn send_ready(token: Token) -> std::io::Result<()> {
    dial(READY_PORT, token).await?.shutdown(std::net::Shutdown::Both)
}
