//! In real network namespaces, as root; without, only what needs none.

use std::io::Write as _;
use std::process::Command;

use super::*;

/// A namespace of a test; it goes away with it.
struct TestNamespace(String);

impl TestNamespace {
    /// `None` without root's rights, with a word on standard error.
    fn new(name: &str) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            let _ = writeln!(io::stderr(), "SKIPPED: network namespaces take root");
            return None;
        }
        let this = Self(format!("hull-test-{name}-{}", std::process::id()));
        run(&format!("ip netns add {}", this.0));
        Some(this)
    }

    fn ip(&self, arguments: &str) -> String {
        run(&format!("ip -n {} {arguments}", self.0))
    }

    fn inside(&self, command: &str) -> String {
        run(&format!("ip netns exec {} {command}", self.0))
    }

    fn network(&self) -> HostNetwork {
        HostNetwork::open(&Path::new("/run/netns").join(&self.0)).unwrap()
    }
}

impl Drop for TestNamespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

fn run(command: &str) -> String {
    let mut words = command.split(' ');
    let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test]
async fn the_guest_gets_what_the_namespace_has() {
    let Some(namespace) = TestNamespace::new("survey") else { return };
    namespace.ip("link add eth0 address 02:00:00:00:00:11 mtu 1400 type veth peer name far");
    namespace.ip("link set far up");
    namespace.ip("addr add 10.9.0.2/24 dev eth0");
    namespace.ip("addr add fd00:9::2/64 dev eth0 nodad");
    namespace.ip("link set eth0 up");
    namespace.ip("link set far down");
    namespace.ip("link add idle type veth peer name idler");
    namespace.ip("route add default via 10.9.0.1");
    namespace.ip("route add 192.0.2.7/32 via 198.51.100.1 dev eth0 onlink metric 7 src 10.9.0.2");
    namespace.ip("route add 203.0.113.0/24 dev eth0 scope link table 77");
    namespace.ip("route add default via fd00:9::1");
    namespace.ip("neigh add 10.9.0.1 lladdr 02:00:00:00:00:99 dev eth0 nud permanent");
    namespace.ip("neigh add 10.9.0.3 lladdr 02:00:00:00:00:98 dev eth0 nud stale");

    let network = namespace.network().survey().await.unwrap();
    let [eth0] = network.interfaces.as_slice() else { panic!("{network:?}") };
    assert_eq!((eth0.name.as_str(), eth0.mtu), ("eth0", 1400));
    assert_eq!(eth0.hardware_address.to_string(), "02:00:00:00:00:11");
    let addresses = ["10.9.0.2", "fd00:9::2"].map(|text| text.parse::<IpAddr>().unwrap());
    assert_eq!(eth0.addresses, [(addresses[0], 24), (addresses[1], 64)]);

    let message = network.request();
    let destination = |route: &agent::Route| match route.destination.as_ref() {
        Some(network) => format!("{}/{}", network.address, network.prefix_length),
        None => "default".to_owned(),
    };
    let mut routes: Vec<_> = message
        .routes
        .iter()
        .map(|route| {
            format!("{} via {:?} {} {} {}", destination(route), route.gateway, route.metric, route.on_link, route.ipv6)
        })
        .collect();
    routes.sort();
    assert_eq!(
        routes,
        [
            "10.9.0.0/24 via \"\" 0 false false",
            "192.0.2.7/32 via \"198.51.100.1\" 7 true false",
            "default via \"10.9.0.1\" 0 false false",
            "default via \"fd00:9::1\" 1024 false true",
            "fd00:9::/64 via \"\" 256 false true",
        ]
    );
    let [neighbour] = message.neighbours.as_slice() else { panic!("{message}") };
    assert_eq!((neighbour.address.as_str(), neighbour.hardware_address.as_str()), ("10.9.0.1", "02:00:00:00:00:99"));

    let device = eth0.device();
    assert_eq!((device.guest_mac, device.mtu), (Some(eth0.hardware_address), Some(1400)));
    assert!(device.host_dev_name.unwrap().len() < 16, "interface names have 15 characters at most");
}

#[tokio::test]
async fn a_namespace_of_another_vm_is_refused() {
    let Some(namespace) = TestNamespace::new("shared") else { return };
    namespace.ip("link add eth0 type veth peer name far");
    let host = namespace.network();
    host.refuse_shared().await.unwrap();
    namespace.ip("tuntap add hull-tap7 mode tap");
    assert_eq!(
        host.refuse_shared().await.unwrap_err().to_string(),
        "The network namespace is that of another VM (its tap is hull-tap7): two VMs can't share one (--network container:...)"
    );
    namespace.ip("link del hull-tap7");
    host.refuse_shared().await.unwrap();
}

