//! `delete`: cleans up after a shim that containerd has lost.
//!
//! containerd also calls it when a shim has ended in good order, and when it has merely closed its connection to the shim of
//! a pod that runs on. So a shim that answers is asked to delete the container itself; only when it is dead, or silent, is
//! what the container's bundle remembers of it killed and removed.

use std::fs;
use std::io::Write as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Duration;

use anyhow::Context as _;
use containerd_shim_protos::api::{DeleteRequest, DeleteResponse, KillRequest, ShutdownRequest};
use containerd_shim_protos::shim_async::{Client, TaskClient};
use hull_sandbox::RuntimeRoot;
use nix::mount::{MntFlags, umount2};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use protobuf::{Message as _, MessageField};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::runtime::Runtime;
use tokio::time::{sleep, timeout};

use crate::args::Args;
use crate::bootstrap::Address;
use crate::bundle::{Bundle, ShimRecord};
use crate::task::{Exit, KILLED};

/// How long a shim may take to do what it is asked for.
const ASK_TIMEOUT: Duration = Duration::from_millis(1500);
/// How long a process may take to end by itself.
const END_TIMEOUT: Duration = Duration::from_millis(1000);
/// How long a killed process may take to be gone.
const KILL_TIMEOUT: Duration = Duration::from_millis(700);
/// How long others may hold the lock of the sandboxes.
const LOCK_TIMEOUT: Duration = Duration::from_millis(300);
/// containerd gives up after 5 seconds. At most there are: a shim that is asked and ends by itself (or else is killed, which takes
/// less), and a monitor that does not and is killed.
const _: () = assert!(
    ASK_TIMEOUT.as_millis() + 2 * END_TIMEOUT.as_millis() + KILL_TIMEOUT.as_millis() + LOCK_TIMEOUT.as_millis() <= 4500
        && KILL_TIMEOUT.as_millis() <= END_TIMEOUT.as_millis()
);
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Mounts on top of one another that are undone.
const MAX_MOUNTS: usize = 16;

/// Does the action.
pub fn delete(args: &Args) -> anyhow::Result<()> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting the event loop")?;
    let pid = clean_up(args, &runtime);
    let exit = Exit::now(KILLED);
    let exited_at = MessageField::some(exit.timestamp());
    let response = DeleteResponse { pid, exit_status: exit.status, exited_at, ..Default::default() };
    std::io::stdout().write_all(&response.write_to_bytes()?)?;
    Ok(())
}

/// Returns the process that stood for the container.
fn clean_up(args: &Args, runtime: &Runtime) -> u32 {
    let Ok(bundle) = Bundle::open(&args.bundle) else { return 0 };
    let record = bundle.record().unwrap_or_default();
    let address = bundle.address().and_then(|address| Address::parse(&address));
    let shim = Process::of_record(record.shim_pid, &args.id);
    let answered = match &address {
        Some(address) => runtime.block_on(ask(address, &args.id)),
        None => false,
    };
    // A container that joined a pod's shim has nothing of its own beside its mounts.
    if record.shim_pid != 0 {
        let serves_others = match &shim {
            // It ends by itself, unless it has other containers.
            Some(shim) if answered => !shim.ended_within(END_TIMEOUT),
            _ => false,
        };
        if !serves_others {
            end(shim.as_ref(), &record);
        }
    }
    // A `start` that was killed has left it without a word.
    if let Some(address) = address
        && !address.is_served()
    {
        address.remove();
    }
    unmount(&bundle);
    record.monitor_pid
}

/// Asks a shim that may still live to delete the container. False if it doesn't answer.
async fn ask(address: &Address, id: &str) -> bool {
    let ask = async {
        let client = TaskClient::new(Client::connect(&address.to_string()).await?);
        let context = || ttrpc::context::with_duration(ASK_TIMEOUT);
        let kill = KillRequest { id: id.into(), signal: libc::SIGKILL.unsigned_abs(), all: true, ..Default::default() };
        let delete = DeleteRequest { id: id.into(), ..Default::default() };
        let _ = known(client.kill(context(), &kill).await)?;
        // It is refused until the process has ended.
        while let Err(ttrpc::Error::RpcStatus(status)) = client.delete(context(), &delete).await {
            if status.code() != ttrpc::Code::FAILED_PRECONDITION {
                break;
            }
            sleep(POLL_INTERVAL).await;
        }
        let shutdown = ShutdownRequest { id: id.into(), ..Default::default() };
        known(client.shutdown(context(), &shutdown).await)
    };
    matches!(timeout(ASK_TIMEOUT, ask).await, Ok(Ok(_)))
}

/// An answer, if only that there is no such task.
fn known<T>(result: ttrpc::Result<T>) -> ttrpc::Result<Option<T>> {
    match result {
        Ok(answer) => Ok(Some(answer)),
        Err(ttrpc::Error::RpcStatus(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Kills what is left of a shim and its VM, and removes what they can't remove any more.
fn end(shim: Option<&Process>, record: &ShimRecord) {
    let monitor = Process::of_record(record.monitor_pid, &record.sandbox_id);
    if let Some(shim) = shim {
        shim.kill();
        shim.ended_within(KILL_TIMEOUT);
    }
    // The monitor ends by itself when it sees the end of its shim.
    if let Some(monitor) = &monitor
        && !monitor.ended_within(END_TIMEOUT)
    {
        monitor.kill();
        monitor.ended_within(KILL_TIMEOUT);
    }
    if let Some(cgroup) = &record.cgroup {
        // What can't be removed is used by others, or by a monitor whose shim died before it could write down which one it is:
        // that takes a second to end, while nobody had to wait for one above.
        let removed = cgroup.remove();
        if removed.is_err() && monitor.is_none() {
            let _ = cgroup.remove();
        }
    }
    if !record.runtime_root.as_os_str().is_empty()
        && let Ok(root) = RuntimeRoot::open(&record.runtime_root)
    {
        // What stays behind, the next sandbox removes.
        let _ = root.sweep(LOCK_TIMEOUT);
    }
}

/// What may be mounted at the root file system of the bundle, all layers of it.
fn unmount(bundle: &Bundle) {
    for _ in 0..MAX_MOUNTS {
        if umount2(&bundle.rootfs(), MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW).is_err() {
            return;
        }
    }
}

/// A process that was written down and is still the same one.
struct Process(OwnedFd);

impl Process {
    /// The process `pid`, if its command line names `id`, as a shim's names its container and a monitor's its sandbox: else
    /// another process has got the number meanwhile.
    fn of_record(pid: u32, id: &str) -> Option<Self> {
        let number = i32::try_from(pid).ok().filter(|pid| *pid > 1)?;
        // First the process, then the look at it: its number can't get another process any more.
        let process = pidfd_open(Pid::from_raw(number)?, PidfdFlags::empty()).ok()?;
        let command_line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let named = !id.is_empty() && command_line.split(|byte| *byte == 0).any(|word| word == id.as_bytes());
        named.then_some(Self(process))
    }

    /// True if it has ended by then.
    fn ended_within(&self, limit: Duration) -> bool {
        let timeout = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
        poll(&mut [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)], timeout).is_ok_and(|ended| ended > 0)
    }

    fn kill(&self) {
        // It may have ended before; nothing else can go wrong.
        let _ = pidfd_send_signal(&self.0, Signal::KILL);
    }
}
