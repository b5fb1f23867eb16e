//! Routes of the memory devices.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::fault::{self, Fault};
use super::http::Response;
use super::resources::without_prefix;
use super::routes::{Answer, Call};
use crate::config::Balloon;
use crate::devices::{DeviceError, Devices, Kind};
use crate::instance::Instance;
use crate::vm::Vm;

/// GET /balloon
pub(super) fn balloon(call: Call<'_>) -> Answer {
    let mut answer = serde_json::to_value(configured(call.instance)?).unwrap_or_default();
    if let (Some(vm), Value::Object(members)) = (call.instance.vm(), &mut answer) {
        let balloon = vm.devices().balloon()?;
        members.insert("actual_mib".to_owned(), json!(balloon.actual_mib()));
        members.insert("reclaim".to_owned(), json!(balloon.reclaim));
    }
    Ok(Response::ok(answer))
}

/// Body of PATCH /balloon.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct BalloonPatch {
    amount_mib: u32,
}

/// PATCH /balloon
pub(super) fn patch_balloon(call: Call<'_>) -> Answer {
    let patch: BalloonPatch = fault::parse(call.body)?;
    change(
        call.instance,
        |balloon| balloon.amount_mib = patch.amount_mib,
        |vm| vm.devices().set_balloon(patch.amount_mib, vm.mem_size_mib()).map_err(Fault::from),
    )
}

/// GET /balloon/statistics
pub(super) fn balloon_statistics(call: Call<'_>) -> Answer {
    let balloon = running(call.instance)?.balloon()?;
    if balloon.interval().is_none() {
        return Err(no_statistics());
    }
    let mut answer = json!({
        "target_pages": balloon.target_pages(),
        "actual_pages": balloon.actual_pages(),
        "target_mib": balloon.target_mib(),
        "actual_mib": balloon.actual_mib(),
    });
    if let (Value::Object(members), Ok(Value::Object(statistics))) =
        (&mut answer, serde_json::to_value(balloon.statistics().unwrap_or_default()))
    {
        members.extend(statistics);
    }
    Ok(Response::ok(answer))
}

/// Body of PATCH /balloon/statistics.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StatisticsPatch {
    stats_polling_interval_s: u16,
}

/// PATCH /balloon/statistics
pub(super) fn patch_balloon_statistics(call: Call<'_>) -> Answer {
    let patch: StatisticsPatch = fault::parse(call.body)?;
    let seconds = patch.stats_polling_interval_s;
    change(
        call.instance,
        |balloon| balloon.stats_polling_interval_s = seconds,
        |vm| {
            if vm.devices().balloon()?.set_interval_s(seconds) { Ok(()) } else { Err(no_statistics()) }
        },
    )
}

/// Changes the balloon of the configuration, and that of the VM if there is one.
fn change(
    instance: &mut Instance,
    in_config: impl FnOnce(&mut Balloon),
    in_vm: impl FnOnce(&Vm) -> Result<(), Fault>,
) -> Answer {
    configured(instance)?;
    let config = instance.with_change(|config| config.balloon.as_mut().map(in_config).unwrap_or_default());
    let config = config.map_err(|error| without_prefix(error, "balloon."))?;
    if let Some(vm) = instance.vm() {
        in_vm(vm)?;
    }
    instance.set_config(config);
    Ok(Response::done())
}

fn configured(instance: &Instance) -> Result<&Balloon, Fault> {
    let missing = || DeviceError::Unknown(Kind::Balloon, "balloon".to_owned());
    Ok(instance.config().balloon.as_ref().ok_or_else(missing)?)
}

/// The devices of a started VM.
fn running(instance: &Instance) -> Result<&Devices, Fault> {
    instance.vm().map(Vm::devices).ok_or_else(Fault::before_start)
}

fn no_statistics() -> Fault {
    Fault::bad(
        "Statistics can be polled, at intervals of 1 s or more, only if the balloon was configured with \
         stats_polling_interval_s",
    )
}

/// GET /hotplug/memory
pub(super) fn get_memory(call: Call<'_>) -> Answer {
    let missing = || DeviceError::Unknown(Kind::Memory, "memory".to_owned());
    let config = call.instance.config().memory_hotplug.as_ref().ok_or_else(missing)?;
    Ok(Response::ok(match call.instance.vm() {
        Some(vm) => json!(vm.devices().memory()?.status()),
        None => json!(config),
    }))
}

/// Body of PATCH /hotplug/memory.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MemoryPatch {
    requested_size_mib: u64,
}

/// PATCH /hotplug/memory
pub(super) fn patch_memory(call: Call<'_>) -> Answer {
    let patch: MemoryPatch = fault::parse(call.body)?;
    running(call.instance)?.request_memory(patch.requested_size_mib)?;
    Ok(Response::done())
}
