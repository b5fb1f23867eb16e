//! Routes of the socket device.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::fault;
use super::http::Response;
use super::network::merge;
use super::resources::without_prefix;
use super::routes::{Answer, Call};
use crate::config::{RateLimiter, Vsock};
use crate::devices::{DeviceError, Kind};
use crate::instance::Instance;

/// GET /vsock
pub(super) fn vsock(call: Call<'_>) -> Answer {
    let mut answer = serde_json::to_value(configured(call.instance)?).unwrap_or_default();
    if let (Some(vm), Value::Object(members)) = (call.instance.vm(), &mut answer) {
        members.insert("streams".to_owned(), json!(vm.devices().vsock()?.streams));
    }
    Ok(Response::ok(answer))
}

/// Body of PATCH /vsock.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct VsockPatch {
    rx_rate_limiter: Option<RateLimiter>,
    tx_rate_limiter: Option<RateLimiter>,
}

/// PATCH /vsock: changes the limits that are given.
pub(super) fn patch_vsock(call: Call<'_>) -> Answer {
    let VsockPatch { rx_rate_limiter: rx, tx_rate_limiter: tx } = fault::parse(call.body)?;
    configured(call.instance)?;
    let config = call.instance.with_change(|config| {
        if let Some(vsock) = &mut config.vsock {
            merge(&mut vsock.rx_rate_limiter, rx);
            merge(&mut vsock.tx_rate_limiter, tx);
        }
    });
    let config = config.map_err(|error| without_prefix(error, "vsock."))?;
    if let Some(vm) = call.instance.vm() {
        vm.devices().vsock()?.set_limits(rx.as_ref(), tx.as_ref());
    }
    call.instance.set_config(config);
    Ok(Response::done())
}

fn configured(instance: &Instance) -> Result<&Vsock, fault::Fault> {
    let missing = || DeviceError::Unknown(Kind::Vsock, "vsock".to_owned());
    Ok(instance.config().vsock.as_ref().ok_or_else(missing)?)
}
