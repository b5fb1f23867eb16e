//! What can be asked: one row for each method and path.

use std::cell::RefCell;
use std::rc::Rc;

use super::fault::Fault;
use super::http::{Request, Response};
use super::{console, drives, machine, memory, network, output, resources, sockets};
use crate::config::{
    Balloon, BootSource, Console, Drive, Entropy, MemoryHotplug, NetworkInterface, Pmem, Share, Vsock, Watchdog,
};
use crate::instance::Instance;

/// What the routes work on.
pub type Api = Rc<RefCell<Instance>>;

/// A request on its way to its handler.
pub(super) struct Call<'a> {
    /// What it is about.
    pub instance: &'a mut Instance,
    /// The part of the path that stands at the pattern's `{name}`; empty without one.
    pub id: &'a str,
    /// What follows the path's question mark.
    pub query: &'a str,
    /// Body.
    pub body: &'a [u8],
}

pub(super) type Answer = Result<Response, Fault>;

/// A row of the table.
pub(super) struct Route {
    /// Method.
    pub method: &'static str,
    /// Path; one segment may be `{name}`, which stands for any text without a slash.
    pub path: &'static str,
    handler: fn(Call<'_>) -> Answer,
}

const fn get(path: &'static str, handler: fn(Call<'_>) -> Answer) -> Route {
    Route { method: "GET", path, handler }
}

const fn put(path: &'static str, handler: fn(Call<'_>) -> Answer) -> Route {
    Route { method: "PUT", path, handler }
}

const fn patch(path: &'static str, handler: fn(Call<'_>) -> Answer) -> Route {
    Route { method: "PATCH", path, handler }
}

const fn delete(path: &'static str, handler: fn(Call<'_>) -> Answer) -> Route {
    Route { method: "DELETE", path, handler }
}

/// All routes. `openapi.yaml` describes them; a test compares.
pub(super) const ROUTES: &[Route] = &[
    // The process and its VM.
    get("/", machine::info),
    get("/version", machine::version),
    get("/vm", machine::get_vm),
    patch("/vm", machine::patch_vm),
    get("/vm/config", machine::get_config),
    put("/actions", machine::put_actions),
    // The parts of the configuration.
    put("/boot-source", resources::put_single::<BootSource>),
    get("/machine-config", machine::get_machine_config),
    put("/machine-config", machine::put_machine_config),
    patch("/machine-config", machine::patch_machine_config),
    get("/vsock", sockets::vsock),
    put("/vsock", resources::put_single::<Vsock>),
    patch("/vsock", sockets::patch_vsock),
    put("/entropy", resources::put_single::<Entropy>),
    put("/watchdog", resources::put_single::<Watchdog>),
    put("/console", resources::put_single::<Console>),
    patch("/console", console::patch_console),
    get("/balloon", memory::balloon),
    put("/balloon", resources::put_single::<Balloon>),
    patch("/balloon", memory::patch_balloon),
    get("/balloon/statistics", memory::balloon_statistics),
    patch("/balloon/statistics", memory::patch_balloon_statistics),
    get("/hotplug/memory", memory::get_memory),
    put("/hotplug/memory", resources::put_single::<MemoryHotplug>),
    patch("/hotplug/memory", memory::patch_memory),
    put("/pmem/{id}", resources::put_item_before_start::<Pmem>),
    put("/drives/{drive_id}", resources::put_item::<Drive>),
    patch("/drives/{drive_id}", drives::patch_drive),
    delete("/drives/{drive_id}", resources::delete_item::<Drive>),
    put("/network-interfaces/{iface_id}", resources::put_item::<NetworkInterface>),
    patch("/network-interfaces/{iface_id}", network::patch_interface),
    delete("/network-interfaces/{iface_id}", resources::delete_item::<NetworkInterface>),
    put("/shares/{tag}", resources::put_item::<Share>),
    delete("/shares/{tag}", resources::delete_item::<Share>),
    // Log and metrics.
    put("/logger", output::put_logger),
    put("/metrics", output::put_metrics),
    get("/metrics", output::get_metrics),
    get("/stats", output::get_stats),
];

/// Answers one request.
pub fn answer(api: &Api, request: &Request) -> Response {
    let mut methods = Vec::new();
    for route in ROUTES {
        let Some(id) = match_path(route.path, &request.path) else { continue };
        if route.method == request.method {
            let Some(id) = percent_decoded(id) else {
                return Response::fault(
                    400,
                    "The path has a % that is not followed by two hexadecimal digits of UTF-8",
                );
            };
            let instance = &mut *api.borrow_mut();
            let call = Call { instance, id: &id, query: &request.query, body: &request.body };
            return (route.handler)(call).unwrap_or_else(|fault| Response::fault(fault.status, &fault.message));
        }
        methods.push(route.method);
    }
    if methods.is_empty() {
        return Response::fault(404, &format!("There is no path {}", printable(&request.path)));
    }
    let methods = methods.join(", ");
    let method = printable(&request.method);
    let mut response = Response::fault(405, &format!("{method} is not possible here, only {methods}"));
    response.allow = Some(methods);
    response
}

/// What stands for the pattern's `{name}`, if the path fits the pattern.
fn match_path<'a>(pattern: &str, path: &'a str) -> Option<&'a str> {
    let (mut patterns, mut segments) = (pattern.split('/'), path.split('/'));
    let mut id = "";
    loop {
        match (patterns.next(), segments.next()) {
            (None, None) => return Some(id),
            (Some(name), Some(segment)) if name.starts_with('{') && !segment.is_empty() => id = segment,
            (Some(expected), Some(segment)) if expected == segment => {}
            _ => return None,
        }
    }
}

/// A segment of a path without its escapes (RFC 3986, section 2.1).
fn percent_decoded(segment: &str) -> Option<String> {
    let mut parts = segment.split('%');
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        let digits = part.get(..2).filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()))?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        bytes.extend_from_slice(part.get(2..)?.as_bytes());
    }
    String::from_utf8(bytes).ok()
}

pub(super) fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(100).collect()
}

#[cfg(test)]
#[path = "routes_test.rs"]
mod tests;

#[cfg(test)]
#[path = "openapi_test.rs"]
mod openapi;
