//! Network interfaces.

use std::collections::HashSet;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::{ConfigError, MAX_SOCKET_PATH_BYTES, RateLimiter, check, check_identifier, check_path};

/// Most interfaces of one VM.
pub const MAX_INTERFACES: usize = 16;
/// Longest name of an interface in the configuration.
pub const MAX_IFACE_ID_BYTES: usize = 64;
/// Smallest MTU (virtio 1.2, section 5.1.4.1).
pub const MIN_MTU: u16 = 68;

/// A network interface with one of three backends: `host_dev_name`, `tap_fd` or `socket_path`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkInterface {
    /// Name in errors and calls: letters, digits, `-` and `_`.
    pub iface_id: String,
    /// Tap of the host. It is made if it doesn't exist, which takes CAP_NET_ADMIN, and then disappears with the interface.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_dev_name: Option<String>,
    /// Inherited descriptor of a tap with IFF_NO_PI and IFF_VNET_HDR, such as one in another network namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tap_fd: Option<i32>,
    /// Unix stream socket of passt, or of another process with its framing: each frame has its length in front, 4 bytes,
    /// big-endian.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket_path: Option<PathBuf>,
    /// The guest's address; without it, the guest makes one up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_mac: Option<MacAddress>,
    /// Largest packet that the guest sends. Without it, that of the tap.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
    /// The host's kernel moves the frames (vhost-net), for taps only. Rate limits and memory hotplug aren't possible with it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub vhost: bool,
    /// Limits of the way to the guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rx_rate_limiter: Option<RateLimiter>,
    /// Limits of the way from the guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tx_rate_limiter: Option<RateLimiter>,
}

/// An Ethernet address, written as six hexadecimal numbers with colons.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MacAddress(pub [u8; 6]);

impl FromStr for MacAddress {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const PROBLEM: &str =
            "must be six hexadecimal numbers of two digits with colons between, such as 02:00:00:00:00:01";
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|part| part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit()));
            *byte = u8::from_str_radix(part.ok_or(PROBLEM)?, 16).map_err(|_| PROBLEM)?;
        }
        if parts.next().is_some() { Err(PROBLEM) } else { Ok(Self(bytes)) }
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl Serialize for MacAddress {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for MacAddress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

pub(super) fn validate_all(interfaces: &[NetworkInterface]) -> Result<(), ConfigError> {
    let count = interfaces.len();
    check(
        count <= MAX_INTERFACES,
        "network-interfaces",
        &format!("at most {MAX_INTERFACES} are possible, not {count}"),
    )?;
    let (mut ids, mut names, mut descriptors) = (HashSet::new(), HashSet::new(), HashSet::new());
    for (index, interface) in interfaces.iter().enumerate() {
        let field = |name: &str| format!("network-interfaces[{index}].{name}");
        interface.validate(index)?;
        let id = &interface.iface_id;
        check(ids.insert(id), &field("iface_id"), &format!("another interface is called {id} already"))?;
        if let Some(name) = &interface.host_dev_name {
            check(names.insert(name), &field("host_dev_name"), "another interface has this tap already")?;
        }
        if let Some(number) = interface.tap_fd {
            check(descriptors.insert(number), &field("tap_fd"), "another interface has this descriptor already")?;
        }
    }
    Ok(())
}

/// The kernel is told of the guest's memory once.
pub(super) fn validate_with_memory_hotplug(interfaces: &[NetworkInterface]) -> Result<(), ConfigError> {
    for (index, interface) in interfaces.iter().enumerate() {
        let field = format!("network-interfaces[{index}].vhost");
        check(!interface.vhost, &field, "isn't possible together with memory-hotplug")?;
    }
    Ok(())
}

impl NetworkInterface {
    fn validate(&self, index: usize) -> Result<(), ConfigError> {
        let field = |name: &str| format!("network-interfaces[{index}].{name}");
        check_identifier(&self.iface_id, &field("iface_id"), MAX_IFACE_ID_BYTES)?;
        let backends =
            [self.host_dev_name.is_some(), self.tap_fd.is_some(), self.socket_path.is_some()].map(usize::from);
        check(
            backends.iter().sum::<usize>() == 1,
            &format!("network-interfaces[{index}]"),
            "must have exactly one of host_dev_name, tap_fd and socket_path",
        )?;
        if let Some(name) = &self.host_dev_name {
            check_device_name(name, &field("host_dev_name"))?;
        }
        if let Some(number) = self.tap_fd {
            check(number > libc::STDERR_FILENO, &field("tap_fd"), "must be at least 3")?;
        }
        if let Some(path) = &self.socket_path {
            check_path(path, &field("socket_path"), MAX_SOCKET_PATH_BYTES)?;
        }
        if let Some(MacAddress(bytes)) = self.guest_mac {
            let [first, ..] = bytes;
            check(first & 1 == 0 && bytes != [0; 6], &field("guest_mac"), "must be an address of one interface")?;
        }
        if let Some(mtu) = self.mtu {
            check(mtu >= MIN_MTU, &field("mtu"), &format!("must be {MIN_MTU} to 65535, not {mtu}"))?;
        }
        if self.vhost {
            check(self.socket_path.is_none(), &field("vhost"), "is for taps, not for socket_path")?;
            let limited = self.rx_rate_limiter.is_some() || self.tx_rate_limiter.is_some();
            check(
                !limited,
                &field("vhost"),
                "the host's kernel knows no rate limits; leave vhost or the limiters out",
            )?;
        }
        for (name, limiter) in [("rx_rate_limiter", self.rx_rate_limiter), ("tx_rate_limiter", self.tx_rate_limiter)] {
            limiter.map_or(Ok(()), |limiter| limiter.validate(&field(name)))?;
        }
        Ok(())
    }
}

/// What the kernel takes as a name, without the patterns that it would fill in.
fn check_device_name(name: &str, field: &str) -> Result<(), ConfigError> {
    let valid = (1..libc::IFNAMSIZ).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'/' | b':' | b'%'))
        && name != "."
        && name != "..";
    check(valid, field, "must be the name of an interface: 1 to 15 printable characters without /, : and %")
}
