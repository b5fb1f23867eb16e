//! The VM of this process: first a configuration that grows, then a machine that runs.

use std::sync::Arc;

use serde_json::Value;
use thiserror::Error;

use crate::builder::{self, BuildError};
use crate::cleanup::Cleanup;
use crate::config::{ConfigError, VmConfig};
use crate::control::MetricsFile;
use crate::device::Alarm;
use crate::events::EventStream;
use crate::program;
use crate::report::{BootPhase, ExitReport};
use crate::resident::{MemoryStats, ResidentMemory};
use crate::vm::{EndSignal, Ending, StateError, Vm, VmState};

/// A VM can't be started.
#[derive(Debug, Error)]
pub enum StartError {
    /// The configuration is not complete or not right.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// It can't be built.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// It runs already.
    #[error(transparent)]
    State(#[from] StateError),
}

/// What the control API, the event loop and `main` work on.
pub struct Instance {
    id: String,
    config: VmConfig,
    events: Arc<EventStream>,
    cleanup: Arc<Cleanup>,
    end: Arc<EndSignal>,
    alarm: Arc<Alarm>,
    vm: Option<Vm>,
    metrics_file: Option<MetricsFile>,
}

impl Instance {
    /// An instance that isn't started. `config` may lack its boot source: see [`VmConfig::validate_draft`].
    pub fn new(
        id: String,
        config: VmConfig,
        end: Arc<EndSignal>,
        alarm: Arc<Alarm>,
        events: Arc<EventStream>,
        cleanup: Arc<Cleanup>,
    ) -> Self {
        Self { id, config, events, cleanup, end, alarm, vm: None, metrics_file: None }
    }

    /// Name of the VM.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Where the VM is in its life.
    pub fn state(&self) -> VmState {
        self.vm.as_ref().map_or(VmState::Created, Vm::state)
    }

    /// The configuration: what a start would take, or what runs, with what was plugged and unplugged since.
    pub fn config(&self) -> &VmConfig {
        &self.config
    }

    /// The configuration as JSON. A boot source that isn't configured yet is left out.
    pub fn config_json(&self) -> Value {
        // The type has nothing that JSON can't say.
        let mut json = serde_json::to_value(&self.config).unwrap_or_default();
        if let (false, Value::Object(members)) = (self.config.boot_source.is_set(), &mut json) {
            members.remove("boot-source");
        }
        json
    }

    /// For the times of the boot phases.
    pub fn events(&self) -> &EventStream {
        &self.events
    }

    /// Signals the end of the VM, or of the process that waits for one.
    pub fn end_signal(&self) -> &Arc<EndSignal> {
        &self.end
    }

    /// The machine, once it is started.
    pub fn vm(&self) -> Option<&Vm> {
        self.vm.as_ref()
    }

    /// The machine, once it is started, to change it.
    pub fn vm_mut(&mut self) -> Option<&mut Vm> {
        self.vm.as_mut()
    }

    /// The alarm has rung: a watchdog may be due.
    pub fn alarm_rang(&self) {
        self.vm.iter().for_each(Vm::check_watchdog);
    }

    /// Resident memory of the process.
    pub fn memory_stats(&self) -> MemoryStats {
        match &self.vm {
            Some(vm) => vm.memory_stats(),
            None => ResidentMemory::new(Vec::new()).and_then(|own| own.read()).unwrap_or_default(),
        }
    }

    /// Where metrics are flushed to.
    pub fn metrics_file(&mut self) -> &mut Option<MetricsFile> {
        &mut self.metrics_file
    }

    /// The configuration with `change` in it, if that is valid. Nothing is changed yet.
    pub fn with_change(&self, change: impl FnOnce(&mut VmConfig)) -> Result<VmConfig, ConfigError> {
        let mut next = self.config.clone();
        change(&mut next);
        next.validate_draft()?;
        Ok(next)
    }

    /// Replaces the configuration by one that [`Instance::with_change`] made.
    pub fn set_config(&mut self, config: VmConfig) {
        self.config = config;
    }

    /// Builds the VM and lets it go. After an error there is nothing left of the trial, and another may follow.
    pub fn start(&mut self) -> Result<(), StartError> {
        if let Some(vm) = &self.vm {
            return Err(StateError::Refused { action: "start", state: vm.state() }.into());
        }
        self.config.validate()?;
        self.events.forget_boot();
        let mut vm = self.build()?;
        // Memory only: it does no harm where the host refuses.
        let _ = program::forget_pages();
        vm.start()?;
        self.events.phase(BootPhase::GuestEntered);
        self.vm = Some(vm);
        Ok(())
    }

    fn build(&self) -> Result<Vm, BuildError> {
        let vsock = self.config.vsock.as_ref().map(|vsock| vsock.uds_path.as_path());
        let mut listening = None;
        let built = builder::build(&self.config, &self.end, &self.alarm, |phase| {
            self.events.phase(phase);
            if phase == BootPhase::DevicesReady {
                // Whatever happens from here on: `main` removes it.
                vsock.iter().for_each(|path| self.cleanup.add_socket(path));
                listening = vsock;
            }
        });
        if let (Err(_), Some(path)) = (&built, listening) {
            self.cleanup.remove_socket(path);
        }
        built
    }

    /// Tells how it ended.
    pub fn report(&self, ending: Ending) -> ExitReport {
        match &self.vm {
            Some(vm) => vm.report(ending),
            None => ExitReport { cause: ending.cause, message: ending.message, console_tail: String::new() },
        }
    }

    /// Ends all threads of the VM. False if some did not end in time: end the process then.
    pub fn shut_down(self) -> bool {
        self.vm.is_none_or(Vm::shut_down)
    }
}
