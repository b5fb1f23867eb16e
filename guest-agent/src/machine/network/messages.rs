//! Messages of rtnetlink(7).

use std::net::{IpAddr, Ipv4Addr};

use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteType,
};

use super::wanted::{Neighbour, Network, Route};

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv6() { AddressFamily::Inet6 } else { AddressFamily::Inet }
}

fn link(index: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message
}

/// Sets an interface down.
pub fn down(index: u32) -> LinkMessage {
    let mut message = link(index);
    message.header.change_mask = LinkFlags::Up;
    message
}

/// Brings an interface up, with another MTU if there is one.
pub fn up(index: u32, mtu: Option<u32>) -> LinkMessage {
    let mut message = link(index);
    message.header.change_mask = LinkFlags::Up;
    message.header.flags = LinkFlags::Up;
    message.attributes.extend(mtu.map(LinkAttribute::Mtu));
    message
}

/// Gives an interface another name.
pub fn name(index: u32, name: &str) -> LinkMessage {
    let mut message = link(index);
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    message
}

/// An address of an interface. Nobody else in the network has it, so that the kernel doesn't ask first (RFC 4862, 5.4), during
/// which an IPv6 address can't be used.
pub fn address(index: u32, network: Network) -> AddressMessage {
    let Network { address, prefix_length } = network;
    let mut message = AddressMessage::default();
    message.header.family = family(address);
    message.header.prefix_len = prefix_length;
    message.header.index = index;
    message.attributes.push(AddressAttribute::Address(address));
    message.attributes.push(AddressAttribute::Local(address));
    match address {
        IpAddr::V4(address) => {
            message.attributes.extend(broadcast(address, prefix_length).map(AddressAttribute::Broadcast))
        }
        IpAddr::V6(_) => {
            message.header.flags = AddressHeaderFlags::Nodad;
            message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
    }
    message
}

/// Networks of one or two addresses have none (RFC 3021).
fn broadcast(address: Ipv4Addr, prefix_length: u8) -> Option<Ipv4Addr> {
    let host_bits = u32::MAX.checked_shr(prefix_length.into()).unwrap_or(0);
    (host_bits > 1).then(|| Ipv4Addr::from_bits(address.to_bits() | host_bits))
}

/// A route of the main table.
pub fn route(index: u32, route: &Route) -> RouteMessage {
    let value = |address| match address {
        IpAddr::V4(address) => RouteAddress::Inet(address),
        IpAddr::V6(address) => RouteAddress::Inet6(address),
    };
    let mut message = RouteMessage::default();
    message.header = RouteHeader {
        address_family: family(route.destination.address),
        destination_prefix_length: route.destination.prefix_length,
        table: RouteHeader::RT_TABLE_MAIN,
        protocol: RouteProtocol::Static,
        scope: route.scope,
        kind: RouteType::Unicast,
        flags: if route.on_link { RouteFlags::Onlink } else { RouteFlags::empty() },
        ..RouteHeader::default()
    };
    let attributes = &mut message.attributes;
    if route.destination.prefix_length > 0 {
        attributes.push(RouteAttribute::Destination(value(route.destination.address)));
    }
    attributes.push(RouteAttribute::Oif(index));
    attributes.extend(route.gateway.map(value).map(RouteAttribute::Gateway));
    attributes.extend(route.source.map(value).map(RouteAttribute::PrefSource));
    attributes.extend(route.metric.map(RouteAttribute::Priority));
    message
}

/// A permanent entry.
pub fn neighbour(index: u32, neighbour: &Neighbour) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(neighbour.address);
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    message.header.kind = RouteType::Unicast;
    message.attributes.push(NeighbourAttribute::Destination(match neighbour.address {
        IpAddr::V4(address) => NeighbourAddress::Inet(address),
        IpAddr::V6(address) => NeighbourAddress::Inet6(address),
    }));
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(neighbour.hardware_address.to_vec()));
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broadcast_addresses_are_the_last_of_their_network() {
        let address = Ipv4Addr::new(10, 1, 2, 3);
        assert_eq!(broadcast(address, 24), Some(Ipv4Addr::new(10, 1, 2, 255)));
        assert_eq!(broadcast(address, 0), Some(Ipv4Addr::BROADCAST));
        assert_eq!((broadcast(address, 31), broadcast(address, 32)), (None, None));
    }
}
