//! Changes of a network interface.

use serde::{Deserialize, Serialize};

use super::fault::{self, Fault};
use super::http::Response;
use super::resources::{Hotplug, Item, check_id, without_prefix};
use super::routes::{Answer, Call};
use crate::config::{NetworkInterface, RateLimiter};
use crate::devices::DeviceError;

/// Body of PATCH /network-interfaces/{iface_id}.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct InterfacePatch {
    iface_id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rx_rate_limiter: Option<RateLimiter>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tx_rate_limiter: Option<RateLimiter>,
}

/// PATCH /network-interfaces/{iface_id}
pub(super) fn patch_interface(call: Call<'_>) -> Answer {
    let patch: InterfacePatch = fault::parse(call.body)?;
    check_id(call.id, &patch.iface_id)?;
    let index = call.instance.config().network_interfaces.iter().position(|other| other.iface_id == patch.iface_id);
    let index = index.ok_or_else(|| DeviceError::Unknown(NetworkInterface::KIND, patch.iface_id.clone()))?;
    let config = call.instance.with_change(|config| {
        if let Some(interface) = config.network_interfaces.get_mut(index) {
            merge(&mut interface.rx_rate_limiter, patch.rx_rate_limiter);
            merge(&mut interface.tx_rate_limiter, patch.tx_rate_limiter);
        }
    });
    let config = config.map_err(|error| without_prefix(error, &format!("{}[{index}].", NetworkInterface::LIST)))?;
    let vm = call.instance.vm().ok_or_else(Fault::before_start)?;
    vm.devices().set_network_limits(&patch.iface_id, patch.rx_rate_limiter.as_ref(), patch.tx_rate_limiter.as_ref())?;
    call.instance.set_config(config);
    Ok(Response::done())
}

/// What a change doesn't name stays.
pub(super) fn merge(limiter: &mut Option<RateLimiter>, change: Option<RateLimiter>) {
    let Some(change) = change else { return };
    let old = limiter.unwrap_or_default();
    *limiter = Some(RateLimiter { bandwidth: change.bandwidth.or(old.bandwidth), ops: change.ops.or(old.ops) });
}
