//! A sandbox's interfaces: those of its namespace, plugged into its VM.

use tokio::sync::Mutex;

use super::{HostNetwork, Interface, Network};
use crate::error::SandboxError;
use crate::sandbox::Sandbox;

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
}

impl Attached {
    /// `plugged` are the interfaces that the VM starts with.
    pub(crate) fn new(host: HostNetwork, plugged: Vec<Interface>) -> Self {
        let state = State { plugged, connected: Vec::new(), configured: Network::default() };
        Self { host, state: Mutex::new(state) }
    }
}

impl Sandbox {
    /// Gives the guest the interfaces, addresses and routes that its network namespace has now: new interfaces are plugged, and
    /// those that are gone unplugged. Does nothing for a sandbox without a namespace of its own.
    pub async fn update_network(&self) -> Result<(), SandboxError> {
        let Some(attached) = &self.shared().network else { return Ok(()) };
        let mut state = attached.state.lock().await;
        let network = attached.host.survey().await?;
        self.unplug_missing(&network, &mut state).await?;
        for interface in &network.interfaces {
            if !state.plugged.iter().any(|plugged| plugged.is(interface)) {
                self.machine().plug_network(interface.device()).await?;
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
        Ok(())
    }

    async fn unplug_missing(&self, network: &Network, state: &mut State) -> Result<(), SandboxError> {
        let is_missing = |plugged: &Interface| !network.interfaces.iter().any(|interface| interface.is(plugged));
        while let Some(at) = state.plugged.iter().position(is_missing) {
            let gone = state.plugged.remove(at);
            state.connected.retain(|index| *index != gone.index);
            let device = gone.device();
            self.machine().unplug_network(&device.iface_id, &gone.hardware_address.to_string()).await?;
        }
        Ok(())
    }
}

impl Interface {
    /// They are the same, whatever their addresses are now.
    fn is(&self, other: &Self) -> bool {
        (self.index, self.hardware_address) == (other.index, other.hardware_address)
    }
}
