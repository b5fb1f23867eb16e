//! `hull run`.
//!
//! ```text
//! arguments -> validate -> image -> Launch -> supervise (boot, start, forward, wait, tear down) -> Outcome
//! ```
//!
//! [`supervise`] owns the VM. It runs in this process, with its standard streams; or, with `-it`, in a *keeper*: a process
//! of its own session that this one is attached to over a socket, so that the terminal can go and the container stay.

mod attach;
mod detach;
mod frames;
mod keeper;
mod launch;
mod name;
mod outcome;
mod pump;
mod signals;
mod supervise;
mod terminal;
mod typing;
mod validate;

use std::sync::Arc;

use hull_sandbox::container::TerminalSize;
use hull_sandbox::timeline::{Timeline, now_ns};

use crate::args::RunArgs;
use crate::context::{self, Context};
use crate::failure::Failure;
use crate::images;
use launch::Launch;
use outcome::Outcome;

pub use keeper::keeper;
pub use outcome::signal_code;
pub use signals::request_to_end;

pub fn run(args: RunArgs, context: &Context) -> Result<u8, Failure> {
    let started_ns = now_ns();
    let request = validate::validate(args)?;
    let attached = request.options.terminal && request.interactive;
    if attached {
        terminal::require_input()?;
    }
    let outcome = context::block_on(async {
        let image = images::fetch(&request.image, &request.fetch, context).await?;
        let size = request.options.terminal.then(terminal::size);
        let mut launch = Launch::new(&request, &image, context, size)?;
        launch.started_ns = started_ns;
        match attached {
            true => attach::attach(&launch).await,
            false => Ok(in_this_process(launch).await?),
        }
    })??;
    Ok(outcome.report())
}

/// Runs with the standard streams and the signals of this process.
async fn in_this_process(launch: Launch) -> anyhow::Result<Outcome> {
    let controls = signals::controls(launch.record.stop_signal, launch.container.io.terminal.is_some())?;
    let timeline = Arc::new(Timeline::default());
    let outcome = supervise::supervise(launch, timeline, controls, pump::local_streams).await;
    Ok(outcome)
}

/// What reaches a container from the outside while it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Control {
    /// A signal for its process.
    Signal(i32),
    /// Its terminal has a new size.
    Resize(TerminalSize),
    /// Nobody is there any more: it ends.
    Abandoned,
}
