//! The network of a sandbox whose network namespace somebody else has set up (containerd with CNI, Docker).
//!
//! Each Ethernet interface in the namespace, usually one end of a veth pair, gets a partner in the guest with the same name,
//! hardware address, MTU, addresses and routes. Between the two is a tap that the monitor, which runs in the namespace, makes:
//! traffic control redirects what arrives at the interface to the tap and the other way round, so that the namespace's own
//! network stack takes no part. The tap disappears with the monitor. What changes in the namespace while the VM runs changes in the guest.
//! Connections of host processes to the namespace's loopback address are passed to the guest's, and the guest's queries for Docker's
//! resolver to that of the namespace.

mod attached;
mod changes;
mod forward;
mod names;
mod namespace;
mod sk_lookup;
mod survey;
mod wire;

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use hull_protocol::agent::{self, ConfigureNetworkRequest};
use hull_vmm::config::{MAX_INTERFACES, MacAddress, NetworkInterface};
use protobuf::MessageField;
use thiserror::Error;

use changes::Changes;
use forward::Forwarder;
use namespace::Namespace;

pub(crate) use attached::Attached;

/// Most addresses, routes or neighbours of one namespace.
const MAX_ENTRIES: usize = 4096;

/// A network namespace can't be used.
#[derive(Debug, Error)]
pub enum NetworkError {
    /// It can't be opened or entered.
    #[error("Network namespace {path} can't be entered")]
    Namespace {
        /// Where it is.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The kernel refuses a question or a change.
    #[error("Can't {what}")]
    Netlink {
        /// What was to be done.
        what: String,
        /// The kernel's answer.
        source: Box<rtnetlink::Error>,
    },
    /// More than a VM can have.
    #[error("The network namespace has more {what} than {most}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many are possible.
        most: usize,
    },
    /// The monitor has not made the tap, or it is gone.
    #[error("There is no tap {0} in the network namespace")]
    NoTap(String),
    /// Another VM has it.
    #[error(
        "The network namespace is that of another VM (its tap is {tap}): two VMs can't share one (--network container:...)"
    )]
    InUse {
        /// The tap of the other VM's monitor.
        tap: String,
    },
    /// The namespace's resolver for names can't be asked.
    #[error("The resolver of the network namespace can't be asked")]
    Resolver {
        /// Why.
        source: io::Error,
    },
}

/// What a namespace's interfaces look like, and so the guest's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Network {
    /// Ethernet interfaces.
    pub interfaces: Vec<Interface>,
    /// Routes of the main table through these.
    pub routes: Vec<Route>,
    /// Permanent entries of the neighbour tables.
    pub neighbours: Vec<Neighbour>,
}

/// An Ethernet interface of the namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Its number in the namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Hardware address.
    pub hardware_address: MacAddress,
    /// Largest packet in bytes.
    pub mtu: u32,
    /// Addresses with their prefix lengths.
    pub addresses: Vec<(IpAddr, u8)>,
}

/// A route of the main table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Where it leads: an address with a prefix length. `None`: anywhere.
    pub destination: Option<(IpAddr, u8)>,
    /// The family, which a default route through a link does not tell otherwise.
    pub ipv6: bool,
    /// Next hop.
    pub gateway: Option<IpAddr>,
    /// Name of the interface.
    pub interface: String,
    /// Preferred source address.
    pub source: Option<IpAddr>,
    /// RT_SCOPE_*.
    pub scope: u8,
    /// Priority.
    pub metric: u32,
    /// The gateway counts as on the link.
    pub on_link: bool,
}

/// A permanent entry of a neighbour table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Neighbour {
    /// Its address.
    pub address: IpAddr,
    /// Its hardware address.
    pub hardware_address: MacAddress,
    /// Name of the interface behind which it is.
    pub interface: String,
}

/// Where the monitor lives, and so whose interfaces the guest gets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum NetworkNamespace {
    /// That of this process. The guest gets no interface of it.
    #[default]
    Host,
    /// A new one, empty until somebody puts interfaces into it ([`crate::Sandbox::update_network`]).
    New,
    /// That of somebody else.
    Path(PathBuf),
}

/// A network namespace of the host.
#[derive(Debug)]
pub struct HostNetwork(Namespace);

