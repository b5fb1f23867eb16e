//! Routes of the memory devices.

use serde::Deserialize;
use serde_json::json;

use super::http::Response;
use super::routes::{Api, Fault, body};
use crate::devices::DeviceError;

/// A device that isn't there, or a value that it can't have.
fn fault(error: &DeviceError) -> Fault {
    let status = if matches!(error, DeviceError::Unknown(..)) { 404 } else { 400 };
    Fault { status, message: error.to_string() }
}

pub(super) fn balloon(api: &Api, _: &[u8]) -> Result<Response, Fault> {
    let vm = api.vm.borrow();
    let balloon = vm.devices().balloon().map_err(|error| fault(&error))?;
    Ok(Response::ok(json!({
        "amount_mib": balloon.target_mib(),
        "actual_mib": balloon.actual_mib(),
        "stats_polling_interval_s": balloon.interval().map_or(0, |interval| interval.as_secs()),
        "reclaim": balloon.reclaim,
    })))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BalloonPatch {
    amount_mib: u32,
}

pub(super) fn patch_balloon(api: &Api, text: &[u8]) -> Result<Response, Fault> {
    let patch: BalloonPatch = body(text)?;
    let vm = api.vm.borrow();
    vm.devices().set_balloon(patch.amount_mib, vm.mem_size_mib()).map_err(|error| fault(&error))?;
    Ok(Response::done())
}

pub(super) fn balloon_statistics(api: &Api, _: &[u8]) -> Result<Response, Fault> {
    let vm = api.vm.borrow();
    let balloon = vm.devices().balloon().map_err(|error| fault(&error))?;
    if balloon.interval().is_none() {
        return Err(no_statistics());
    }
    let mut answer = json!({
        "target_pages": balloon.target_pages(),
        "actual_pages": balloon.actual_pages(),
        "target_mib": balloon.target_mib(),
        "actual_mib": balloon.actual_mib(),
    });
    if let (Some(answer), Ok(serde_json::Value::Object(statistics))) =
        (answer.as_object_mut(), serde_json::to_value(balloon.statistics().unwrap_or_default()))
    {
        answer.extend(statistics);
    }
    Ok(Response::ok(answer))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StatisticsPatch {
    stats_polling_interval_s: u16,
}

pub(super) fn patch_balloon_statistics(api: &Api, text: &[u8]) -> Result<Response, Fault> {
    let patch: StatisticsPatch = body(text)?;
    let vm = api.vm.borrow();
    let balloon = vm.devices().balloon().map_err(|error| fault(&error))?;
    if balloon.set_interval_s(patch.stats_polling_interval_s) { Ok(Response::done()) } else { Err(no_statistics()) }
}

fn no_statistics() -> Fault {
    let message = "Statistics can be polled, at intervals of 1 s or more, only if the balloon was configured with \
                   stats_polling_interval_s";
    Fault { status: 400, message: message.to_owned() }
}
