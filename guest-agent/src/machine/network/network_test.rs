//! Each test has a network namespace of its own, with a pair of virtual Ethernet devices; without the right to make one it is
//! skipped.

use std::io::Write as _;
use std::path::Path;

use hull_protocol::agent::{ConfigureNetworkRequest, IpNetwork, NetworkInterface};
use netlink_packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkInfo, LinkMessage};
use nix::sched::{CloneFlags, unshare};
use protobuf::MessageField;

use super::*;

const FIRST: &str = "52:54:00:00:00:01";
const SECOND: &str = "52:54:00:00:00:02";
/// Their indices.
const INDICES: [u32; 2] = [41, 42];

fn in_own_network(test: impl FnOnce(&Sys) + Send) {
    let alone = std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            if unshare(CloneFlags::CLONE_NEWNET).is_err() {
                return false;
            }
            let [mut first, second] = [("a", 1, INDICES[0]), ("b", 2, INDICES[1])].map(|(name, last, index)| {
                let mut link = LinkMessage::default();
                link.header.index = index;
                let address = LinkAttribute::Address(vec![0x52, 0x54, 0, 0, 0, last]);
                link.attributes = vec![LinkAttribute::IfName(name.into()), address];
                link
            });
            let info = [LinkInfo::Kind(InfoKind::Veth), LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(second)))];
            first.attributes.push(LinkAttribute::LinkInfo(info.into()));
            let made = Netlink::open().unwrap().request(Message::NewLink(first), NLM_F_CREATE | NLM_F_EXCL);
            if made.is_err() {
                return false;
            }
            // sysfs shows the network of whoever mounted it.
            let sys = tempfile::tempdir().unwrap();
            describe(sys.path(), ["a", "b"]);
            test(&Sys(sys.path().to_owned()));
            true
        });
        thread.join().unwrap()
    });
    if !alone {
        let _ = writeln!(io::stderr(), "SKIPPED: no right to make a network namespace with devices");
    }
}

/// The two devices under these names.
fn describe(sys: &Path, names: [&str; 2]) {
    for ((name, address), index) in names.into_iter().zip([FIRST, SECOND]).zip(INDICES) {
        let directory = sys.join("class/net").join(name);
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("address"), format!("{address}\n")).unwrap();
        fs::write(directory.join("ifindex"), format!("{index}\n")).unwrap();
    }
}

fn network(text: &str) -> IpNetwork {
    let (address, length) = text.split_once('/').unwrap();
    IpNetwork { address: address.into(), prefix_length: length.parse().unwrap(), ..Default::default() }
}

fn interface(name: &str, hardware_address: &str, addresses: &[&str]) -> NetworkInterface {
    NetworkInterface {
        name: name.into(),
        hardware_address: hardware_address.into(),
        mtu: 1400,
        addresses: addresses.iter().map(|text| network(text)).collect(),
        ..Default::default()
    }
}

fn route(destination: &str, gateway: &str) -> agent::Route {
    let destination = (!destination.is_empty()).then(|| network(destination));
    agent::Route {
        destination: MessageField(destination.map(Box::new)),
        gateway: gateway.into(),
        interface: "eth0".into(),
        ..Default::default()
    }
}

fn pod() -> ConfigureNetworkRequest {
    ConfigureNetworkRequest {
        interfaces: vec![interface("eth0", FIRST, &["10.1.2.3/24", "fd00::3/64"]), interface("eth1", SECOND, &[])],
        // The gateway's own route comes last, and is needed first.
        routes: vec![route("", "10.9.9.1"), route("", "fd00::1"), route("10.9.9.1/32", "")],
        neighbours: vec![agent::Neighbour {
            address: "10.9.9.1".into(),
            hardware_address: "ee:ee:ee:ee:ee:ee".into(),
            interface: "eth0".into(),
            ..Default::default()
        }],
        ..Default::default()
    }
}

fn net(file: &str) -> String {
    fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap()
}

