//! The VM as a whole: what it is, its life, and its processors and memory.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::fault::{self, Fault};
use super::http::Response;
use super::output;
use super::resources::without_prefix;
use super::routes::{Answer, Call};
use crate::config::MachineConfig;
use crate::instance::Instance;
use crate::report::ExitCause;

/// GET /
pub(super) fn info(call: Call<'_>) -> Answer {
    Ok(Response::ok(json!({
        "app_name": "Hull",
        "id": call.instance.id(),
        "state": call.instance.state(),
        "vmm_version": env!("CARGO_PKG_VERSION"),
    })))
}

/// GET /version
pub(super) fn version(_call: Call<'_>) -> Answer {
    // The name that clients of Firecracker read; the version is this monitor's.
    Ok(Response::ok(
        json!({ "firecracker_version": env!("CARGO_PKG_VERSION"), "vmm_version": env!("CARGO_PKG_VERSION") }),
    ))
}

/// GET /vm
pub(super) fn get_vm(call: Call<'_>) -> Answer {
    let machine = &call.instance.config().machine_config;
    let vm = call.instance.vm();
    Ok(Response::ok(json!({
        "state": call.instance.state(),
        "vcpu_count": machine.vcpu_count,
        "mem_size_mib": vm.map_or(machine.mem_size_mib, |vm| vm.mem_size_mib()),
    })))
}

/// GET /vm/config
pub(super) fn get_config(call: Call<'_>) -> Answer {
    Ok(Response::ok(call.instance.config_json()))
}

/// Body of PATCH /vm.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct VmPatch {
    state: WantedState,
}

#[derive(Debug, Serialize, Deserialize)]
enum WantedState {
    Paused,
    Resumed,
}

/// PATCH /vm
pub(super) fn patch_vm(call: Call<'_>) -> Answer {
    let patch: VmPatch = fault::parse(call.body)?;
    let vm = call.instance.vm_mut().ok_or_else(Fault::before_start)?;
    match patch.state {
        WantedState::Paused => vm.pause()?,
        WantedState::Resumed => vm.resume()?,
    }
    Ok(Response::done())
}

/// Body of PUT /actions.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Action {
    action_type: ActionType,
}

#[derive(Debug, Serialize, Deserialize)]
enum ActionType {
    InstanceStart,
    FlushMetrics,
    SendCtrlAltDel,
    Stop,
}

/// PUT /actions
pub(super) fn put_actions(call: Call<'_>) -> Answer {
    let action: Action = fault::parse(call.body)?;
    match action.action_type {
        ActionType::InstanceStart => start(call.instance)?,
        ActionType::FlushMetrics => output::flush_metrics(call.instance)?,
        ActionType::SendCtrlAltDel => {
            return Err(Fault::bad(
                "Field action_type: this machine has no keyboard; ask the guest to power off, or use Stop",
            ));
        }
        ActionType::Stop => {
            call.instance.end_signal().report(ExitCause::Stopped, "Stopped through the control socket");
        }
    }
    Ok(Response::done())
}

fn start(instance: &mut Instance) -> Result<(), Fault> {
    if instance.vm().is_some() {
        return Err(Fault::after_start());
    }
    if !instance.config().boot_source.is_set() {
        return Err(Fault::bad("Field boot-source: there is nothing to boot; PUT /boot-source first"));
    }
    Ok(instance.start()?)
}

/// GET /machine-config
pub(super) fn get_machine_config(call: Call<'_>) -> Answer {
    Ok(Response::ok(machine_json(call.instance)))
}

/// PUT /machine-config: what isn't given gets its default.
pub(super) fn put_machine_config(call: Call<'_>) -> Answer {
    set_machine_config(call.instance, call.body)
}

/// PATCH /machine-config: what isn't given stays.
pub(super) fn patch_machine_config(call: Call<'_>) -> Answer {
    let changes: serde_json::Map<String, Value> = fault::parse(call.body)?;
    let mut whole = machine_json(call.instance);
    if let Value::Object(members) = &mut whole {
        members.extend(changes);
    }
    set_machine_config(call.instance, whole.to_string().as_bytes())
}

fn machine_json(instance: &Instance) -> Value {
    // The type has nothing that JSON can't say.
    serde_json::to_value(&instance.config().machine_config).unwrap_or_default()
}

fn set_machine_config(instance: &mut Instance, text: &[u8]) -> Answer {
    if instance.vm().is_some() {
        return Err(Fault::after_start());
    }
    let machine: MachineConfig = fault::parse(text)?;
    let config = instance.with_change(|config| config.machine_config = machine);
    instance.set_config(config.map_err(|error| without_prefix(error, "machine-config."))?);
    Ok(Response::done())
}
