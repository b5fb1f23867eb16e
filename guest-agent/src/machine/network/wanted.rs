//! What the host asks for, checked and in the kernel's terms.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hull_protocol::agent;
use netlink_packet_route::route::RouteScope;

use crate::failure::Failure;

const MAX_INTERFACES: usize = 32;
/// Most addresses of one interface.
const MAX_ADDRESSES: usize = 64;
const MAX_ROUTES: usize = 1024;
const MAX_NEIGHBOURS: usize = 1024;
/// `IFNAMSIZ` without its terminating zero.
const MAX_NAME_BYTES: usize = 15;

/// A whole network.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    pub interfaces: Vec<Interface>,
    pub routes: Vec<Route>,
    pub neighbours: Vec<Neighbour>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    pub hardware_address: [u8; 6],
    pub name: String,
    pub mtu: Option<u32>,
    pub addresses: Vec<Network>,
}

/// An address with the length of its network's prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    pub address: IpAddr,
    pub prefix_length: u8,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    pub destination: Network,
    pub gateway: Option<IpAddr>,
    /// Name of the interface.
    pub interface: String,
    pub source: Option<IpAddr>,
    pub scope: RouteScope,
    pub metric: Option<u32>,
    pub on_link: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Neighbour {
    pub address: IpAddr,
    pub hardware_address: [u8; 6],
    /// Name of the interface.
    pub interface: String,
}

impl Wanted {
    /// Checks a request.
    pub fn new(request: &agent::ConfigureNetworkRequest) -> Result<Self, Failure> {
        at_most("interfaces", request.interfaces.len(), MAX_INTERFACES)?;
        at_most("routes", request.routes.len(), MAX_ROUTES)?;
        at_most("neighbours", request.neighbours.len(), MAX_NEIGHBOURS)?;
        let all = |name: &str, index| format!("{name}[{index}]");
        let each = request.interfaces.iter().enumerate();
        let interfaces = each.map(|(i, one)| interface(one, &all("interfaces", i))).collect::<Result<Vec<_>, _>>()?;
        let each = request.routes.iter().enumerate();
        let mut routes = each.map(|(i, one)| route(one, &all("routes", i))).collect::<Result<Vec<_>, _>>()?;
        let each = request.neighbours.iter().enumerate();
        let neighbours = each.map(|(i, one)| neighbour(one, &all("neighbours", i))).collect::<Result<Vec<_>, _>>()?;
        // A gateway has to be reachable first.
        routes.sort_by_key(|route| route.gateway.is_some());

        let mut names = HashSet::new();
        let mut hardware = HashSet::new();
        for interface in &interfaces {
            if !names.insert(&interface.name) || !hardware.insert(interface.hardware_address) {
                return Err(Failure::invalid(format!("interface {} is there twice", interface.name)));
            }
        }
        Ok(Self { interfaces, routes, neighbours })
    }
}

fn at_most(field: &str, count: usize, most: usize) -> Result<(), Failure> {
    if count > most { Err(invalid(field, format!("{count} are too many; at most {most}"))) } else { Ok(()) }
}

fn invalid(field: &str, reason: impl std::fmt::Display) -> Failure {
    Failure::invalid(format!("{field}: {reason}"))
}

fn interface(given: &agent::NetworkInterface, field: &str) -> Result<Interface, Failure> {
    at_most(&format!("{field}.addresses"), given.addresses.len(), MAX_ADDRESSES)?;
    let each = given.addresses.iter().enumerate();
    let addresses = each.map(|(i, one)| network(one, &format!("{field}.addresses[{i}]")));
    Ok(Interface {
        hardware_address: hardware_address(&given.hardware_address, field)?,
        name: name(&given.name, field)?,
        mtu: (given.mtu != 0).then_some(given.mtu),
        addresses: addresses.collect::<Result<_, _>>()?,
    })
}

fn route(given: &agent::Route, field: &str) -> Result<Route, Failure> {
    let gateway = optional_address(&given.gateway, &format!("{field}.gateway"))?;
    let source = optional_address(&given.source, &format!("{field}.source"))?;
    let is_ipv6 = gateway.or(source).map_or(given.ipv6, |address| address.is_ipv6());
    let default = if is_ipv6 { IpAddr::V6(Ipv6Addr::UNSPECIFIED) } else { IpAddr::V4(Ipv4Addr::UNSPECIFIED) };
    let destination = match given.destination.as_ref().filter(|network| !network.address.is_empty()) {
        Some(destination) => network(destination, &format!("{field}.destination"))?,
        None => Network { address: default, prefix_length: 0 },
    };
    let one_family = gateway.iter().chain(&source).all(|other| other.is_ipv6() == destination.address.is_ipv6());
    if !one_family {
        return Err(invalid(field, "has addresses of both families"));
    }
    let scope = u8::try_from(given.scope).map_err(|_| invalid(field, "no such scope"))?;
    let scope = match (RouteScope::from(scope), gateway, is_ipv6) {
        // What iproute2 takes too.
        (RouteScope::Universe, None, false) => RouteScope::Link,
        (scope, ..) => scope,
    };
    Ok(Route {
        destination,
        gateway,
        interface: name(&given.interface, field)?,
        source,
        scope,
        metric: (given.metric != 0).then_some(given.metric),
        on_link: given.on_link,
    })
}

