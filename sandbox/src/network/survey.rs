//! What is in the namespace.

use std::collections::BTreeMap;
use std::net::IpAddr;

use futures::TryStreamExt;
use hull_vmm::config::MacAddress;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkLayerType, LinkMessage};
use rtnetlink::packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteNextHopFlags, RouteType,
};
use rtnetlink::{Handle, RouteMessageBuilder};

use super::{Interface, MAX_ENTRIES, Neighbour, Network, NetworkError, Route};

/// How the taps of this module are called; they are no interfaces of the namespace's owner.
pub const TAP_PREFIX: &str = "hull-tap";

type Interfaces = BTreeMap<u32, Interface>;

/// Interfaces with their addresses, routes and neighbours.
pub async fn network(netlink: Handle) -> Result<Network, NetworkError> {
    let links: Vec<_> = netlink.link().get().execute().try_collect().await.map_err(failed_to("list interfaces"))?;
    let addresses: Vec<_> =
        netlink.address().get().execute().try_collect().await.map_err(failed_to("list addresses"))?;
    let neighbours: Vec<_> =
        netlink.neighbours().get().execute().try_collect().await.map_err(failed_to("list neighbours"))?;
    let mut routes = Vec::new();
    for any in [
        RouteMessageBuilder::<std::net::Ipv4Addr>::new().build(),
        RouteMessageBuilder::<std::net::Ipv6Addr>::new().build(),
    ] {
        let found = netlink.route().get(any).execute().try_collect::<Vec<_>>();
        routes.extend(found.await.map_err(failed_to("list routes"))?);
    }

    let mut interfaces: Interfaces = links.iter().filter_map(interface).map(|found| (found.index, found)).collect();
    for message in addresses.iter().take(MAX_ENTRIES + 1) {
        if let Some(interface) = interfaces.get_mut(&message.header.index) {
            interface.addresses.extend(address(message));
        }
    }
    // What is down and has no address is not in use: the tunnels that some kernels put into each namespace.
    let is_up =
        |index: u32| links.iter().any(|link| link.header.index == index && link.header.flags.contains(LinkFlags::Up));
    interfaces.retain(|index, interface| is_up(*index) || !interface.addresses.is_empty());

    Network {
        routes: routes.iter().filter_map(|message| route(message, &interfaces)).collect(),
        neighbours: neighbours.iter().filter_map(|message| neighbour(message, &interfaces)).collect(),
        interfaces: interfaces.into_values().collect(),
    }
    .check()
}

/// The tap of a VM, if there is one.
pub async fn tap(netlink: Handle) -> Result<Option<String>, NetworkError> {
    let links: Vec<_> = netlink.link().get().execute().try_collect().await.map_err(failed_to("list interfaces"))?;
    Ok(links.iter().find_map(|link| name(link).filter(|name| name.starts_with(TAP_PREFIX))).map(str::to_owned))
}

fn name(link: &LinkMessage) -> Option<&str> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.as_str()),
        _ => None,
    })
}

fn failed_to(what: &str) -> impl FnOnce(rtnetlink::Error) -> NetworkError + use<> {
    let what = what.to_owned();
    move |source| NetworkError::Netlink { what, source: Box::new(source) }
}

/// An Ethernet interface that is not a tap of ours.
fn interface(link: &LinkMessage) -> Option<Interface> {
    if link.header.link_layer_type != LinkLayerType::Ether {
        return None;
    }
    let (mut hardware_address, mut mtu) = (None, 0);
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::Address(bytes) => hardware_address = mac(bytes),
            LinkAttribute::Mtu(bytes) => mtu = *bytes,
            _ => {}
        }
    }
    let name = name(link).filter(|name| !name.starts_with(TAP_PREFIX))?.to_owned();
    Some(Interface { index: link.header.index, name, hardware_address: hardware_address?, mtu, addresses: Vec::new() })
}

/// The address of this side; link-local ones the guest makes itself.
fn address(message: &AddressMessage) -> Option<(IpAddr, u8)> {
    let pick = |wanted: fn(&AddressAttribute) -> Option<IpAddr>| message.attributes.iter().find_map(wanted);
    // With a point-to-point link, ADDRESS is the other side's.
    let local = pick(|attribute| if let AddressAttribute::Local(local) = attribute { Some(*local) } else { None });
    let address = local.or_else(|| {
        pick(|attribute| if let AddressAttribute::Address(address) = attribute { Some(*address) } else { None })
    })?;
    (!is_link_local(address)).then_some((address, message.header.prefix_len))
}

fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}

/// A unicast route of the main table through one of the interfaces.
fn route(message: &RouteMessage, interfaces: &Interfaces) -> Option<Route> {
    let header = &message.header;
    if header.kind != RouteType::Unicast || header.flags.contains(RouteFlags::Cloned) {
        return None;
    }
    let (mut destination, mut gateway, mut source, mut index) = (None, None, None, None);
    let (mut metric, mut table) = (0, u32::from(header.table));
    let mut on_link = header.flags.bits() & u32::from(RouteNextHopFlags::Onlink.bits()) != 0;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => destination = ip(address),
            RouteAttribute::Gateway(address) => gateway = ip(address),
            RouteAttribute::PrefSource(address) => source = ip(address),
            RouteAttribute::Oif(number) => index = Some(*number),
            RouteAttribute::Priority(number) => metric = *number,
            RouteAttribute::Table(number) => table = *number,
            // The first of several ways: all of them lead there.
            RouteAttribute::MultiPath(hops) => {
                let hop = hops.first()?;
                index = Some(hop.interface_index);
                on_link = hop.flags.contains(RouteNextHopFlags::Onlink);
                gateway = hop.attributes.iter().find_map(|attribute| match attribute {
                    RouteAttribute::Gateway(address) => ip(address),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    let ours = table == u32::from(RouteHeader::RT_TABLE_MAIN) && !destination.is_some_and(is_link_local);
    let interface = interfaces.get(&index?).filter(|_| ours)?;
    Some(Route {
        destination: destination.map(|address| (address, header.destination_prefix_length)),
        ipv6: header.address_family == rtnetlink::packet_route::AddressFamily::Inet6,
        gateway,
        interface: interface.name.clone(),
        source,
        scope: header.scope.into(),
        metric,
        on_link,
    })
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

/// An entry that somebody has set and that does not age.
fn neighbour(message: &NeighbourMessage, interfaces: &Interfaces) -> Option<Neighbour> {
    let interface = interfaces.get(&message.header.ifindex)?;
    if message.header.state != NeighbourState::Permanent {
        return None;
    }
    let (mut address, mut hardware_address) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(found)) => address = Some(IpAddr::V4(*found)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(found)) => address = Some(IpAddr::V6(*found)),
            NeighbourAttribute::LinkLayerAddress(bytes) => hardware_address = mac(bytes),
            _ => {}
        }
    }
    Some(Neighbour { address: address?, hardware_address: hardware_address?, interface: interface.name.clone() })
}

fn mac(bytes: &[u8]) -> Option<MacAddress> {
    bytes.try_into().ok().map(MacAddress)
}
