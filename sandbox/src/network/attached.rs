//! A sandbox's interfaces: those of its namespace, plugged into its VM.

use std::error::Error;
use std::sync::{Arc, Weak};

use tokio::sync::Mutex;

use super::changes::Changes;
use super::forward::Forwarder;
use super::namespace::Namespace;
use super::{HostNetwork, Interface, Network, names};
use crate::error::SandboxError;
use crate::sandbox::{Sandbox, Shared};

/// The namespace of a sandbox, and what of it the guest has.
pub(crate) struct Attached {
    host: HostNetwork,
    state: Mutex<State>,
}

struct State {
    /// The VM has a device for them.
    plugged: Vec<Interface>,
    /// Indexes of those that are joined with their taps.
    connected: Vec<u32>,
    /// What the guest was told last.
    configured: Network,
    /// The guest's name queries are passed on.
    has_names: bool,
}

impl Attached {
    /// `plugged` are the interfaces that the VM starts with.
    pub(crate) fn new(host: HostNetwork, plugged: Vec<Interface>) -> Self {
        let state = State { plugged, connected: Vec::new(), configured: Network::default(), has_names: false };
        Self { host, state: Mutex::new(state) }
    }

    /// The namespace.
    pub(super) fn namespace(&self) -> &Namespace {
        &self.host.0
    }
}

impl Sandbox {
    /// Gives the guest the interfaces, addresses and routes that its network namespace has now: new interfaces are plugged, and
    /// those that are gone unplugged. Does nothing for a sandbox without a namespace of its own.
    ///
    /// Later changes reach the guest by themselves a moment after they were made; this is for those who must not wait for it.
    pub async fn update_network(&self) -> Result<(), SandboxError> {
        self.shared().update_network().await
    }

    /// Gives the guest the network of its namespace, now and whenever that changes, for as long as the VM runs.
    pub(crate) async fn attach_network(&self) -> Result<(), SandboxError> {
        let Some(attached) = &self.shared().network else { return Ok(()) };
        // First, so that nothing is missed.
        let changes = attached.host.changes().await?;
        self.update_network().await?;
        tokio::spawn(follow(Arc::downgrade(self.shared()), changes));
        match attached.host.forwarder().await {
            Ok(forwarder) => drop(tokio::spawn(forward(Arc::downgrade(self.shared()), forwarder))),
            // The network itself is complete without it.
            Err(error) => {
                let error: &(dyn Error + 'static) = &error;
                tracing::warn!(error, "ports can't be forwarded to the guest's loopback address");
            }
        }
        Ok(())
    }
}

impl Shared {
    async fn update_network(self: &Arc<Self>) -> Result<(), SandboxError> {
        let Some(attached) = &self.network else { return Ok(()) };
        let mut state = attached.state.lock().await;
        let network = attached.host.survey().await?;
        self.unplug_missing(&network, &mut state).await?;
        for interface in &network.interfaces {
            if !state.plugged.iter().any(|plugged| plugged.is(interface)) {
                self.machine.plug_network(interface.device()).await?;
                state.plugged.push(interface.clone());
            }
            if !state.connected.contains(&interface.index) {
                attached.host.connect(interface).await?;
                state.connected.push(interface.index);
            }
        }
        if network != state.configured {
            self.configure_network(network.request()).await?;
            state.configured = network;
        }
        // It comes with the first network that has names.
        if !state.has_names && attached.host.has_resolver().await? {
            state.has_names = true;
            tokio::spawn(names::serve(Arc::downgrade(self)));
        }
        Ok(())
    }

    async fn unplug_missing(&self, network: &Network, state: &mut State) -> Result<(), SandboxError> {
        let is_missing = |plugged: &Interface| !network.interfaces.iter().any(|interface| interface.is(plugged));
        while let Some(at) = state.plugged.iter().position(is_missing) {
            let gone = state.plugged.remove(at);
            state.connected.retain(|index| *index != gone.index);
            let device = gone.device();
            self.machine.unplug_network(&device.iface_id, &gone.hardware_address.to_string()).await?;
        }
        Ok(())
    }
}

async fn forward(shared: Weak<Shared>, forwarder: Forwarder) {
    if let Err(error) = forwarder.serve(shared).await {
        tracing::warn!(%error, "ports are no longer forwarded");
    }
}

/// Passes changes on until the VM ends or nobody has it any more.
async fn follow(shared: Weak<Shared>, changes: Changes) {
    let Some(end) = shared.upgrade().map(|shared| shared.monitor.watch()) else { return };
    tokio::pin!(end);
    loop {
        let changed = tokio::select! {
            _ = &mut end => return,
            changed = changes.settled() => changed,
        };
        let Some(shared) = shared.upgrade() else { return };
        if let Err(error) = changed {
            tracing::warn!(%error, "changes of the network namespace are not seen any more");
            return;
        }
        if let Err(error) = shared.update_network().await
            && shared.monitor.end().is_none()
        {
            let error: &(dyn Error + 'static) = &error;
            tracing::warn!(error, "a change of the network namespace has not reached the guest");
        }
    }
}

impl Interface {
    /// They are the same, whatever their addresses are now.
    fn is(&self, other: &Self) -> bool {
        (self.index, self.hardware_address) == (other.index, other.hardware_address)
    }
}
