//! Routes of the console.

use serde::{Deserialize, Serialize};

use super::fault;
use super::http::Response;
use super::resources::without_prefix;
use super::routes::{Answer, Call};
use crate::devices::{DeviceError, Kind};

/// Body of PATCH /console.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ConsolePatch {
    cols: u16,
    rows: u16,
}

/// PATCH /console: the terminal that shows it has another size.
pub(super) fn patch_console(call: Call<'_>) -> Answer {
    let patch: ConsolePatch = fault::parse(call.body)?;
    if call.instance.config().console.is_none() {
        return Err(DeviceError::Unknown(Kind::Console, "console".to_owned()).into());
    }
    let config = call.instance.with_change(|config| {
        if let Some(console) = &mut config.console {
            (console.cols, console.rows) = (patch.cols, patch.rows);
        }
    });
    let config = config.map_err(|error| without_prefix(error, "console."))?;
    if let Some(vm) = call.instance.vm() {
        vm.devices().set_console_size(patch.cols, patch.rows)?;
    }
    call.instance.set_config(config);
    Ok(Response::done())
}
