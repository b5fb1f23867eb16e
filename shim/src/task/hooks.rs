//! Hooks of a task that run on the host, and what they did to its network.

use std::collections::HashMap;
use std::path::Path;

use hull_sandbox::Sandbox;
use hull_sandbox::hooks::{self, HookKind, HookState};
use oci_spec::runtime::{Hooks, Spec};

use crate::error::TaskError;

/// The hooks of a task; most have none.
#[derive(Default)]
pub struct TaskHooks(Option<(Hooks, HookState)>);

impl TaskHooks {
    /// Those of the specification. `pid` is a process in the sandbox's network namespace.
    pub fn new(id: &str, bundle: &Path, pid: u32, spec: &Spec) -> Self {
        let none = HashMap::new();
        let annotations = spec.annotations().as_ref().unwrap_or(&none);
        Self(spec.hooks().clone().map(|hooks| (hooks, HookState::new(id, bundle, pid, annotations))))
    }

    /// Runs those that come before the container, and gives the guest the interfaces that they made.
    pub async fn before_create(&self, sandbox: &Sandbox) -> Result<(), TaskError> {
        if self.0.is_none() {
            return Ok(());
        }
        for kind in [HookKind::Prestart, HookKind::CreateRuntime] {
            self.run(kind).await?;
        }
        Ok(sandbox.update_network().await?)
    }

    /// Runs those that come after the start. A failure is logged: the container runs.
    pub async fn after_start(&self) {
        if let Err(error) = self.run(HookKind::Poststart).await {
            tracing::warn!("{error}");
        }
    }

    /// Runs those that come after the end.
    pub async fn after_delete(&self) {
        if let Err(error) = self.run(HookKind::Poststop).await {
            tracing::warn!("{error}");
        }
    }

    async fn run(&self, kind: HookKind) -> Result<(), TaskError> {
        let Some((hooks, state)) = &self.0 else { return Ok(()) };
        hooks::run(hooks, kind, state).await.map_err(|error| TaskError::internal(&error))
    }
}
