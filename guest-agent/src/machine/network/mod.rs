//! The guest's network: interfaces, addresses, routes, neighbours.

mod messages;
mod netlink;
mod wanted;

use std::fs;
use std::io;

use hull_protocol::agent;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage as Message;

use self::netlink::Netlink;
use self::wanted::{Neighbour, Network, Route, Wanted};
use super::Sys;
use crate::failure::{Context, Failure};
use crate::sys;

/// What was configured, to be taken away when it isn't wanted any more.
#[derive(Debug, Default)]
pub struct Configured {
    /// By the interface's index.
    addresses: Vec<(u32, Network)>,
    routes: Vec<(u32, Route)>,
    neighbours: Vec<(u32, Neighbour)>,
}

/// An interface that was found.
struct Found {
    index: u32,
    name: String,
}

/// Makes the network what the request says. What an earlier request has configured and this one doesn't name goes away. After a
/// failure some of it may be there; `configured` knows what.
pub fn configure(
    sys: &Sys,
    configured: &mut Configured,
    request: &agent::ConfigureNetworkRequest,
) -> Result<(), Failure> {
    let wanted = Wanted::new(request)?;
    let found = find_all(sys, &wanted)?;
    let index = |name: &str| {
        let wanted = wanted.interfaces.iter().position(|interface| interface.name == name);
        let found = wanted.and_then(|at| found.get(at)).map(|found| found.index);
        found.ok_or_else(|| Failure::invalid(format!("no interface of the request is called {name}")))
    };
    let mut addresses = Vec::new();
    for (interface, found) in wanted.interfaces.iter().zip(&found) {
        addresses.extend(interface.addresses.iter().map(|address| (found.index, *address)));
    }
    let routes = wanted.routes.iter().map(|route| Ok((index(&route.interface)?, route.clone())));
    let routes = routes.collect::<Result<Vec<_>, Failure>>()?;
    let neighbours = wanted.neighbours.iter().map(|one| Ok((index(&one.interface)?, one.clone())));
    let neighbours = neighbours.collect::<Result<Vec<_>, Failure>>()?;

    sys::interface_up("lo").context("bring the loopback interface up")?;
    let mut netlink = Netlink::open().context("open a routing socket")?;
    remove_unwanted(&mut netlink, configured, &addresses, &routes, &neighbours)?;
    set_up_interfaces(&mut netlink, &wanted, &found)?;
    let replace = NLM_F_CREATE | NLM_F_REPLACE;
    for (index, address) in addresses {
        add(&mut configured.addresses, (index, address), || {
            netlink.request(Message::NewAddress(messages::address(index, address)), replace)
        })
        .context(format!("add the address {}/{}", address.address, address.prefix_length))?;
    }
    for (index, route) in routes {
        let message = Message::NewRoute(messages::route(index, &route));
        let what = format!("add the route to {}/{}", route.destination.address, route.destination.prefix_length);
        // The kernel makes the routes of addresses itself.
        add(&mut configured.routes, (index, route), || {
            done_before(netlink.request(message, NLM_F_CREATE | NLM_F_EXCL), &[libc::EEXIST])
        })
        .context(what)?;
    }
    for (index, neighbour) in neighbours {
        let message = Message::NewNeighbour(messages::neighbour(index, &neighbour));
        let what = format!("add the neighbour {}", neighbour.address);
        add(&mut configured.neighbours, (index, neighbour), || netlink.request(message, replace)).context(what)?;
    }
    Ok(())
}

/// Notes what is about to be made, so that it is taken away later also if only a part of it came to be.
fn add<T: PartialEq>(notes: &mut Vec<T>, item: T, make: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    if !notes.contains(&item) {
        notes.push(item);
    }
    make()
}

/// In the reverse order of making them.
fn remove_unwanted(
    netlink: &mut Netlink,
    configured: &mut Configured,
    addresses: &[(u32, Network)],
    routes: &[(u32, Route)],
    neighbours: &[(u32, Neighbour)],
) -> Result<(), Failure> {
    // Already gone with its interface or its address.
    const GONE: [i32; 4] = [libc::ESRCH, libc::ENODEV, libc::ENOENT, libc::EADDRNOTAVAIL];
    let mut remove = |message| done_before(netlink.request(message, 0), &GONE);
    retain(&mut configured.neighbours, neighbours, |(index, neighbour)| {
        remove(Message::DelNeighbour(messages::neighbour(*index, neighbour)))
    })
    .context("remove a neighbour")?;
    retain(&mut configured.routes, routes, |(index, route)| remove(Message::DelRoute(messages::route(*index, route))))
        .context("remove a route")?;
    retain(&mut configured.addresses, addresses, |(index, address)| {
        remove(Message::DelAddress(messages::address(*index, *address)))
    })
    .context("remove an address")
}

/// Removes what isn't wanted; what could not be removed stays noted.
fn retain<T: PartialEq>(
    notes: &mut Vec<T>,
    wanted: &[T],
    mut remove: impl FnMut(&T) -> io::Result<()>,
) -> io::Result<()> {
    let mut result = Ok(());
    notes.retain(|item| {
        if wanted.contains(item) || result.is_err() {
            return true;
        }
        result = remove(item);
        result.is_err()
    });
    result
}

fn set_up_interfaces(netlink: &mut Netlink, wanted: &Wanted, found: &[Found]) -> Result<(), Failure> {
    let both = || wanted.interfaces.iter().zip(found);
    let renamed = || both().filter(|(interface, found)| interface.name != found.name);
    // Two may swap their names: so all give up theirs first.
    for (_, found) in renamed() {
        netlink.request(Message::SetLink(messages::down(found.index)), 0).context("set an interface down")?;
        let temporary = format!("hull.{}", found.index);
        netlink.request(Message::SetLink(messages::name(found.index, &temporary)), 0).context("rename an interface")?;
    }
    for (interface, found) in renamed() {
        netlink
            .request(Message::SetLink(messages::name(found.index, &interface.name)), 0)
            .context(format!("rename {} to {}", found.name, interface.name))?;
    }
    for (interface, found) in both() {
        netlink
            .request(Message::SetLink(messages::up(found.index, interface.mtu)), 0)
            .context(format!("bring {} up", interface.name))?;
    }
    Ok(())
}

/// The interfaces of the request, in its order.
fn find_all(sys: &Sys, wanted: &Wanted) -> Result<Vec<Found>, Failure> {
    let class = sys.0.join("class/net");
    let mut known = Vec::new();
    for entry in fs::read_dir(&class).context("list network interfaces")?.flatten() {
        let read = |file: &str| fs::read_to_string(entry.path().join(file)).unwrap_or_default();
        let (Ok(address), Ok(index)) =
            (wanted::hardware_address(read("address").trim(), "address"), read("ifindex").trim().parse())
        else {
            continue;
        };
        known.push((address, Found { index, name: entry.file_name().to_string_lossy().into_owned() }));
    }
    let mut found = Vec::new();
    for interface in &wanted.interfaces {
        let at = known.iter().position(|(address, _)| *address == interface.hardware_address);
        let at = at.ok_or_else(|| {
            let [a, b, c, d, e, f] = interface.hardware_address;
            Failure::not_found(format!("no interface has the address {a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}"))
        })?;
        found.push(known.swap_remove(at).1);
    }
    Ok(found)
}

/// Errors that say that there is nothing left to do.
fn done_before(result: io::Result<()>, errors: &[i32]) -> io::Result<()> {
    match result {
        Err(error) if error.raw_os_error().is_some_and(|code| errors.contains(&code)) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
#[path = "network_test.rs"]
mod tests;
