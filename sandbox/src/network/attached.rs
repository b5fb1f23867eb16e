//! A sandbox's interfaces: those of its namespace, plugged into its VM.

use std::error::Error;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::sleep;

use super::changes::Changes;
use super::forward::Forwarder;
use super::namespace::Namespace;
use super::{HostNetwork, Interface, Network, names};
use crate::error::SandboxError;
use crate::machine::Machine;
use crate::sandbox::{Sandbox, Shared};

/// Between attempts to have the guest follow a change.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// The namespace of a sandbox, and what of it the guest has.
pub(crate) struct Attached {
    host: HostNetwork,
    state: Mutex<State>,
}

#[derive(Default)]
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
        let state = State { plugged, ..State::default() };
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
        // What the guest doesn't let go of keeps nothing else from it.
        let unplugged = unplug_missing(&self.machine, &network, &mut state).await;
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
        unplugged
    }
}

/// Unplugs what the namespace doesn't have any more. What is still there after a failure is known still, for the next time.
async fn unplug_missing(machine: &Machine, network: &Network, state: &mut State) -> Result<(), SandboxError> {
    let is_missing = |plugged: &&Interface| !network.interfaces.iter().any(|interface| interface.is(plugged));
    let missing: Vec<_> = state.plugged.iter().filter(is_missing).cloned().collect();
    let mut result = Ok(());
    for gone in missing {
        state.connected.retain(|index| *index != gone.index);
        match machine.unplug_network(&gone.device().iface_id, &gone.hardware_address.to_string()).await {
            Ok(()) | Err(SandboxError::NoDevice { .. }) => state.plugged.retain(|plugged| !plugged.is(&gone)),
            Err(error) => result = Err(error),
        }
    }
    result
}

async fn forward(shared: Weak<Shared>, forwarder: Forwarder) {
    if let Err(error) = forwarder.serve(shared).await {
        tracing::warn!(%error, "ports are no longer forwarded");
    }
}

/// Passes changes on until the VM ends or nobody has it any more. What has not reached the guest is tried again.
async fn follow(shared: Weak<Shared>, changes: Changes) {
    let Some(end) = shared.upgrade().map(|shared| shared.monitor.watch()) else { return };
    tokio::pin!(end);
    let mut retry = None;
    loop {
        let again = async {
            match retry {
                Some(pause) => sleep(pause).await,
                None => std::future::pending().await,
            }
        };
        let changed = tokio::select! {
            _ = &mut end => return,
            changed = changes.settled() => changed,
            () = again => Ok(()),
        };
        let Some(shared) = shared.upgrade() else { return };
        if let Err(error) = changed {
            tracing::warn!(%error, "changes of the network namespace are not seen any more");
            return;
        }
        let Err(error) = shared.update_network().await else {
            retry = None;
            continue;
        };
        if shared.monitor.end().is_none() {
            let error: &(dyn Error + 'static) = &error;
            match retry {
                None => tracing::warn!(error, "a change of the network namespace has not reached the guest yet"),
                Some(_) => tracing::debug!(error, "a change of the network namespace has still not reached the guest"),
            }
        }
        retry = Some(pause_after(retry));
    }
}

/// The pause before the next attempt, given the one before the last: longer each time, up to a bound.
fn pause_after(last: Option<Duration>) -> Duration {
    last.map_or(FIRST_PAUSE, |last| (last * 2).min(LONGEST_PAUSE))
}

impl Interface {
    /// They are the same, whatever their addresses are now.
    fn is(&self, other: &Self) -> bool {
        (self.index, self.hardware_address) == (other.index, other.hardware_address)
    }
}

#[cfg(test)]
mod tests {
    use hull_vmm::config::MacAddress;

    use super::*;
    use crate::machine::tests::{Manners, Scene, World};

    #[tokio::test]
    async fn an_interface_that_the_guest_did_not_let_go_of_is_unplugged_the_next_time() {
        let scene = Scene::new(World::with(Manners::Busy)).await;
        let machine = scene.machine().await;
        let interface = |index| Interface {
            index,
            name: format!("eth{index}"),
            hardware_address: MacAddress([2; 6]),
            mtu: 1500,
            addresses: Vec::new(),
        };
        let network = Network { interfaces: vec![interface(3)], ..Network::default() };
        let plugged = vec![interface(2), interface(3), interface(4)];
        let mut state = State { plugged, connected: vec![2, 3, 4], ..State::default() };
        unplug_missing(&machine, &network, &mut state).await.unwrap_err();
        assert_eq!((state.plugged.len(), scene.log().len()), (3, 2), "both were asked for");
        // The monitor says that it has none: that is what was wanted.
        scene.behave(Manners::Good);
        unplug_missing(&machine, &network, &mut state).await.unwrap();
        assert_eq!((state.plugged, state.connected), (network.interfaces, vec![3]));
    }

    #[test]
    fn attempts_become_rarer_and_go_on() {
        let mut pause = None;
        let pauses = std::iter::repeat_with(|| pause.insert(pause_after(pause)).as_secs()).take(9);
        assert_eq!(pauses.collect::<Vec<_>>(), [1, 2, 4, 8, 16, 32, 60, 60, 60]);
    }
}
