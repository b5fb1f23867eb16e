//! One run from boot to teardown, in the process that owns the VM.

use std::io;
use std::sync::Arc;

use hull_sandbox::timeline::Timeline;
use hull_sandbox::{Container, ProcessStreams, Sandbox, SandboxError};
use tokio::sync::mpsc;

use super::Control;
use super::launch::Launch;
use super::outcome::Outcome;
use super::pump::Outputs;
use crate::failure::{FAILED, Failure};

/// So many requests to end (SIGINT, SIGTERM) end a container that ignores them.
const PATIENCE: u32 = 3;
/// Controls that wait for their call to the agent.
const MAX_QUEUED: usize = 64;

/// Boots, creates, starts, forwards `controls`, waits, and tears down. `attach` connects the streams of the process before
/// it starts.
pub async fn supervise(
    launch: Launch,
    timeline: Arc<Timeline>,
    mut controls: mpsc::Receiver<Control>,
    attach: impl FnOnce(ProcessStreams, &Arc<Timeline>) -> io::Result<Outputs>,
) -> Outcome {
    timeline.mark_at("hull started", launch.started_ns);
    timeline.mark_at("image ready", launch.image_ready_ns);
    let _lease = match launch.lease_image() {
        Ok(lease) => lease,
        Err(error) => return Outcome::failed(&Failure::new(FAILED, anyhow::Error::new(error).context("The image"))),
    };
    let booted = tokio::select! {
        booted = boot(&launch, &timeline) => booted,
        outcome = interrupted(&mut controls) => return outcome,
    };
    let (mut sandbox, container, streams) = match booted {
        Ok(booted) => booted,
        Err(error) => return Outcome::not_started(error, &launch),
    };
    let mut outcome = live(&launch, &mut sandbox, container, streams, &mut controls, attach).await;
    sandbox.shutdown().await;
    timeline.mark("VM gone");
    if launch.timings {
        outcome.timings = Some(timeline.table());
    }
    outcome
}

async fn boot(launch: &Launch, timeline: &Arc<Timeline>) -> Result<(Sandbox, Container, ProcessStreams), SandboxError> {
    let sandbox = Sandbox::create(launch.sandbox()?, Arc::clone(timeline)).await?;
    match sandbox.create_container(launch.container.clone()).await {
        Ok((container, streams)) => Ok((sandbox, container, streams)),
        Err(error) => {
            sandbox.shutdown().await;
            Err(error)
        }
    }
}

/// There is no process yet that could take a signal.
async fn interrupted(controls: &mut mpsc::Receiver<Control>) -> Outcome {
    loop {
        match controls.recv().await {
            Some(Control::Signal(signal)) if is_request_to_end(signal) => return Outcome::interrupted(signal),
            Some(Control::Abandoned) => return Outcome::killed("its terminal is gone"),
            Some(_) => (),
            None => std::future::pending().await,
        }
    }
}

fn is_request_to_end(signal: i32) -> bool {
    matches!(signal, libc::SIGINT | libc::SIGTERM | libc::SIGHUP | libc::SIGQUIT)
}

async fn live(
    launch: &Launch,
    sandbox: &mut Sandbox,
    container: Container,
    streams: ProcessStreams,
    controls: &mut mpsc::Receiver<Control>,
    attach: impl FnOnce(ProcessStreams, &Arc<Timeline>) -> io::Result<Outputs>,
) -> Outcome {
    let timeline = Arc::clone(sandbox.timeline());
    let mut outputs = match attach(streams, &timeline) {
        Ok(outputs) => outputs,
        Err(error) => return Outcome::failed(&Failure::new(FAILED, error)),
    };
    let container = Arc::new(container);
    if let Err(error) = container.start().await {
        return Outcome::not_started(error, launch);
    }
    if let Err(error) = sandbox.mark_running() {
        tracing::warn!(%error, "the record of this container is stale");
    }
    let mut courier = Courier::start(&container);
    let outcome = tokio::select! {
        exit = container.process().wait() => match exit {
            Ok(exit) => Outcome::exited(exit, launch),
            Err(error) => Outcome::lost(error),
        },
        // Whoever killed it does not wait for its output.
        why = courier.forward(controls) => return Outcome::killed(why),
    };
    timeline.mark("command ended");
    // Output that is under way arrives, unless the user does not want to wait for it.
    tokio::select! {
        () = outputs.drained() => (),
        _ = courier.forward(controls) => (),
    }
    outcome
}

/// Takes controls to the agent, in order, without keeping anybody waiting.
struct Courier {
    queue: mpsc::Sender<Control>,
    requests_to_end: u32,
}

impl Courier {
    fn start(container: &Arc<Container>) -> Self {
        let (queue, mut inbox) = mpsc::channel(MAX_QUEUED);
        let container = Arc::clone(container);
        tokio::spawn(async move {
            while let Some(control) = inbox.recv().await {
                deliver(&container, control).await;
            }
        });
        Self { queue, requests_to_end: 0 }
    }

    /// Forwards until the container has to be killed, and says why.
    async fn forward(&mut self, controls: &mut mpsc::Receiver<Control>) -> &'static str {
        loop {
            let Some(control) = controls.recv().await else {
                return std::future::pending().await;
            };
            match control {
                Control::Abandoned => return "its terminal is gone",
                Control::Signal(libc::SIGINT | libc::SIGTERM) => self.requests_to_end += 1,
                _ => (),
            }
            if self.requests_to_end >= PATIENCE {
                return "it was asked to end three times";
            }
            if self.queue.try_send(control).is_err() {
                tracing::warn!(?control, "dropped: the guest's agent does not keep up");
            }
        }
    }
}

async fn deliver(container: &Container, control: Control) {
    let process = container.process();
    let result = match control {
        Control::Signal(signal) => match u32::try_from(signal) {
            Ok(signal) => process.signal(signal, false).await,
            Err(_) => Ok(()),
        },
        Control::Resize(size) => process.resize(size).await,
        Control::Abandoned => Ok(()),
    };
    if let Err(error) = result {
        tracing::debug!(?control, %error, "not delivered");
    }
}
