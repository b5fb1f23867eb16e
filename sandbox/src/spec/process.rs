//! The `process` object: arguments, environment, user, capabilities, limits.

use serde_json::{Value, json};

use super::ContainerOptions;
use super::image::Merged;

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

pub(super) fn process(options: &ContainerOptions, merged: &Merged, hostname: &str) -> Value {
    let capabilities = options.capabilities.names();
    let rlimits: Vec<_> = options
        .ulimits
        .iter()
        .map(|limit| json!({ "type": limit.kind, "soft": limit.soft, "hard": limit.hard }))
        .collect();
    json!({
        "terminal": options.terminal,
        "user": { "uid": 0, "gid": 0 },
        "args": merged.args,
        "env": environment(options, merged, hostname),
        "cwd": merged.workdir,
        "capabilities": {
            "bounding": capabilities,
            "effective": capabilities,
            "permitted": capabilities,
            "inheritable": [],
            "ambient": [],
        },
        "rlimits": rlimits,
        "noNewPrivileges": options.no_new_privileges,
    })
}

/// Docker's own variables, then the image's, then the user's; the agent adds HOME, which depends on the user's entry in
/// the container.
fn environment(options: &ContainerOptions, merged: &Merged, hostname: &str) -> Vec<String> {
    let mut environment = Environment::default();
    environment.set("PATH", DEFAULT_PATH);
    environment.set("HOSTNAME", hostname);
    if options.terminal {
        environment.set("TERM", "xterm");
    }
    for variable in &merged.env {
        let (name, value) = variable.split_once('=').unwrap_or((variable, ""));
        environment.set(name, value);
    }
    for variable in &options.env {
        match &variable.value {
            Some(value) => environment.set(&variable.name, value),
            None => environment.unset(&variable.name),
        }
    }
    environment.0
}

/// `NAME=VALUE` entries, each name once.
#[derive(Default)]
struct Environment(Vec<String>);

impl Environment {
    fn set(&mut self, name: &str, value: &str) {
        let entry = format!("{name}={value}");
        match self.0.iter_mut().find(|known| is_named(known, name)) {
            Some(known) => *known = entry,
            None => self.0.push(entry),
        }
    }

    fn unset(&mut self, name: &str) {
        self.0.retain(|known| !is_named(known, name));
    }
}

fn is_named(entry: &str, name: &str) -> bool {
    entry.split_once('=').is_some_and(|(known, _)| known == name)
}
