//! The agent's child that prepares one process of a container.
//!
//! Joining namespaces, changing credentials and loading filters concern the whole calling process, and libcontainer forks:
//! none of that may happen in the agent. So the agent executes itself with a role, a request and a way to report. Here
//! everything is blocking and single-threaded; the process's standard streams are this child's own.

mod create;
mod detail;
pub mod device_nodes;
mod devices;
mod exec;
mod pid_namespace;
pub mod reply;
mod root;
mod rootfs;
pub mod shared;
mod specification;
mod user;
mod workload;

use hull_protocol::MAX_MESSAGE_BYTES;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use crate::failure::{Context, Failure};
use crate::init::system;
use crate::sys;
use reply::{Reply, Reporter};

/// Flag of [`Role::Create`].
pub const CREATE: &str = "--create";

/// Flag of [`Role::Exec`].
pub const EXEC: &str = "--exec";

/// Flag of [`Role::PidNamespace`].
pub const PID_NAMESPACE: &str = "--pid-namespace";

/// What to prepare.
#[derive(Debug, Clone, Copy)]
pub enum Role {
    /// A container with its first process, which waits for the start.
    Create,
    /// Another process in a running container.
    Exec,
    /// A pid namespace for several containers, with its first process.
    PidNamespace,
}

/// What every role gets from the agent.
struct Task {
    /// Protobuf message.
    request: Vec<u8>,
    /// Where the terminal's master goes, if the process has a terminal.
    console: Option<PathBuf>,
    reporter: Reporter,
}

/// Runs a role. Arguments: descriptor of the request, descriptor for reports, path of the console socket (or nothing), and
/// what the role needs.
pub fn main(role: Role, mut arguments: impl Iterator<Item = OsString>) -> u8 {
    let Some((task, extra)) = task(&mut arguments) else {
        return 1;
    };
    let reporter = task.reporter.clone();
    // The standard streams belong to the container: a panic is reported, not printed.
    let panics = reporter.clone();
    std::panic::set_hook(Box::new(move |panic| {
        panics.report(&Reply::Failed(Failure::internal(format!("the agent's child: {panic}"))));
    }));
    detail::Details::collect(reporter.clone());
    let result = prepare().and_then(|()| match role {
        Role::Create => create::run(task, extra.as_deref()),
        Role::Exec => exec::run(task, extra.as_deref()),
        Role::PidNamespace => pid_namespace::run(),
    });
    match result {
        Ok(pid) => {
            reporter.report(&Reply::Started(pid));
            0
        }
        Err(failure) => {
            reporter.report(&Reply::Failed(failure));
            1
        }
    }
}

fn task(arguments: &mut impl Iterator<Item = OsString>) -> Option<(Task, Option<String>)> {
    let mut fd = || -> Option<OwnedFd> {
        let fd = sys::inherited_fd(arguments.next()?.to_str()?.parse().ok()?).ok()?;
        fcntl(&fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).ok()?;
        Some(fd)
    };
    let request_fd = fd()?;
    let reporter = Reporter::new(fd()?);
    let console = arguments.next().filter(|path| !path.is_empty()).map(PathBuf::from);
    let mut request = Vec::new();
    let limit = 2 * u64::try_from(MAX_MESSAGE_BYTES).ok()?;
    File::from(request_fd).take(limit).read_to_end(&mut request).ok()?;
    let extra = arguments.next().and_then(|text| text.into_string().ok());
    Some((Task { request, console, reporter }, extra))
}

/// Gives up what only the agent has and makes this process unreadable for the container that it enters.
fn prepare() -> Result<(), Failure> {
    system::default_limits();
    fs::write("/proc/self/oom_score_adj", "0").context("reset oom_score_adj")?;
    nix::sys::prctl::set_dumpable(false).context("set undumpable")
}
