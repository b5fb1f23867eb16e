//! What can be asked of a VM.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::http::{Request, Response};
use super::memory;

use crate::events::EventStream;
use crate::report::ExitCause;
use crate::vm::{StateError, Vm};

/// What the routes work on.
pub struct Api {
    /// The VM.
    pub vm: Rc<RefCell<Vm>>,
    /// For the times of the boot phases.
    pub events: Arc<EventStream>,
    /// Name of the VM.
    pub id: String,
}

type Handler = fn(&Api, &[u8]) -> Result<Response, Fault>;

struct Route {
    method: &'static str,
    path: &'static str,
    handler: Handler,
}

const ROUTES: &[Route] = &[
    Route { method: "GET", path: "/", handler: instance_info },
    Route { method: "GET", path: "/vm", handler: vm_info },
    Route { method: "PATCH", path: "/vm", handler: patch_vm },
    Route { method: "PUT", path: "/actions", handler: put_actions },
    Route { method: "GET", path: "/balloon", handler: memory::balloon },
    Route { method: "PATCH", path: "/balloon", handler: memory::patch_balloon },
    Route { method: "GET", path: "/balloon/statistics", handler: memory::balloon_statistics },
    Route { method: "PATCH", path: "/balloon/statistics", handler: memory::patch_balloon_statistics },
    Route { method: "GET", path: "/stats", handler: stats },
];

/// An error of a handler.
pub(super) struct Fault {
    pub(super) status: u16,
    pub(super) message: String,
}

impl From<StateError> for Fault {
    fn from(error: StateError) -> Self {
        let status = if matches!(error, StateError::Refused { .. }) { 409 } else { 500 };
        Self { status, message: error.to_string() }
    }
}

impl Api {
    /// Answers one request.
    pub(super) fn answer(&self, request: &Request) -> Response {
        let mut same_path = ROUTES.iter().filter(|route| route.path == request.path).peekable();
        if same_path.peek().is_none() {
            return Response::fault(404, &format!("No such path: {}", printable(&request.path)));
        }
        match same_path.find(|route| route.method == request.method) {
            None => Response::fault(405, &format!("{} is not possible here", printable(&request.method))),
            Some(route) => (route.handler)(self, &request.body)
                .unwrap_or_else(|fault| Response::fault(fault.status, &fault.message)),
        }
    }
}

fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(100).collect()
}

/// Parses a body; the message of an error names the field.
pub(super) fn body<T: DeserializeOwned>(text: &[u8]) -> Result<T, Fault> {
    let mut json = serde_json::Deserializer::from_slice(text);
    let value = serde_path_to_error::deserialize(&mut json)
        .map_err(|error| Fault { status: 400, message: format!("Field {}: {}", error.path(), error.inner()) })?;
    json.end().map_err(|error| Fault { status: 400, message: error.to_string() })?;
    Ok(value)
}

fn instance_info(api: &Api, _: &[u8]) -> Result<Response, Fault> {
    Ok(Response::ok(json!({
        "app_name": "Hull",
        "id": api.id,
        "state": api.vm.borrow().state(),
        "vmm_version": env!("CARGO_PKG_VERSION"),
    })))
}

fn vm_info(api: &Api, _: &[u8]) -> Result<Response, Fault> {
    let vm = api.vm.borrow();
    Ok(Response::ok(json!({
        "state": vm.state(),
        "vcpu_count": vm.vcpu_count(),
        "mem_size_mib": vm.mem_size_mib(),
    })))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct VmPatch {
    state: WantedState,
}

#[derive(Deserialize)]
enum WantedState {
    Paused,
    Resumed,
}

fn patch_vm(api: &Api, text: &[u8]) -> Result<Response, Fault> {
    let patch: VmPatch = body(text)?;
    let mut vm = api.vm.borrow_mut();
    match patch.state {
        WantedState::Paused => vm.pause()?,
        WantedState::Resumed => vm.resume()?,
    }
    Ok(Response::done())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Action {
    action_type: ActionType,
}

#[derive(Deserialize)]
enum ActionType {
    Stop,
}

fn put_actions(api: &Api, text: &[u8]) -> Result<Response, Fault> {
    let action: Action = body(text)?;
    match action.action_type {
        ActionType::Stop => {
            let vm = api.vm.borrow();
            vm.end_signal().report(ExitCause::Stopped, "Stopped through the control socket");
        }
    }
    Ok(Response::done())
}

fn stats(api: &Api, _: &[u8]) -> Result<Response, Fault> {
    let vm = api.vm.borrow();
    let devices: Vec<_> = vm
        .devices()
        .iter()
        .map(|device| json!({ "kind": device.kind, "id": device.id, "counters": &*device.counters }))
        .collect();
    let phases: Vec<_> =
        api.events.phases().iter().map(|(phase, at_ns)| json!({ "phase": phase, "at_ns": at_ns })).collect();
    Ok(Response::ok(json!({
        "vcpus": vm.vcpu_stats(),
        "memory": vm.memory_stats(),
        "devices": devices,
        "phases": phases,
    })))
}