/// "DESTINATION GATEWAY" of the IPv4 routes of eth0, as the kernel prints them.
fn ipv4_routes() -> Vec<String> {
    let routes = net("route");
    let fields = routes.lines().filter(|line| line.starts_with("eth0")).map(|line| line.split_whitespace());
    let mut found: Vec<_> =
        fields.map(|mut fields| format!("{} {}", fields.nth(1).unwrap(), fields.next().unwrap())).collect();
    found.sort();
    found
}

#[test]
fn a_network_becomes_what_is_asked_for() {
    in_own_network(|sys| {
        let mut configured = Configured::default();
        configure(sys, &mut configured, &pod()).unwrap();
        assert_eq!(ipv4_routes(), ["00000000 0109090A", "0002010A 00000000", "0109090A 00000000"]);
        let addresses = net("if_inet6");
        let address = addresses.lines().find(|line| line.starts_with("fd00")).unwrap();
        // Flags: permanent (80) and no detection of duplicates (02); not tentative (40).
        assert!(address.ends_with("82     eth0"), "{address}");
        assert!(net("ipv6_route").lines().any(|line| line.starts_with(&"0".repeat(32)) && line.contains("fd000000")));
        let neighbour = net("arp");
        assert!(neighbour.contains("10.9.9.1") && neighbour.contains("ee:ee:ee:ee:ee:ee"), "{neighbour}");
        assert!(net("dev").contains("lo:") && net("dev").contains("eth1:"));
    });
}

#[test]
fn asking_again_changes_what_differs() {
    in_own_network(|sys| {
        let mut configured = Configured::default();
        configure(sys, &mut configured, &pod()).unwrap();
        for name in ["a", "b"] {
            fs::remove_dir_all(sys.0.join("class/net").join(name)).unwrap();
        }
        describe(&sys.0, ["eth0", "eth1"]);
        let same = ipv4_routes();
        configure(sys, &mut configured, &pod()).unwrap();
        assert_eq!(ipv4_routes(), same);

        let mut other = pod();
        other.interfaces[0].addresses = vec![network("10.1.3.3/24")];
        other.routes = vec![route("", "10.1.3.1")];
        other.neighbours.clear();
        configure(sys, &mut configured, &other).unwrap();
        assert_eq!(ipv4_routes(), ["00000000 0103010A", "0003010A 00000000"]);
        assert!(!net("if_inet6").contains("fd00") && !net("arp").contains("10.9.9.1"));
        configure(sys, &mut configured, &ConfigureNetworkRequest::default()).unwrap();
        assert_eq!(ipv4_routes(), Vec::<String>::new());
    });
}

#[test]
fn two_interfaces_can_swap_their_names() {
    in_own_network(|sys| {
        let request = ConfigureNetworkRequest {
            interfaces: vec![interface("b", FIRST, &["10.1.2.3/24"]), interface("a", SECOND, &[])],
            ..Default::default()
        };
        configure(sys, &mut Configured::default(), &request).unwrap();
        assert!(net("route").lines().any(|line| line.starts_with("b\t0002010A")), "{}", net("route"));
    });
}

#[test]
fn what_fails_can_be_taken_back() {
    in_own_network(|sys| {
        let mut configured = Configured::default();
        let mut unreachable = pod();
        unreachable.routes = vec![route("", "192.168.7.1")];
        let failure = configure(sys, &mut configured, &unreachable).unwrap_err();
        assert!(failure.message.contains("route to 0.0.0.0/0"), "{failure}");
        let absent = ConfigureNetworkRequest {
            interfaces: vec![interface("eth0", "52:54:00:00:00:09", &[])],
            ..Default::default()
        };
        assert_eq!(configure(sys, &mut configured, &absent).unwrap_err().code, ttrpc::Code::NOT_FOUND);
        configure(sys, &mut configured, &ConfigureNetworkRequest::default()).unwrap();
        assert_eq!(ipv4_routes(), Vec::<String>::new());
    });
}
