//! The virtual machine itself while it runs: devices that come and go, processors in use, memory.
//!
//! Each change is made by one thread of its own, which may wait for the kernel; one change at a time. Every wait has a limit.

mod cpus;
mod devices;
mod memory;
mod network;
mod uevents;
mod usage;

use std::path::PathBuf;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use hull_protocol::agent;
use tokio::sync::Mutex;
use tokio::time::timeout;
use ttrpc::Code;

use crate::failure::Failure;

/// How long one change may take. Above what each of its steps may take; beyond it the kernel itself doesn't come back.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a change may wait for an earlier one. Both together are less than the host waits for an answer.
const TURN_TIMEOUT: Duration = Duration::from_secs(5);

/// Where the kernel shows the machine.
#[derive(Debug, Clone)]
struct Sys(PathBuf);

/// Changes of the machine, one at a time.
pub struct Machine {
    turn: Arc<Mutex<()>>,
    sys: Sys,
    limit: Duration,
    network: Arc<std::sync::Mutex<network::Configured>>,
}

impl Machine {
    /// The machine that this agent runs on.
    pub fn new() -> Self {
        Self { turn: Arc::default(), sys: Sys("/sys".into()), limit: CHANGE_TIMEOUT, network: Arc::default() }
    }

    /// See the service's PlugDevice.
    pub async fn plug(&self, request: agent::PlugDeviceRequest) -> Result<agent::Device, Failure> {
        self.change(move |sys| devices::plug(sys, &request)).await
    }

    /// See the service's UnplugDevice.
    pub async fn unplug(&self, request: agent::UnplugDeviceRequest) -> Result<agent::Device, Failure> {
        self.change(move |sys| devices::unplug(sys, &request)).await
    }

    /// See the service's ListDevices.
    pub async fn devices(&self) -> Result<Vec<agent::Device>, Failure> {
        self.change(devices::list).await
    }

    /// See the service's SetOnlineCpus.
    pub async fn set_online_cpus(&self, count: u32) -> Result<agent::MachineStateResponse, Failure> {
        self.change(move |sys| {
            cpus::set_online(sys, count)?;
            state(sys)
        })
        .await
    }

    /// See the service's MachineState.
    pub async fn state(&self) -> Result<agent::MachineStateResponse, Failure> {
        self.change(state).await
    }

    /// See the service's ConfigureNetwork.
    pub async fn configure_network(&self, request: agent::ConfigureNetworkRequest) -> Result<(), Failure> {
        let network = Arc::clone(&self.network);
        self.change(move |sys| {
            let mut configured = network.lock().unwrap_or_else(PoisonError::into_inner);
            network::configure(sys, &mut configured, &request)
        })
        .await
    }

    /// Does `work` when it is its turn. Work that doesn't come back keeps the turn, so that nothing piles up behind it.
    async fn change<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Sys) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        let turn = timeout(self.limit.min(TURN_TIMEOUT), Arc::clone(&self.turn).lock_owned()).await;
        let turn = turn.map_err(|_| Failure::precondition("the kernel is still busy with an earlier change"))?;
        let sys = self.sys.clone();
        let job = tokio::task::spawn_blocking(move || {
            let result = work(&sys);
            drop(turn);
            result
        });
        match timeout(self.limit, job).await {
            Ok(Ok(result)) => result,
            Ok(Err(error)) => Err(Failure::internal(error)),
            Err(_) => Err(Failure::new(Code::DEADLINE_EXCEEDED, "the guest's kernel does not come to an end with it")),
        }
    }
}

fn state(sys: &Sys) -> Result<agent::MachineStateResponse, Failure> {
    let (online, present) = cpus::counts(sys)?;
    let (total, available) = memory::total_and_available()?;
    Ok(agent::MachineStateResponse {
        online_cpus: online,
        present_cpus: present,
        memory_total_bytes: total,
        memory_available_bytes: available,
        ..Default::default()
    })
}

#[cfg(test)]
#[path = "machine_test.rs"]
mod tests;
