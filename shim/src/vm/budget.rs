//! A VM as large as its containers need it: it grows before a container is added or gets more, and shrinks after one is gone.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use hull_sandbox::machine::Machine;
use hull_sandbox::{RuntimeRoot, Sandbox, SandboxError, sizing};
use oci_spec::runtime::LinuxResources;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::ledger::{Entry, Ledger};
use super::limits::Limits;
use super::size::{Range, Size, demand};
use crate::error::{TaskError, one_line};

/// How long a VM stays as large as it is after a container is gone: mostly another one comes, as after an init container.
const SHRINK_DELAY: Duration = Duration::from_secs(5);

/// What the containers of a VM may use, and the VM's size that follows.
pub struct Budget {
    machine: Machine,
    root: RuntimeRoot,
    sandbox_id: String,
    sizes: sizing::Defaults,
    range: Range,
    containers: Mutex<Ledger>,
    /// Held while the size changes. Never more than the VM has.
    current: tokio::sync::Mutex<Size>,
    /// What the record of the sandbox is to say, whoever writes it last.
    latest: Arc<Mutex<Size>>,
    shrinking: Mutex<Option<JoinHandle<()>>>,
}

/// A place for a container in the VM. What was before comes back when it is dropped and not kept.
#[must_use]
pub struct Claim {
    budget: Arc<Budget>,
    entry: Entry,
    kept: bool,
}

impl Budget {
    /// Of a VM that was started with the least size of `range`, and is recorded in `root`.
    pub fn new(sandbox: &Sandbox, root: RuntimeRoot, sizes: sizing::Defaults, range: Range) -> Self {
        Self {
            machine: sandbox.machine(),
            root,
            sandbox_id: sandbox.record().id.clone(),
            sizes,
            range,
            containers: Mutex::default(),
            current: tokio::sync::Mutex::new(range.least),
            latest: Arc::new(Mutex::new(range.least)),
            shrinking: Mutex::default(),
        }
    }

    /// Makes the VM large enough for one more container. Limits beyond what the VM can have are no failure: as on a host that is
    /// smaller than its containers' limits, they are not reached.
    pub async fn add(self: &Arc<Self>, id: &str, limits: Limits) -> Result<Claim, TaskError> {
        let claim = self.claim(id, limits);
        let needed = self.demand();
        if needed.memory_mib > self.range.most.memory_mib {
            let (needed_mib, most_mib) = (needed.memory_mib, self.range.most.memory_mib);
            tracing::warn!(
                task = id,
                needed_mib,
                most_mib,
                "the VM can't become as large as its containers' limits; max_memory_mib of the configuration says how large"
            );
        }
        self.grow().await?;
        Ok(claim)
    }

    /// Makes the VM large enough for a container whose limits are about to change. Whoever raises a limit beyond what the VM can
    /// have is told so.
    pub async fn change(self: &Arc<Self>, id: &str, resources: &LinuxResources) -> Result<Claim, TaskError> {
        let before = self.demand().memory_mib;
        let limits = self.containers().limits(id).unwrap_or_default().updated(resources);
        let claim = self.claim(id, limits);
        let (needed, most) = (self.demand().memory_mib, self.range.most.memory_mib);
        if needed > most && needed > before {
            return Err(TaskError::exhausted(format!(
                "The VM would need {needed} MiB for these limits and can have {most} MiB: for larger VMs raise max_memory_mib in \
                 Hull's configuration"
            )));
        }
        self.grow().await?;
        Ok(claim)
    }

    /// A container is gone.
    pub fn remove(self: &Arc<Self>, id: &str) {
        self.containers().remove(id);
        self.shrink_later();
    }

    fn claim(self: &Arc<Self>, id: &str, limits: Limits) -> Claim {
        let entry = self.containers().write(id, limits);
        Claim { budget: Arc::clone(self), entry, kept: false }
    }

    fn containers(&self) -> MutexGuard<'_, Ledger> {
        self.containers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn demand(&self) -> Size {
        demand(self.containers().all(), &self.sizes)
    }

    fn wanted(&self) -> Size {
        self.range.clamp(self.demand())
    }

    async fn grow(&self) -> Result<(), SandboxError> {
        self.stop_shrinking();
        let mut current = self.current.lock().await;
        let wanted = self.wanted();
        if wanted.memory_mib > current.memory_mib {
            current.memory_mib = self.machine.set_memory(wanted.memory_mib).await?.now_mib;
            self.record(*current).await;
        }
        if wanted.vcpus > current.vcpus {
            self.machine.set_cpus(wanted.vcpus).await?;
            current.vcpus = wanted.vcpus;
            self.record(*current).await;
        }
        Ok(())
    }

    /// The VM gives back what its containers don't need, a little later and as far as the guest can.
    fn shrink_later(self: &Arc<Self>) {
        self.stop_shrinking();
        let budget = Arc::downgrade(self);
        *self.shrinking.lock().unwrap_or_else(PoisonError::into_inner) = Some(tokio::spawn(shrink(budget)));
    }

    fn stop_shrinking(&self) {
        if let Some(shrinking) = self.shrinking.lock().unwrap_or_else(PoisonError::into_inner).take() {
            shrinking.abort();
        }
    }

    /// May be stopped at any point: what is not known to be there is not counted on.
    async fn shrink(&self) -> Result<(), SandboxError> {
        let mut current = self.current.lock().await;
        let wanted = self.wanted();
        if wanted.vcpus < current.vcpus {
            current.vcpus = wanted.vcpus;
            self.machine.set_cpus(wanted.vcpus).await?;
        }
        if wanted.memory_mib < current.memory_mib {
            current.memory_mib = wanted.memory_mib;
            current.memory_mib = self.machine.set_memory(wanted.memory_mib).await?.now_mib;
        }
        self.record(*current).await;
        Ok(())
    }

    /// For `hull ps`. Others may have the lock of the records: that is waited for on another thread, since all of this process's
    /// work is done by one.
    async fn record(&self, size: Size) {
        tracing::debug!(vcpus = size.vcpus, memory_mib = size.memory_mib, "the VM has another size");
        *self.latest.lock().unwrap_or_else(PoisonError::into_inner) = size;
        let (root, id, latest) = (self.root.clone(), self.sandbox_id.clone(), Arc::clone(&self.latest));
        let change = move || {
            root.change_record(&id, |record| {
                let size = *latest.lock().unwrap_or_else(PoisonError::into_inner);
                (record.vcpus, record.memory_mib) = (size.vcpus, size.memory_mib);
            })
        };
        if let Ok(Err(error)) = tokio::task::spawn_blocking(change).await {
            tracing::debug!(error = one_line(&error), "the record of the sandbox is stale");
        }
    }
}

async fn shrink(budget: Weak<Budget>) {
    sleep(SHRINK_DELAY).await;
    let Some(budget) = budget.upgrade() else { return };
    if let Err(error) = budget.shrink().await {
        tracing::debug!(error = one_line(&error), "the VM keeps its size");
    }
}

impl Claim {
    /// The container is there.
    pub fn keep(mut self) {
        self.kept = true;
        // It may need less than before.
        if self.entry.replaces_another() {
            self.budget.shrink_later();
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        self.budget.containers().undo(&self.entry);
        self.budget.shrink_later();
    }
}