#[tokio::test]
async fn frames_pass_between_an_interface_and_its_tap_and_the_namespace_takes_no_part() {
    let Some(namespace) = TestNamespace::new("wire") else { return };
    namespace.ip("link add eth0 type veth peer name far");
    namespace.ip("addr add 10.9.1.2/24 dev eth0");
    namespace.ip("link set eth0 up");
    namespace.ip("link set far up");
    let host = namespace.network();
    let network = host.survey().await.unwrap();
    let eth0 = network.interfaces.iter().find(|interface| interface.name == "eth0").unwrap();
    let missing = host.connect(eth0).await.unwrap_err();
    assert!(matches!(&missing, NetworkError::NoTap(name) if *name == eth0.tap()), "{missing}");

    // Another veth pair plays the tap.
    namespace.ip(&format!("link add {} type veth peer name guest", eth0.tap()));
    namespace.ip("link set guest up");
    host.connect(eth0).await.unwrap();
    host.connect(eth0).await.unwrap();
    let filters = |device: &str| namespace.inside(&format!("tc filter show dev {device} ingress"));
    for (device, other) in [("eth0", eth0.tap()), (eth0.tap().as_str(), "eth0".into())] {
        assert_eq!(filters(device).matches(&format!("Egress Redirect to device {other}")).count(), 1);
    }
    let received = |device: &str| -> u64 {
        let path = format!("/sys/class/net/{device}/statistics/rx_packets");
        namespace.inside(&format!("cat {path}")).trim().parse().unwrap()
    };
    // What is sent at the far end arrives at the guest's.
    let before = received("guest");
    // Nobody answers, which arping calls a failure.
    let arping = format!("netns exec {} busybox arping -q -c 1 -w 1 -I far 10.9.1.77", namespace.0);
    Command::new("ip").args(arping.split(' ')).status().unwrap();
    assert!(received("guest") > before, "nothing arrived");
    let again = host.survey().await.unwrap();
    assert!(again.interfaces.iter().all(|interface| !interface.name.starts_with(survey::TAP_PREFIX)), "{again:?}");
}

#[test]
fn a_namespace_that_is_none_is_named() {
    let missing = HostNetwork::open(Path::new("/run/netns/no-such")).unwrap_err();
    assert_eq!(missing.to_string(), "Network namespace /run/netns/no-such can't be entered");
}

#[tokio::test]
async fn a_file_that_is_no_namespace_is_refused() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let error = HostNetwork::open(file.path()).unwrap().survey().await.unwrap_err();
    assert!(matches!(error, NetworkError::Namespace { .. }), "{error}");
}

#[tokio::test]
async fn a_change_of_the_namespace_is_told_when_it_is_complete() {
    let Some(namespace) = TestNamespace::new("changes") else { return };
    let changes = namespace.network().changes().await.unwrap();
    let told = async || tokio::time::timeout(std::time::Duration::from_secs(30), changes.settled()).await;
    namespace.ip("link add eth0 type veth peer name far");
    namespace.ip("link set eth0 up");
    told().await.unwrap().unwrap();
    namespace.ip("addr add 10.9.2.2/24 dev eth0");
    told().await.unwrap().unwrap();
    // More than the kernel keeps.
    for _ in 0..40 {
        let batch = (0..100).map(|n| format!("addr add 10.10.{n}.1/24 dev eth0\naddr del 10.10.{n}.1/24 dev eth0\n"));
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), batch.collect::<String>()).unwrap();
        namespace.ip(&format!("-batch {}", file.path().display()));
    }
    told().await.unwrap().unwrap();
    let silent = tokio::time::timeout(std::time::Duration::from_millis(300), changes.settled()).await;
    assert!(silent.is_err(), "told although nothing has changed");
}

#[tokio::test]
async fn connections_to_the_loopback_address_are_taken_whatever_their_port_until_the_end() {
    use std::io::{Read, Write};
    use std::net::TcpStream;
    let Some(namespace) = TestNamespace::new("forward") else { return };
    namespace.ip("link set lo up");
    let open = Namespace::open(&Path::new("/run/netns").join(&namespace.0)).unwrap();
    let forwarder = open.forwarder().await.unwrap();
    let dial = |port: u16| open.enter(move || Ok(TcpStream::connect(("127.0.0.1", port))));
    for port in [1, 8080, 65535] {
        let mut outside = dial(port).await.unwrap().unwrap();
        let (mut taken, _) = loop {
            match forwarder.listener.accept() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::thread::yield_now(),
                accepted => break accepted.unwrap(),
            }
        };
        assert_eq!(taken.local_addr().unwrap().port(), port);
        taken.write_all(b"x").unwrap();
        let mut byte = [0];
        outside.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"x");
    }
    drop(forwarder);
    // The program goes a moment after its last descriptor.
    let mut refused = false;
    for _ in 0..100 {
        refused = dial(8080).await.unwrap().is_err();
        if refused {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    assert!(refused, "still taken");
}