impl HostNetwork {
    /// Opens the namespace at `path`, as in `/run/netns/NAME` or `/proc/PID/ns/net`.
    pub fn open(path: &Path) -> Result<Self, NetworkError> {
        Namespace::open(path).map(Self)
    }

    /// What is in it now.
    pub async fn survey(&self) -> Result<Network, NetworkError> {
        self.0.run(survey::network).await
    }

    /// Fails if another VM is connected to it. Of two, one would take what the other one sends and is sent.
    pub(crate) async fn refuse_shared(&self) -> Result<(), NetworkError> {
        match self.0.run(survey::tap).await? {
            Some(tap) => Err(NetworkError::InUse { tap }),
            None => Ok(()),
        }
    }

    /// Listens for changes of it from now on.
    async fn changes(&self) -> Result<Changes, NetworkError> {
        self.0.changes().await
    }

    /// Takes its connections to 127.0.0.1.
    async fn forwarder(&self) -> Result<Forwarder, NetworkError> {
        self.0.forwarder().await
    }

    /// Joins an interface with the tap that the monitor made for it ([`Interface::device`]). May be called again.
    pub async fn connect(&self, interface: &Interface) -> Result<(), NetworkError> {
        let interface = interface.clone();
        self.0.run(async move |netlink| wire::connect(&netlink, &interface).await).await
    }
}

impl Interface {
    /// The monitor's device for it.
    pub fn device(&self) -> NetworkInterface {
        NetworkInterface {
            iface_id: format!("net{}", self.index),
            host_dev_name: Some(self.tap()),
            tap_fd: None,
            socket_path: None,
            guest_mac: Some(self.hardware_address),
            mtu: u16::try_from(self.mtu).ok(),
            vhost: false,
            rx_rate_limiter: None,
            tx_rate_limiter: None,
        }
    }

    fn tap(&self) -> String {
        format!("{}{}", survey::TAP_PREFIX, self.index)
    }
}

impl Network {
    /// What the guest's agent is asked to make of its own network.
    pub fn request(&self) -> ConfigureNetworkRequest {
        ConfigureNetworkRequest {
            interfaces: self.interfaces.iter().map(Interface::message).collect(),
            routes: self.routes.iter().map(Route::message).collect(),
            neighbours: self.neighbours.iter().map(Neighbour::message).collect(),
            ..Default::default()
        }
    }

    fn check(self) -> Result<Self, NetworkError> {
        let check = |what, count, most| if count > most { Err(NetworkError::TooMany { what, most }) } else { Ok(()) };
        check("interfaces", self.interfaces.len(), MAX_INTERFACES)?;
        check("addresses", self.interfaces.iter().map(|interface| interface.addresses.len()).sum(), MAX_ENTRIES)?;
        check("routes", self.routes.len(), MAX_ENTRIES)?;
        check("neighbours", self.neighbours.len(), MAX_ENTRIES)?;
        Ok(self)
    }
}

impl Interface {
    fn message(&self) -> agent::NetworkInterface {
        agent::NetworkInterface {
            hardware_address: self.hardware_address.to_string(),
            name: self.name.clone(),
            mtu: self.mtu,
            addresses: self.addresses.iter().copied().map(network).collect(),
            ..Default::default()
        }
    }
}

impl Route {
    fn message(&self) -> agent::Route {
        let text = |address: Option<IpAddr>| address.map_or_else(String::new, |address| address.to_string());
        agent::Route {
            destination: MessageField::from_option(self.destination.map(network)),
            gateway: text(self.gateway),
            interface: self.interface.clone(),
            source: text(self.source),
            scope: self.scope.into(),
            metric: self.metric,
            on_link: self.on_link,
            ipv6: self.ipv6,
            ..Default::default()
        }
    }
}

impl Neighbour {
    fn message(&self) -> agent::Neighbour {
        agent::Neighbour {
            address: self.address.to_string(),
            hardware_address: self.hardware_address.to_string(),
            interface: self.interface.clone(),
            ..Default::default()
        }
    }
}

fn network((address, prefix_length): (IpAddr, u8)) -> agent::IpNetwork {
    agent::IpNetwork { address: address.to_string(), prefix_length: prefix_length.into(), ..Default::default() }
}

#[cfg(test)]
#[path = "network_test.rs"]
mod tests;
