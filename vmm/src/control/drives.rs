//! Changes of a drive.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::fault::{self, Fault};
use super::http::Response;
use super::network::merge;
use super::resources::{Hotplug, Item, check_id, without_prefix};
use super::routes::{Answer, Call};
use crate::config::{Drive, RateLimiter};
use crate::devices::DeviceError;

/// Body of PATCH /drives/{drive_id}.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DrivePatch {
    drive_id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    path_on_host: Option<PathBuf>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rate_limiter: Option<RateLimiter>,
}

/// PATCH /drives/{drive_id}
pub(super) fn patch_drive(call: Call<'_>) -> Answer {
    let patch: DrivePatch = fault::parse(call.body)?;
    check_id(call.id, &patch.drive_id)?;
    let index = call.instance.config().drives.iter().position(|other| other.drive_id == patch.drive_id);
    let index = index.ok_or_else(|| DeviceError::Unknown(Drive::KIND, patch.drive_id.clone()))?;
    let mut path = PathBuf::new();
    let config = call.instance.with_change(|config| {
        if let Some(drive) = config.drives.get_mut(index) {
            path.clone_from(&drive.path_on_host);
            merge(&mut drive.rate_limiter, patch.rate_limiter);
        }
    });
    let config = config.map_err(|error| without_prefix(error, &format!("{}[{index}].", Drive::LIST)))?;
    let vm = call.instance.vm().ok_or_else(Fault::before_start)?;
    if let Some(wanted) = &patch.path_on_host {
        if *wanted != path {
            let message = "Field path_on_host: must be the path that the drive has, to read its size again";
            return Err(Fault::bad(message));
        }
        vm.devices().resize_drive(&patch.drive_id)?;
    }
    if let Some(limits) = &patch.rate_limiter {
        vm.devices().update_drive_limiter(&patch.drive_id, limits)?;
    }
    call.instance.set_config(config);
    Ok(Response::done())
}