fn neighbour(given: &agent::Neighbour, field: &str) -> Result<Neighbour, Failure> {
    Ok(Neighbour {
        address: address(&given.address, field)?,
        hardware_address: hardware_address(&given.hardware_address, field)?,
        interface: name(&given.interface, field)?,
    })
}

fn network(given: &agent::IpNetwork, field: &str) -> Result<Network, Failure> {
    let address = address(&given.address, field)?;
    let most = if address.is_ipv6() { 128 } else { 32 };
    let prefix_length = u8::try_from(given.prefix_length).ok().filter(|length| *length <= most);
    let prefix_length = prefix_length.ok_or_else(|| invalid(field, format!("a prefix has at most {most} bits")))?;
    Ok(Network { address, prefix_length })
}

fn optional_address(text: &str, field: &str) -> Result<Option<IpAddr>, Failure> {
    (!text.is_empty()).then(|| address(text, field)).transpose()
}

fn address(text: &str, field: &str) -> Result<IpAddr, Failure> {
    text.parse().map_err(|_| invalid(field, format!("{text:?} is no IP address")))
}

/// Six bytes as in "52:54:00:12:34:56".
pub fn hardware_address(text: &str, field: &str) -> Result<[u8; 6], Failure> {
    let wrong = || invalid(field, format!("{text:?} is no hardware address"));
    let mut bytes = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut bytes {
        let part = parts.next().filter(|part| part.len() == 2 && part.bytes().all(|digit| digit.is_ascii_hexdigit()));
        *byte = u8::from_str_radix(part.ok_or_else(wrong)?, 16).map_err(|_| wrong())?;
    }
    if parts.next().is_some() { Err(wrong()) } else { Ok(bytes) }
}

/// A name that the kernel takes (`dev_valid_name`) and that isn't the loopback interface's.
fn name(text: &str, field: &str) -> Result<String, Failure> {
    let plain = |c: char| c.is_ascii_graphic() && !matches!(c, '/' | ':' | '%');
    let valid = (1..=MAX_NAME_BYTES).contains(&text.len()) && text.chars().all(plain);
    if !valid || matches!(text, "." | ".." | "lo") {
        return Err(invalid(field, format!("{text:?} can't be the name of an interface")));
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use protobuf::MessageField;

    fn given(destination: &str, gateway: &str) -> agent::Route {
        let network = agent::IpNetwork { address: destination.into(), prefix_length: 8, ..Default::default() };
        agent::Route {
            destination: MessageField::some(network),
            gateway: gateway.into(),
            interface: "eth0".into(),
            ..Default::default()
        }
    }

    #[test]
    fn routes_on_the_link_come_first() {
        let request = agent::ConfigureNetworkRequest {
            routes: vec![given("", "10.0.0.1"), given("10.0.0.0", ""), given("", "fd00::1")],
            ..Default::default()
        };
        let wanted = Wanted::new(&request).unwrap();
        let destinations: Vec<_> = wanted.routes.iter().map(|route| route.destination.address.to_string()).collect();
        assert_eq!(destinations, ["10.0.0.0", "0.0.0.0", "::"]);
        assert_eq!((wanted.routes[0].scope, wanted.routes[1].scope), (RouteScope::Link, RouteScope::Universe));
        assert_eq!(wanted.routes[1].destination.prefix_length, 0);
    }

    #[test]
    fn nonsense_is_refused_with_the_field() {
        let mixed = agent::ConfigureNetworkRequest { routes: vec![given("10.0.0.0", "fd00::1")], ..Default::default() };
        assert!(Wanted::new(&mixed).unwrap_err().message.starts_with("routes[0]"));
        let link = |name: &str, mac: &str| agent::NetworkInterface {
            name: name.into(),
            hardware_address: mac.into(),
            ..Default::default()
        };
        let mac = "52:54:00:12:34:56";
        for (name, mac) in [
            ("eth0", "52:54:00"),
            ("eth0", "52:54:00:12:34:5"),
            ("lo", mac),
            ("a/b", mac),
            ("", mac),
            ("sixteen-bytes-xx", mac),
        ] {
            let request = agent::ConfigureNetworkRequest { interfaces: vec![link(name, mac)], ..Default::default() };
            assert!(Wanted::new(&request).unwrap_err().message.starts_with("interfaces[0]"), "{name} {mac}");
        }
        let twice = vec![link("eth0", mac), link("eth1", mac)];
        assert!(Wanted::new(&agent::ConfigureNetworkRequest { interfaces: twice, ..Default::default() }).is_err());
        let network = agent::IpNetwork { address: "10.0.0.1".into(), prefix_length: 33, ..Default::default() };
        let long = agent::NetworkInterface { addresses: vec![network], ..link("eth0", mac) };
        let failure = Wanted::new(&agent::ConfigureNetworkRequest { interfaces: vec![long], ..Default::default() });
        assert!(failure.unwrap_err().message.starts_with("interfaces[0].addresses[0]"));
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".{0,40}") {
            let _ = hardware_address(&text, "x");
            let _ = name(&text, "x");
            let _ = Wanted::new(&agent::ConfigureNetworkRequest { routes: vec![given(&text, &text)], ..Default::default() });
        }
    }
}
